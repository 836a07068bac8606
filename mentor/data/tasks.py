"""What the model is asked: each task is a pure seeded function from a record to an example.

The prompts are those of MENTOR (arXiv 2507.09574), appendix: text-to-image asks with the caption, reconstruction with
`The image is <image>.` and the caption, segmentation with `The OBJ in <image>.`, recovery and subject-driven generation
with `The OBJ in <image>.` and the caption. A new task is a function here and a row in `TASKS` and `REQUIRES`.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from mentor.data import transforms
from mentor.data.records import Contents, Record, RecordObject
from mentor.data.tensors import to_tensor
from mentor.errors import UserError
from mentor.marks import IMAGE_MARK
from mentor.types import Example, parse_prompt


@dataclass(frozen=True)
class TaskContext:
    """What a task may use besides the record.

    Attributes:
        image_size: side in pixels of references and targets.
        other_image: draws some other record's picture, uint8 `y x 3`, any size (recovery pastes on it).
        image_only: share of reconstruction prompts that are the bare `<image>`.
        recover_min_scale: least size of recovery's object, as a share of its size in the target.
        recover_distort: share of recovery's objects that are also stretched, sheared, rotated and tilted.
    """

    image_size: int
    other_image: Callable[[random.Random], np.ndarray]
    image_only: float = 0.1
    recover_min_scale: float = 0.2
    recover_distort: float = 0.5


class UnfitRecord(UserError):
    """A record that a task cannot use although it holds what the task needs; `reason` is a few words to count."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


Task = Callable[[Record, TaskContext, random.Random], Example]


def reconstruct(record: Record, context: TaskContext, rng: random.Random) -> Example:
    """The picture itself is asked for, shown and described, or (`image_only`) only shown."""
    caption = rng.choice(record.captions)
    bare = rng.random() < context.image_only
    picture = transforms.fit_pixels(record.image, context.image_size)
    return _example(
        "reconstruct",
        record,
        record.objects,
        context,
        prompt="<image>" if bare else f"The image is <image>.\n {caption}",
        caption="" if bare else caption,
        target=picture,
        reference=picture,
    )


def segment(record: Record, context: TaskContext, rng: random.Random) -> Example:
    """One object is named; the target is that object on black (exactly -1)."""
    chosen = rng.choice(_masked(record))
    picture = transforms.fit_pixels(record.image, context.image_size)
    mask = _fitted_mask(record, chosen, context)
    several = len(record.objects) > 1
    return _example(
        "segment",
        record,
        [chosen],
        context,
        prompt=f"The {(chosen.phrase if several else '') or chosen.name} in <image>.",
        caption="",
        target=transforms.paste(np.zeros_like(picture), picture, mask),
        reference=picture,
        reference_mask=mask,
    )


def text_to_image(record: Record, context: TaskContext, rng: random.Random) -> Example:
    """The picture is asked for with one of its captions."""
    caption = rng.choice(record.captions)
    picture = transforms.fit_pixels(record.image, context.image_size)
    return _example("text_to_image", record, record.objects, context, prompt=caption, caption=caption, target=picture)


def recover(record: Record, context: TaskContext, rng: random.Random) -> Example:
    """An object is cut out, distorted and pasted on another picture; the original picture is asked for.

    The fact `reference_mask` is True wherever the pasted object shows at all: elsewhere the other picture is untouched.
    """
    caption = rng.choice(record.captions)
    chosen = rng.choice(_masked(record))
    size = context.image_size
    picture = transforms.fit_pixels(record.image, size)
    mask = _fitted_mask(record, chosen, context)
    box = transforms.box_of(mask)
    assert box is not None
    matrix = transforms.recovery_distortion(box, size, rng, context.recover_min_scale, context.recover_distort)
    moved, coverage = transforms.warp_cutout(picture, mask, matrix, size)
    elsewhere = transforms.fit_pixels(context.other_image(rng), size)
    return _example(
        "recover",
        record,
        [chosen],
        context,
        prompt=f"The {chosen.name} in <image>.\n {caption}",
        caption=caption,
        target=picture,
        reference=transforms.paste(elsewhere, moved, coverage),
        reference_mask=coverage > 0,
    )


def subject(record: Record, context: TaskContext, rng: random.Random) -> Example:
    """Another view of the subject is shown; the picture that the caption describes is asked for."""
    caption = rng.choice(record.captions)
    view = rng.choice(record.views)
    shown = record.objects[0]
    return _example(
        "subject",
        record,
        [shown],
        context,
        prompt=f"The {shown.name} in <image>.\n {caption}",
        caption=caption,
        target=transforms.fit_pixels(record.image, context.image_size),
        reference=transforms.fit_pixels(view.image, context.image_size),
        reference_mask=None if view.mask is None else transforms.fit_mask(view.mask, context.image_size),
        view=view.attributes,
    )


TASKS: dict[str, Task] = {
    "reconstruct": reconstruct,
    "segment": segment,
    "text_to_image": text_to_image,
    "recover": recover,
    "subject": subject,
}

# Each predicate reads counts, never pixels or words, and answers for all records of a data set at once (bool `n`).
REQUIRES: dict[str, Callable[[Contents], np.ndarray]] = {
    "reconstruct": lambda contents: contents.captions > 0,
    "segment": lambda contents: contents.masks > 0,
    "text_to_image": lambda contents: contents.captions > 0,
    "recover": lambda contents: (contents.masks > 0) & (contents.captions > 0),
    "subject": lambda contents: (contents.objects > 0) & (contents.views > 0) & (contents.captions > 0),
}

REQUIREMENTS: dict[str, str] = {
    "reconstruct": "a caption",
    "segment": "an object with its mask",
    "text_to_image": "a caption",
    "recover": "a caption and an object with its mask",
    "subject": "a caption, a named object and another view of it",
}


def _masked(record: Record) -> list[RecordObject]:
    return [thing for thing in record.objects if thing.mask is not None]


def _fitted_mask(record: Record, chosen: RecordObject, context: TaskContext) -> transforms.Mask:
    assert chosen.mask is not None
    mask = transforms.fit_mask(chosen.mask, context.image_size)
    if not mask.any():
        raise UnfitRecord(
            f"record {record.key}: nothing of {chosen.name!r} is left on the picture's centred square at "
            f"{context.image_size} px: make the shards without objects that small or that near the edge",
            "object not in the picture",
        )
    return mask


@lru_cache(maxsize=4)
def _nothing(size: int) -> torch.Tensor:
    return torch.zeros((size, size))


@lru_cache(maxsize=4)
def _nowhere(size: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask.flags.writeable = False
    return mask


def _example(
    task: str,
    record: Record,
    named: Sequence[RecordObject],
    context: TaskContext,
    prompt: str,
    caption: str,
    target: transforms.Pixels,
    reference: transforms.Pixels | None = None,
    reference_mask: transforms.Mask | None = None,
    view: Mapping[str, Any] | None = None,
) -> Example:
    if IMAGE_MARK in caption:
        raise UnfitRecord(
            f"record {record.key}: the caption {caption!r} holds {IMAGE_MARK}: take the mark out of it",
            f"{IMAGE_MARK} in a caption",
        )
    size = context.image_size
    coverages = [transforms.fit_coverage(thing.mask, size) for thing in named if thing.mask is not None]
    # One tensor for all pictures in which nothing is named: a batch of them need not be filled with zeros anew.
    focus = torch.from_numpy(np.maximum.reduce(coverages)) if coverages else _nothing(size)
    first = named[0] if named else None
    facts = {
        "task": task,
        "caption": caption,
        "object": first.name if first else "",
        "place": first.attributes.get("place", "") if first else "",
        "size": first.attributes.get("size", "") if first else "",
        "objects": [{"name": thing.name, "phrase": thing.phrase, **thing.attributes} for thing in record.objects],
        "background": record.attributes.get("background"),
        "kind": record.attributes.get("kind", ""),
        "style": record.attributes.get("style", ""),
        "subject": record.subject,
        "view": dict(view or {}),
        "mask": focus.numpy() >= 0.5 if coverages else _nowhere(size),
        "reference_mask": reference_mask,
        "input": reference,
    }
    images = [] if reference is None else [to_tensor(reference)]
    return Example(
        task=task,
        prompt=parse_prompt(prompt, images),
        target=to_tensor(target),
        focus=focus,
        key=record.key,
        facts=facts,
    )
