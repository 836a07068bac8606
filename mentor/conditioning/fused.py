"""Text and images fused by a pretrained text encoder, as in MENTOR (arXiv 2507.09574): CLIP, FlanT5 and projectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, assert_never

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from mentor.conditioning.conditioner import shown
from mentor.conditioning.prefix import Condition, Prefix, Span
from mentor.conditioning.pretrained import TEXT_FOLDER, VISION_FOLDER, PretrainedText, PretrainedVision, of_one_length
from mentor.conditioning.projectors import MLPProjector, MLPProjectorConfig, Resampler, ResamplerConfig
from mentor.conditioning.qformer import QFormer, QFormerConfig
from mentor.conditioning.slots import SlotConditioner
from mentor.config import Config
from mentor.errors import UserError
from mentor.marks import IMAGE_MARK
from mentor.types import CodeSpec, ImageSegment, Prompt, TextSegment, prompt_text

ProjectorConfig = Annotated[MLPProjectorConfig | ResamplerConfig | QFormerConfig, Field(discriminator="kind")]
# An image by its identity, with the text that is read beside it, if the projector reads any.
Key = tuple[int, tuple[int, ...]]


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
    projector: ProjectorConfig = MLPProjectorConfig()

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


class FusedConditioner(SlotConditioner):
    """Projected patches stand in the text encoder's input where the prompt has its images; it reads both as one text.

    The text encoder must take vectors for tokens, as T5's does.
    """

    reads_images: ClassVar[bool] = True
    apart: tuple[str, ...] = ("text_encoder.", "vision_encoder.")

    def __init__(self, config: FusedConfig, pair: PretrainedPair, width: int) -> None:
        super().__init__(config.slots, pair.text.width, width)
        self.config = config
        self.pair = pair
        self.text_encoder = pair.text.model
        self.vision_encoder = pair.vision.model
        rows, columns = pair.vision.grid
        match config.projector:
            case MLPProjectorConfig():
                self.projector: MLPProjector | Resampler | QFormer = MLPProjector(pair.vision.width, pair.text.width)
                self.image_tokens, self.image_grid = rows * columns, (rows, columns)
            case ResamplerConfig(tokens=tokens):
                self.projector = Resampler(config.projector, pair.vision.width, pair.text.width)
                self.image_tokens, self.image_grid = tokens, (1, tokens)
            case QFormerConfig(tokens=tokens):
                # A prompt's text is no longer than the prompt.
                self.projector = QFormer(config.projector, pair.vision.width, pair.text.width, config.slots)
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
        images = self._project(prompts)
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
        self.pair.text.check_length(length, prompt_text(prompt))
        return length

    def _ids(self, prompt: Prompt) -> list[int]:
        # A mark in a text stands for no image.
        parts = [IMAGE_MARK if isinstance(x, ImageSegment) else x.text.replace(IMAGE_MARK, "") for x in prompt]
        return self.pair.text.tokens("".join(parts))

    def _key(self, image: Tensor, ids: Sequence[int]) -> Key:
        reads_text = isinstance(self.projector, QFormer)
        return id(image), tuple(own for own in ids if own != self.mark) if reads_text else ()

    def _project(self, prompts: Sequence[Prompt]) -> dict[Key, Float[Tensor, "n c"]]:
        """The tokens of each image, with each text that it stands beside where that matters.

        An image that occurs several times is encoded once, and made into tokens once for each such text.
        """
        images = {id(segment.image): segment.image for prompt in prompts for segment in _images(prompt)}
        if not images:
            return {}
        if any(image.shape[-1] < 2 for image in images.values()):
            raise UserError("the model reads the pixels of reference images, and these have none: train from pictures")
        patches = self.pair.vision.encode(torch.stack(list(images.values())), self.config.vision_layer)
        shown = [(segment.image, self._ids(prompt)) for prompt in prompts for segment in _images(prompt)]
        keys = list(dict.fromkeys(self._key(image, ids) for image, ids in shown))
        if not isinstance(self.projector, QFormer):
            return dict(zip(keys, self.projector(patches), strict=True))
        places = {image: place for place, image in enumerate(images)}
        texts = [self._vectors(ids) for _, ids in keys]
        return dict(zip(keys, self.projector(patches[[places[image] for image, _ in keys]], texts), strict=True))

    def _vectors(self, ids: Sequence[int]) -> Float[Tensor, "l c"]:
        """What the text encoder takes for these tokens."""
        # Its table may have no row for the mark.
        known = [0 if own == self.mark else own for own in ids]
        return self.text_encoder.get_input_embeddings()(
            torch.tensor(known, dtype=torch.long, device=self.nothing.device)
        )

    def _embed(self, prompt: Prompt, images: dict[Key, Tensor]) -> tuple[Float[Tensor, "l c"], list[Span]]:
        """What the text encoder gets for a prompt, and where its segments are in it."""
        ids = self._ids(prompt)
        places = [place for place, own in enumerate(ids) if own == self.mark]
        vectors = self._vectors(ids)
        parts: list[Tensor] = []
        spans: list[Span] = []
        end = begin = 0
        for place, image in zip(places, _images(prompt), strict=True):
            if place > begin:
                parts.append(vectors[begin:place])
                spans.append(Span("text", "", end, end + place - begin))
                end += place - begin
            parts.append(images[self._key(image.image, ids)].to(vectors.dtype))
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
