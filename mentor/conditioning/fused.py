"""Text and images fused by a pretrained text encoder, as in MENTOR (arXiv 2507.09574): CLIP, FlanT5 and projectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, assert_never

import torch
from einops import repeat
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from mentor.conditioning.conditioner import shown
from mentor.conditioning.prefix import Condition, Prefix, Span
from mentor.conditioning.pretrained import TEXT_FOLDER, VISION_FOLDER, PretrainedText, PretrainedVision, of_one_length
from mentor.conditioning.slots import SlotConditioner
from mentor.config import Config
from mentor.errors import UserError
from mentor.marks import IMAGE_MARK
from mentor.types import CodeSpec, ImageSegment, Prompt, TextSegment


class MLPProjectorConfig(Config):
    """Two linear layers with a GELU between (LLaVA-1.5, arXiv 2310.03744): a token for each patch."""

    kind: Literal["mlp"] = "mlp"


class ResamplerConfig(Config):
    """Learned queries that look at the patches: so many tokens an image, whatever its patches (arXiv 2204.14198).

    Attributes:
        tokens: an image.
        layers: of attention over patches and queries, and a feed-forward.
        heads: of the attention.
    """

    kind: Literal["resampler"] = "resampler"
    tokens: int = Field(default=32, gt=0)
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=8, gt=0)


class FusedConfig(Config):
    """Settings of the fused conditioner.

    Attributes:
        text_encoder: folder or hub name of the T5 encoder that a new model begins with; a release has its own copy.
        vision_encoder: likewise of the image encoder, CLIP's or SigLIP's.
        slots: tokens that a prompt may take, images included; longer ones are refused.
        vision_layer: which hidden states of the image encoder are taken; -2 is the last layer but one.
        projector: what makes tokens of patches.
    """

    kind: Literal["fused"] = "fused"
    text_encoder: str = ""
    vision_encoder: str = ""
    slots: int = Field(default=512, gt=0)
    vision_layer: int = Field(default=-2, lt=0)
    projector: Annotated[MLPProjectorConfig | ResamplerConfig, Field(discriminator="kind")] = MLPProjectorConfig()

    def longest(self, spec: CodeSpec) -> int:
        """Prefix tokens that a prompt may take."""
        return self.slots


@dataclass(frozen=True)
class PretrainedPair:
    """The encoders of a fused conditioner."""

    text: PretrainedText
    vision: PretrainedVision

    def save(self, folder: Path) -> None:
        """Write both into a release folder."""
        self.text.save(folder / TEXT_FOLDER)
        self.vision.save(folder / VISION_FOLDER)


class MLPProjector(nn.Sequential):
    """A token for each patch."""

    def __init__(self, patch_width: int, width: int) -> None:
        super().__init__(nn.Linear(patch_width, width), nn.GELU(), nn.Linear(width, width))


class Resampler(nn.Module):
    """Learned queries gather from the patches and from each other what an image's few tokens tell."""

    def __init__(self, config: ResamplerConfig, patch_width: int, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(config.tokens, width) * width**-0.5)
        self.project = nn.Linear(patch_width, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Float[Tensor, "r n c"]) -> Float[Tensor, "r q d"]:
        """The tokens of each image."""
        memory = self.project(patches)
        tokens = repeat(self.queries, "q d -> r q d", r=len(patches))
        for layer in self.layers:
            tokens = layer(tokens, memory)
        return self.norm(tokens)


class FusedConditioner(SlotConditioner):
    """Projected patches stand in the text encoder's input where the prompt has its images; it reads both as one text.

    The text encoder must take vectors for tokens, as T5's does.
    """

    reads_images: ClassVar[bool] = True
    apart: ClassVar[tuple[str, ...]] = ("text_encoder.", "vision_encoder.")

    def __init__(self, config: FusedConfig, pair: PretrainedPair, width: int) -> None:
        super().__init__(config.slots, pair.text.width, width)
        self.config = config
        self.pair = pair
        self.text_encoder = pair.text.model
        self.vision_encoder = pair.vision.model
        rows, columns = pair.vision.grid
        match config.projector:
            case MLPProjectorConfig():
                self.projector: nn.Module = MLPProjector(pair.vision.width, pair.text.width)
                self.image_tokens, self.image_grid = rows * columns, (rows, columns)
            case ResamplerConfig(tokens=tokens):
                self.projector = Resampler(config.projector, pair.vision.width, pair.text.width)
                self.image_tokens, self.image_grid = tokens, (1, tokens)
            case _:
                assert_never(config.projector)
        # One token in the place of an image, which is made as many as the image has. MENTOR has it at 32100 of T5.
        pair.text.tokenizer.add_tokens([IMAGE_MARK], special_tokens=True)
        self.mark: int = pair.text.tokenizer.get_vocab()[IMAGE_MARK]

    def train(self, mode: bool = True) -> "FusedConditioner":
        """Training or eval mode, except for the encoders, which have no dropout as they are used here."""
        super().train(mode)
        self.text_encoder.eval()
        self.vision_encoder.eval()
        return self

    def forward(self, condition: Condition) -> Prefix:
        """The prefix of a batch of prompts.

        Raises:
            UserError: a prompt takes more tokens than there are slots, or its images have no pixels.
        """
        prompts = condition.prompts
        for prompt in prompts:
            self.count(prompt)
        images = self._project([segment.image for prompt in prompts for segment in _images(prompt)])
        embedded: list[Tensor] = []
        spans: list[list[Span]] = []
        for prompt in prompts:
            if prompt:
                row, marks = self._embed(prompt, images)
                embedded.append(row)
                spans.append(marks)
            else:
                spans.append([Span("null", "", 0, self.null_tokens(prompt))])
        read = iter(self._read(embedded))
        rows = [next(read) if prompt else self.nothing[-self.null_tokens(prompt) :] for prompt in prompts]
        return self.arrange(rows, spans)

    def count(self, prompt: Prompt) -> int:
        """Tokens that the prompt's prefix has.

        Raises:
            UserError: they are more than there are slots.
        """
        if not prompt:
            return self.null_tokens(prompt)
        ids = self._ids(prompt)
        length = len(ids) + ids.count(self.mark) * (self.image_tokens - 1)
        if length > self.config.slots:
            raise UserError(
                f"the prompt takes {length} prefix tokens and the model has room for {self.config.slots} "
                f"(an image takes {self.image_tokens}): shorten it: {shown(prompt)}"
            )
        return length

    def _ids(self, prompt: Prompt) -> list[int]:
        # A mark in a text stands for no image.
        parts = [IMAGE_MARK if isinstance(x, ImageSegment) else x.text.replace(IMAGE_MARK, "") for x in prompt]
        return self.pair.text.tokens("".join(parts))

    def _project(self, images: Sequence[Tensor]) -> dict[int, Float[Tensor, "n c"]]:
        """The tokens of each image, by its identity; one that occurs several times is read once."""
        unique = list({id(image): image for image in images}.values())
        if not unique:
            return {}
        if any(image.shape[-1] < 2 for image in unique):
            raise UserError("the model reads the pixels of reference images, and these have none: train from pictures")
        patches = self.pair.vision.encode(torch.stack(unique), self.config.vision_layer)
        return dict(zip(map(id, unique), self.projector(patches), strict=True))

    def _embed(self, prompt: Prompt, images: dict[int, Tensor]) -> tuple[Float[Tensor, "l c"], list[Span]]:
        """What the text encoder gets for a prompt, and where its segments are in it."""
        ids = self._ids(prompt)
        places = [place for place, own in enumerate(ids) if own == self.mark]
        # The encoder's table may have no row for the mark.
        known = torch.tensor([0 if own == self.mark else own for own in ids], device=self.nothing.device)
        vectors = self.text_encoder.get_input_embeddings()(known)
        parts: list[Tensor] = []
        spans: list[Span] = []
        end = begin = 0
        for place, image in zip(places, _images(prompt), strict=True):
            if place > begin:
                parts.append(vectors[begin:place])
                spans.append(Span("text", "", end, end + place - begin))
                end += place - begin
            parts.append(images[id(image.image)].to(vectors.dtype))
            spans.append(Span("image", image.name, end, end + self.image_tokens, self.image_grid))
            end, begin = end + self.image_tokens, place + 1
        if begin < len(ids):
            parts.append(vectors[begin:])
            spans.append(Span("text", "", end, end + len(ids) - begin))
        return torch.cat(parts), spans

    def _read(self, rows: Sequence[Float[Tensor, "l c"]]) -> list[Float[Tensor, "l c"]]:
        """What the text encoder makes of each row; rows of one length together, so that none is padded."""
        read: dict[int, Tensor] = {}
        for places in of_one_length(rows):
            vectors = torch.stack([rows[place] for place in places])
            hidden = self.text_encoder(inputs_embeds=vectors).last_hidden_state
            read |= dict(zip(places, hidden.float(), strict=True))
        return [read[place] for place in range(len(rows))]


def _images(prompt: Prompt) -> list[ImageSegment]:
    return [segment for segment in prompt if not isinstance(segment, TextSegment)]
