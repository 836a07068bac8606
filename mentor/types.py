"""The shapes that cross the project's borders: prompts, examples, batches and image codes.

Shape letters, everywhere: `b` batch, `n` any sequence, `p` prefix, `t` image tokens, `l` text tokens, `r` reference
images, `d` width, `h` heads, `k` head width, `v` vocabulary, `c` channels, `y x` pixels, `gy gx` token grid.
Images are float32 in [-1, 1], RGB, `c y x`. A mask is True where something is valid or may be attended to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mentor.errors import UserError
from mentor.marks import IMAGE_MARK


@dataclass(frozen=True)
class TextSegment:
    """A run of text in a prompt."""

    text: str


@dataclass(frozen=True)
class ImageSegment:
    """A reference image in a prompt; `name` is how the prompt calls it (empty for a bare `<image>`)."""

    image: Float[Tensor, "c y x"]
    name: str = ""


Segment = TextSegment | ImageSegment
Prompt = tuple[Segment, ...]


@dataclass(frozen=True)
class Example:
    """One training or evaluation pair: what is asked and the picture that answers it.

    Attributes:
        task: name of the task that made it.
        prompt: text and image segments in order.
        target: the picture to generate.
        focus: share of each target pixel that belongs to the named object, in [0, 1]; zeros when unknown.
        key: key of the record it came from.
        facts: what evaluation may ask about the target (place, background, true mask, ...); never reaches the model.
    """

    task: str
    prompt: Prompt
    target: Float[Tensor, "c y x"]
    focus: Float[Tensor, "y x"]
    key: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be used, whose place another one took.

    Attributes:
        shard: path of its shard.
        key: the sample's.
        reason: a few fixed words that can be counted.
        message: the whole story on one line.
    """

    shard: str
    key: str
    reason: str
    message: str


@dataclass(frozen=True)
class BatchCodes:
    """What stands for a batch's pictures when the image tokenizer has seen them before.

    Attributes:
        target_ids: codes of the pictures to generate.
        reference_ids: codes of the pictures that the prompts show, in order of appearance, first prompt first.
        reference_features: likewise their `Codes.features`; None where they were not kept.
    """

    target_ids: Int[Tensor, "b gy gx"]
    reference_ids: Int[Tensor, "r gy gx"]
    reference_features: Float[Tensor, "r d gy gx"] | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "BatchCodes":
        """The same with a function applied to every tensor."""
        features = self.reference_features
        return BatchCodes(
            function(self.target_ids),
            function(self.reference_ids),
            None if features is None else function(features),
        )


@dataclass(frozen=True)
class Batch:
    """Examples side by side.

    Attributes:
        targets: without pixels where there are `codes`; so are the prompts' images.
        focus: of pixels, or of the grid's cells where there are `codes`.
        valid: False for padding rows that make the ranks' last batches equally long.
        skipped: samples whose places in the batch others took.
        codes: of the pictures; None where the pictures are there themselves.
    """

    tasks: Sequence[str]
    prompts: Sequence[Prompt]
    targets: Float[Tensor, "b c y x"]
    focus: Float[Tensor, "b y x"]
    keys: Sequence[str]
    valid: Bool[Tensor, "b"]
    facts: Sequence[Mapping[str, Any]]
    skipped: Sequence[Skipped] = ()
    codes: BatchCodes | None = None

    def first(self, count: int) -> "Batch":
        """The first examples alone."""
        codes = self.codes
        if codes is not None:
            shown = sum(len(prompt_images(prompt)) for prompt in self.prompts[:count])
            features = codes.reference_features
            codes = BatchCodes(
                codes.target_ids[:count],
                codes.reference_ids[:shown],
                None if features is None else features[:shown],
            )
        return Batch(
            self.tasks[:count],
            self.prompts[:count],
            self.targets[:count],
            self.focus[:count],
            self.keys[:count],
            self.valid[:count],
            self.facts[:count],
            codes=codes,
        )


@dataclass(frozen=True)
class Codes:
    """What an image tokenizer says of a picture.

    Attributes:
        ids: indices into the codebook, raster order over the grid.
        latents: the quantised code vectors, which the decoder reads.
        features: the encoder's last feature map before it is squeezed to the code width; richer than `latents`.
    """

    ids: Int[Tensor, "b gy gx"]
    latents: Float[Tensor, "b c gy gx"]
    features: Float[Tensor, "b d gy gx"]

    def select(self, rows: Sequence[int] | Int[Tensor, "n"]) -> "Codes":
        """Those of the given pictures, in the given order."""
        rows = torch.as_tensor(rows, dtype=torch.long, device=self.ids.device)
        return Codes(self.ids[rows], self.latents[rows], self.features[rows])


@dataclass(frozen=True)
class CodeSpec:
    """The sizes that follow from an image tokenizer and a picture size; the generator is built for one of these.

    Attributes:
        grid: rows and columns of codes a picture has.
        vocab_size: how many different codes there are.
        code_width: width of `Codes.latents`.
        feature_width: width of `Codes.features`.
    """

    grid: tuple[int, int]
    vocab_size: int
    code_width: int
    feature_width: int

    @property
    def tokens(self) -> int:
        """Codes a picture has."""
        return self.grid[0] * self.grid[1]


def parse_prompt(text: str, images: Sequence[Float[Tensor, "c y x"]]) -> Prompt:
    """Split a prompt at its `<image>` marks and put the images in their places, in order.

    Raises:
        ValueError: the number of marks and of images differ.
    """
    parts = text.split(IMAGE_MARK)
    if len(parts) - 1 != len(images):
        raise UserError(
            f"the prompt has {len(parts) - 1} {IMAGE_MARK} mark(s) but {len(images)} image(s) were given: "
            f"write {IMAGE_MARK} once for each image, in the order of the images"
        )
    segments: list[Segment] = []
    for index, part in enumerate(parts):
        if part:
            segments.append(TextSegment(part))
        if index < len(images):
            segments.append(ImageSegment(images[index]))
    return tuple(segments)


def prompt_text(prompt: Prompt) -> str:
    """The prompt as one would type it, each image written as `<image>`."""
    return "".join(segment.text if isinstance(segment, TextSegment) else IMAGE_MARK for segment in prompt)


def prompt_images(prompt: Prompt) -> list[Float[Tensor, "c y x"]]:
    """The prompt's reference images in order of appearance."""
    return [segment.image for segment in prompt if isinstance(segment, ImageSegment)]
