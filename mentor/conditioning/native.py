"""The project's own conditioner: text by BPE or a pretrained encoder, and the image tokenizer's view of the references.

What makes copying from a reference appear in seconds of training and not in hours: a reference cell is described by
its quantised latent (exactly what the target's code stands for) together with the encoder's features (what survives
when the reference is blurred or moved), and it carries the same grid position as the target cell it stands for.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from mentor.conditioning.conditioner import Conditioner, shown
from mentor.conditioning.prefix import Condition, Prefix, Span
from mentor.conditioning.pretrained import PretrainedText
from mentor.conditioning.text_tokenizer import TextTokenizer
from mentor.conditioning.words import PretrainedWords
from mentor.config import Config
from mentor.errors import UserError
from mentor.nn.convolution import NeighbourBlock
from mentor.types import CodeSpec, ImageSegment, Prompt

# Standard deviation that tokens of text and what is added to them start with.
_LOUDNESS = 0.5


class NativeConfig(Config):
    """Settings of the native conditioner.

    Attributes:
        text_encoder: folder or hub name of a pretrained text encoder, read word by word instead of a BPE learned from
            the captions; a new model begins with it, and a release has its own copy.
        text_vocab_size: entries that the BPE may have at most.
        max_prefix: prefix tokens a prompt may take, the start token included; None for two images and 256 others.
        image_features: what a reference cell is described by.
        shared_cells: give reference cells the grid position of the target cells they stand for; else their own.
        hidden: hidden width of the projector, in multiples of the model's width.
        neighbour_blocks: blocks in which reference cells look at their neighbours before the backbone sees them, which
            an encoder of patches did not let them do.
    """

    kind: Literal["native"] = "native"
    text_encoder: str = ""
    text_vocab_size: int = 2048
    max_prefix: int | None = Field(default=None, ge=2)
    image_features: tuple[Literal["latents", "features"], ...] = ("latents", "features")
    shared_cells: bool = True
    hidden: float = 2.0
    neighbour_blocks: int = Field(default=0, ge=0)

    def longest(self, spec: CodeSpec) -> int:
        """Prefix tokens that a prompt may take where images have such codes."""
        return 2 * spec.tokens + 256 if self.max_prefix is None else self.max_prefix


class ImageProjector(nn.Module):
    """One token for each cell of a reference image: normalised features through a two-layer MLP."""

    def __init__(self, config: NativeConfig, spec: CodeSpec, width: int) -> None:
        super().__init__()
        self.use_latents = "latents" in config.image_features
        self.use_features = "features" in config.image_features
        size = spec.code_width * self.use_latents + spec.feature_width * self.use_features
        if not size:
            raise UserError("conditioner.image_features is empty: name at least one of latents, features")
        # Normalised apart: the features are many and loud and would drown the few latents.
        self.latent_norm = nn.LayerNorm(spec.code_width) if self.use_latents else None
        self.feature_norm = nn.LayerNorm(spec.feature_width) if self.use_features else None
        hidden = int(config.hidden * width)
        self.mlp = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.blocks = nn.Sequential(*(NeighbourBlock(width, hidden) for _ in range(config.neighbour_blocks)))

    def forward(
        self, latents: Float[Tensor, "r c gy gx"], features: Float[Tensor, "r d gy gx"]
    ) -> Float[Tensor, "r n w"]:
        """The tokens of each image in raster order."""
        parts = []
        if self.latent_norm is not None:
            parts.append(self.latent_norm(rearrange(latents, "r c gy gx -> r (gy gx) c")))
        if self.feature_norm is not None:
            parts.append(self.feature_norm(rearrange(features, "r d gy gx -> r (gy gx) d")))
        tokens = self.mlp(torch.cat(parts, dim=-1))
        if not self.blocks:
            return tokens
        cells = rearrange(tokens, "r (gy gx) w -> r gy gx w", gx=latents.shape[-1])
        return rearrange(self.blocks(cells), "r gy gx w -> r (gy gx) w")


class NativeConditioner(Conditioner):
    """Text as tokens of a BPE or of a pretrained encoder, images as a token for each of their codes, in their order.

    Every segment token also gets the embedding of its place in the prompt, in which a whole image counts as one place:
    so text keeps its order, and several images are told apart, whatever their size.
    """

    reads_images: ClassVar[bool] = True
    reads_codes: ClassVar[bool] = True

    def __init__(
        self, config: NativeConfig, material: TextTokenizer | PretrainedText, spec: CodeSpec, width: int
    ) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.text_tokenizer = material if isinstance(material, TextTokenizer) else None
        if isinstance(material, TextTokenizer):
            self.text: nn.Embedding | PretrainedWords = nn.Embedding(material.vocab_size, width)
        else:
            self.text = PretrainedWords(material, width, std=_LOUDNESS)
            self.apart = ("text.encoder.",)
        self.places = nn.Embedding(config.longest(spec), width)
        self.projector = ImageProjector(config, spec, width)
        # Row 0: the null condition, trained whenever a prompt is dropped. Row 1: the start of the image.
        self.special = nn.Parameter(torch.empty(2, width))
        self.own_cells = None if config.shared_cells else nn.Parameter(torch.randn(spec.tokens, width) * 0.5)
        if isinstance(self.text, nn.Embedding):
            nn.init.normal_(self.text.weight, std=_LOUDNESS)
        nn.init.normal_(self.places.weight, std=_LOUDNESS)
        nn.init.normal_(self.special, std=_LOUDNESS)

    def forward(self, condition: Condition) -> Prefix:
        """The prefix of a batch of prompts.

        Raises:
            UserError: a prompt needs more tokens than the settings leave it, or a text more than its encoder reads.
        """
        texts: list[str] = []
        rows: list[list[tuple[int, int, int]]] = []  # (place in the bank, place in the prompt, cell) of each token
        spans: list[list[Span]] = []
        image = words = 0
        for prompt in condition.prompts:
            row, marks, place = [], [], 0
            for segment in prompt:
                start = len(row)
                if isinstance(segment, ImageSegment):
                    first = 2 + image * self.spec.tokens
                    row.extend((-first - cell, place, cell) for cell in range(self.spec.tokens))
                    marks.append(Span("image", segment.name, start, len(row), self.spec.grid))
                    image, place = image + 1, place + 1
                else:
                    length = self._length(segment.text)
                    row.extend((2 + words + i, place + i, -1) for i in range(length))
                    marks.append(Span("text", "", start, len(row)))
                    texts.append(segment.text)
                    words, place = words + length, place + length
            if not prompt:
                row.append((0, 0, -1))
                marks.append(Span("null", "", 0, 1))
            marks.append(Span("start", "", len(row), len(row) + 1))
            row.append((1, -1, 0))
            self._check_length(len(row), prompt)
            rows.append(row)
            spans.append(marks)
        return self._gather(condition, texts, words, rows, spans)

    def count(self, prompt: Prompt) -> int:
        """Tokens that the prompt's prefix has, the start token included.

        Raises:
            UserError: they are more than the settings leave it, or a text has more than its encoder reads.
        """
        own = sum(
            self.spec.tokens if isinstance(segment, ImageSegment) else self._length(segment.text) for segment in prompt
        )
        # The null condition has one token in the place of a prompt; then comes that of the start.
        length = (own if prompt else 1) + 1
        self._check_length(length, prompt)
        return length

    def _length(self, text: str) -> int:
        if isinstance(self.text, PretrainedWords):
            return self.text.count(text)
        assert self.text_tokenizer is not None
        return len(self.text_tokenizer.encode(text))

    def _embed(self, texts: Sequence[str]) -> Float[Tensor, "l d"]:
        """The tokens of all texts, one text behind the other."""
        if isinstance(self.text, PretrainedWords):
            return self.text(texts).to(self.special.dtype)
        assert self.text_tokenizer is not None
        ids = [number for text in texts for number in self.text_tokenizer.encode(text)]
        return self.text(torch.tensor(ids, dtype=torch.long, device=self.special.device))

    def _check_length(self, length: int, prompt: Prompt) -> None:
        if length > self.places.num_embeddings:
            raise UserError(
                f"the prompt takes {length} prefix tokens and the model has room for {self.places.num_embeddings} "
                f"(an image takes {self.spec.tokens}): shorten it: {shown(prompt)}"
            )

    def _gather(
        self,
        condition: Condition,
        texts: list[str],
        words: int,
        rows: list[list[tuple[int, int, int]]],
        spans: list[list[Span]],
    ) -> Prefix:
        """Put the tokens of all rows in place with one gather from a bank of special, text and image tokens.

        Args:
            condition: the prompts, and the codes of their images.
            texts: of all segments of text, in order.
            words: tokens that they have together.
            rows: of each token its place in the bank, its place in the prompt and its cell.
            spans: of each row.
        """
        device = self.special.device
        bank = [self.special, self._embed(texts)]
        if condition.codes is not None:
            images = self.projector(condition.codes.latents.to(device), condition.codes.features.to(device))
            if self.own_cells is not None:
                images = images + self.own_cells
            bank.append(rearrange(images, "r n w -> (r n) w").to(self.special.dtype))
        length = max(len(row) for row in rows)
        # Image tokens were noted with negative numbers, since the count of text tokens was not yet known.
        index = [
            [(0, -1, -2)] * (length - len(row)) + [(at if at >= 0 else words - at, *rest) for at, *rest in row]
            for row in rows
        ]
        where, place, cell = torch.tensor(index, device=device).unbind(dim=-1)
        embeddings = torch.cat(bank)[where]
        embeddings = embeddings + self.places(place.clamp(min=0)) * (place >= 0).unsqueeze(-1)
        mask = cell > -2
        return Prefix(embeddings * mask.unsqueeze(-1), mask, self._cells(cell, where, words), spans)

    def _cells(self, cell: Int[Tensor, "b p"], where: Int[Tensor, "b p"], words: int) -> Int[Tensor, "b p 2"]:
        """(row, column) of each token's cell; (-1, -1) for text, and for images too when cells are not shared."""
        columns = self.spec.grid[1]
        on_grid = cell >= 0
        if not self.config.shared_cells:
            on_grid = on_grid & (where < 2 + words)
        coordinates = torch.stack((cell // columns, cell % columns), dim=-1)
        return torch.where(on_grid.unsqueeze(-1), coordinates, -1)
