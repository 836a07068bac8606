"""The prefix: a prompt as embedded tokens, with a list that says which tokens came from which segment."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mentor.types import Codes, ImageSegment, Prompt, Segment, TextSegment, prompt_images


@dataclass(frozen=True)
class Span:
    """Where one segment lies in a row of the prefix: tokens `start` to `end` (not included).

    `name` is how the prompt calls an image, `grid` the rows and columns of an image's tokens ((0, 0) for text).
    """

    kind: Literal["text", "image", "null", "start"]
    name: str
    start: int
    end: int
    grid: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Prefix:
    """Embedded prompts, padded on the left, so that the last column predicts the first image token in every row.

    Attributes:
        embeddings: one vector a token.
        mask: True on tokens, False on padding.
        cells: (row, column) of the target cell that a token stands for; (-1, -1) where it stands for none.
        spans: for each row its segments in order.
    """

    embeddings: Float[Tensor, "b p d"]
    mask: Bool[Tensor, "b p"]
    cells: Int[Tensor, "b p 2"]
    spans: Sequence[Sequence[Span]]

    def select(self, rows: Sequence[int], length: int) -> "Prefix":
        """Some of the rows, of which none has more tokens than `length`."""
        spans = [self.spans[row] for row in rows]
        return Prefix(self.embeddings[rows, -length:], self.mask[rows, -length:], self.cells[rows, -length:], spans)


class Dropped(tuple[Segment, ...]):
    """The empty prompt in the place of another one, for conditioners whose null is as long as what it replaces.

    Attributes:
        instead_of: that prompt.
    """

    instead_of: Prompt

    def __new__(cls, instead_of: Prompt) -> "Dropped":
        """The empty prompt, with a note of what it replaces."""
        dropped = super().__new__(cls)
        dropped.instead_of = instead_of
        return dropped


@dataclass(frozen=True)
class Condition:
    """Prompts together with the codes of all their reference images, in order of appearance, first prompt first."""

    prompts: Sequence[Prompt]
    codes: Codes | None


def encode_condition(
    prompts: Sequence[Prompt],
    encode: Callable[[Float[Tensor, "b c y x"]], Codes],
    device: torch.device | str = "cpu",
    needed: bool = True,
) -> Condition:
    """The prompts with their reference images encoded in one go; an image in several rows is encoded once.

    Args:
        prompts: what is asked.
        encode: makes codes of images.
        device: where to make them.
        needed: whether the conditioner reads them at all.
    """
    images = [image for prompt in prompts for image in prompt_images(prompt)]
    if not images or not needed:
        return Condition(prompts, None)
    unique = list({id(image): image for image in images}.values())
    codes = encode(torch.stack(unique).to(device))
    if len(unique) == len(images):
        return Condition(prompts, codes)
    places = {id(image): place for place, image in enumerate(unique)}
    return Condition(prompts, codes.select([places[id(image)] for image in images]))


def drop_condition(
    prompts: Sequence[Prompt], rng: random.Random, everything: float, text: float, images: float
) -> list[Prompt]:
    """The prompts, some of them emptied, so that guidance has something to push away from.

    Args:
        prompts: what the batch asks.
        rng: decides for each prompt on its own.
        everything: probability that nothing is left: the null condition.
        text: probability that only the images are left, where there are any.
        images: probability that only the text is left, where there is any.
    """
    kept: list[Prompt] = []
    for prompt in prompts:
        draw = rng.random()
        if draw < everything:
            kept.append(Dropped(prompt))
        elif draw < everything + text:
            kept.append(images_only(prompt) or prompt)
        elif draw < everything + text + images:
            kept.append(text_only(prompt) or prompt)
        else:
            kept.append(prompt)
    return kept


def images_only(prompt: Prompt) -> Prompt:
    """The prompt's images without its text."""
    return tuple(segment for segment in prompt if isinstance(segment, ImageSegment))


def text_only(prompt: Prompt) -> Prompt:
    """The prompt's text without its images."""
    return tuple(segment for segment in prompt if isinstance(segment, TextSegment))
