"""From the number of a sample to an example: which samples a task can use, and how one becomes an example."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mentor.data.records import Record, RecordObject, View
from mentor.data.stream import Sample, sample_rng
from mentor.data.tasks import REQUIREMENTS, REQUIRES, TASKS, TaskContext
from mentor.errors import UserError
from mentor.types import Example

# How often recovery's background is drawn again when the picture shows the very thing that is to be pasted on it.
REDRAWS = 16


class Shards(Protocol):
    """What is needed of an opened split (`shards.ShardSet`)."""

    split: str
    counts: tuple[int, ...]

    def record(self, shard: int, position: int) -> Record:
        """A record with its pictures."""
        ...

    def facts(self, shard: int, position: int) -> Mapping[str, Any]:
        """A record's JSON member."""
        ...


def outline(facts: Mapping[str, Any]) -> Record:
    """The record of a sample's JSON member, its pictures and masks empty."""
    nothing, no_mask = np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), bool)
    return Record(
        key=facts["key"],
        image=nothing,
        captions=tuple(facts["captions"]),
        objects=tuple(RecordObject(thing["name"], no_mask, thing["phrase"]) for thing in facts["objects"]),
        views=tuple(View(nothing, no_mask) for _ in facts["views"]),
        subject=facts["subject"],
    )


def usable_positions(shards: Shards, tasks: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """For each task, for each shard, the positions of the records that the task can use; reads no pictures.

    Raises:
        UserError: a task can use none.
    """
    usable: dict[str, list[np.ndarray]] = {task: [] for task in tasks}
    for shard, count in enumerate(shards.counts):
        outlines = [outline(shards.facts(shard, position)) for position in range(count)]
        for task in tasks:
            fits = [position for position, record in enumerate(outlines) if REQUIRES[task](record)]
            usable[task].append(np.array(fits, dtype=np.int64))
    for task, positions in usable.items():
        if not any(len(fits) for fits in positions):
            raise UserError(
                f"no record in the split {shards.split!r} can be used for the task {task!r}, which needs "
                f"{REQUIREMENTS[task]}: take the task out of the mixture or use other data"
            )
    return usable


class ExampleMaker:
    """Makes the example of any sample and task; every random choice follows from (seed, epoch, key, task) alone.

    Args:
        shards: the opened split.
        seed: of the run.
        image_size, image_only, recover_min_scale, recover_distort: see `tasks.TaskContext`.
    """

    def __init__(
        self,
        shards: Shards,
        seed: int,
        image_size: int,
        image_only: float = 0.1,
        recover_min_scale: float = 0.2,
        recover_distort: float = 0.5,
    ) -> None:
        self._shards, self._seed, self._image_size = shards, seed, image_size
        self._image_only = image_only
        self._recover_min_scale, self._recover_distort = recover_min_scale, recover_distort

    def example(self, task: str, sample: Sample) -> Example:
        """The sample as an example of the task."""
        record = self._shards.record(sample.shard, sample.position)
        context = TaskContext(
            image_size=self._image_size,
            other_image=lambda rng: self._other_image(sample, record, rng),
            image_only=self._image_only,
            recover_min_scale=self._recover_min_scale,
            recover_distort=self._recover_distort,
        )
        return TASKS[task](record, context, sample_rng(self._seed, sample.epoch, record.key, task))

    def _other_image(self, sample: Sample, record: Record, rng: random.Random) -> np.ndarray:
        """Another picture of the same shard (so that ranks stay apart), if possible without the record's objects."""
        names = {thing.name for thing in record.objects}
        count = self._shards.counts[sample.shard]
        other = record
        for _ in range(REDRAWS):
            position = rng.randrange(count - 1)
            other = self._shards.record(sample.shard, position + (position >= sample.position))
            if not names & {thing.name for thing in other.objects}:
                break
        return other.image
