"""From the number of a sample to an example: which samples a task can use, and how one becomes an example."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mentor.data.records import Record, RecordObject, View
from mentor.data.stream import Sample, sample_rng
from mentor.data.tasks import REQUIREMENTS, REQUIRES, TASKS, TaskContext
from mentor.errors import UserError
from mentor.types import Example

# How often recovery's background is drawn again when the picture shows the very thing that is to be pasted on it.
REDRAWS = 16


@runtime_checkable
class Shards(Protocol):
    """What is needed of an opened split (`shards.ShardSet`)."""

    split: str
    counts: tuple[int, ...]

    def record(self, shard: int, position: int) -> Record:
        """A record with its pictures."""
        ...

    def description(self, shard: int, position: int) -> Mapping[str, Any]:
        """A record's words, without its pictures."""
        ...


def outline(description: Mapping[str, Any]) -> Record:
    """A record with the words of a description, its key, pictures and masks empty."""
    nothing, no_mask = np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), bool)
    return Record(
        key="",
        image=nothing,
        captions=tuple(description["captions"]),
        objects=tuple(RecordObject(thing["name"], no_mask, thing["phrase"]) for thing in description["objects"]),
        views=tuple(View(nothing, no_mask) for _ in description["views"]),
        subject=description["subject"],
    )


def usable_positions(shards: Shards, tasks: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """For each task, for each shard, the positions of the records that the task can use; reads no pictures.

    Raises:
        UserError: a task can use none.
    """
    usable: dict[str, list[np.ndarray]] = {task: [] for task in tasks}
    for shard, count in enumerate(shards.counts):
        outlines = [outline(shards.description(shard, position)) for position in range(count)]
        for task in tasks:
            fits = [position for position, record in enumerate(outlines) if REQUIRES[task](record)]
            usable[task].append(np.array(fits, dtype=np.int64))
    for task, positions in usable.items():
        if not any(len(fits) for fits in positions):
            raise UserError(
                f"no record in the split {shards.split!r} can be used for the task {task!r}, which needs "
                f"{REQUIREMENTS[task]}: take the task out of the mixture or use other data"
            )
    if "recover" in tasks and sum(shards.counts) < 2:
        raise UserError(
            f"the split {shards.split!r} has one record, but recover needs a second to paste on: add records"
        )
    return usable


class ExampleMaker:
    """Makes the example of any sample and task; every random choice follows from (seed, epoch, key, task) alone.

    Args:
        shards: the opened split.
        seed: of the run.
        image_size, image_only, recover_min_scale, recover_distort: see `tasks.TaskContext`.
        recover_distractors: False lets recovery paste on pictures without labelled objects only.
    """

    def __init__(
        self,
        shards: Shards,
        seed: int,
        image_size: int,
        image_only: float = 0.1,
        recover_min_scale: float = 0.2,
        recover_distort: float = 0.5,
        recover_distractors: bool = True,
    ) -> None:
        self._shards, self._seed, self._image_size = shards, seed, image_size
        self._image_only = image_only
        self._recover_min_scale, self._recover_distort = recover_min_scale, recover_distort
        self._recover_distractors = recover_distractors
        self._without_objects: dict[int, list[int]] = {}

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
        """Another picture of the same shard, so that ranks stay apart, if possible without the record's objects.

        A shard that has no other picture to paste on borrows one from the next shard that does.
        """
        names = {thing.name for thing in record.objects}
        shard, others = self._others(sample.shard, sample.position)
        other = record
        for _ in range(REDRAWS):
            other = self._shards.record(shard, rng.choice(others))
            if not names & {thing.name for thing in other.objects}:
                break
        return other.image

    def _others(self, own: int, position: int) -> tuple[int, Sequence[int]]:
        shards = len(self._shards.counts)
        for shard in [*range(own, shards), *range(own)]:
            others = self._pasteable(shard)
            if shard == own:
                others = [other for other in others if other != position]
            if others:
                return shard, others
        raise UserError(
            f"the split {self._shards.split!r} has no picture to paste on but the record's own: add records"
            + ("" if self._recover_distractors else " without objects or set recover_distractors=true")
        )

    def _pasteable(self, shard: int) -> Sequence[int]:
        everything = range(self._shards.counts[shard])
        if self._recover_distractors:
            return everything
        if shard not in self._without_objects:
            self._without_objects[shard] = [
                position for position in everything if not self._shards.description(shard, position)["objects"]
            ]
        return self._without_objects[shard]
