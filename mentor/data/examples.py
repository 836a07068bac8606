"""From a sample to an example: which samples a task can use, and how one becomes an example."""

import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mentor.data.order import Sample, Usable
from mentor.data.records import Contents, Record, UnusableSample
from mentor.data.seeds import sample_rng
from mentor.data.tasks import REQUIREMENTS, REQUIRES, TASKS, TaskContext, UnfitRecord
from mentor.errors import UserError
from mentor.types import Example

# How often recovery's background is drawn again when the picture shows the very thing that is to be pasted on it.
REDRAWS = 16


class Shards(Protocol):
    """What is needed of an opened split (`shards.ShardSet`)."""

    split: str
    counts: tuple[int, ...]

    @property
    def contents(self) -> Contents:
        """What every record holds."""
        ...

    def record(self, shard: int, position: int) -> Record:
        """A record with its pictures."""
        ...

    def shard_name(self, shard: int) -> str:
        """What messages call a shard."""
        ...


def usable_samples(shards: Shards, task: str) -> Usable | None:
    """The samples of a split that the task can use, told from the index alone; None if there are none."""
    contents = shards.contents
    fits = REQUIRES[task](contents) & contents.meant_for(task)
    first = np.concatenate(([0], np.cumsum(shards.counts)))
    running = np.concatenate(([0], np.cumsum(fits)))
    sizes = running[first[1:]] - running[first[:-1]]
    if not sizes.any():
        return None
    return Usable(sizes, lambda shard: np.flatnonzero(fits[first[shard] : first[shard + 1]]))


def usable_positions(shards: Shards, tasks: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """For each task, for each shard, the positions of the records that the task can use; reads no pictures.

    Raises:
        UserError: a task can use none.
    """
    found: dict[str, list[np.ndarray]] = {}
    for task in tasks:
        usable = usable_samples(shards, task)
        if usable is None:
            raise no_usable_record([shards.split], task)
        found[task] = [usable.positions(shard) for shard in range(len(shards.counts))]
    return found


def no_usable_record(splits: Sequence[str], task: str) -> UserError:
    """The refusal of a task that no record serves."""
    return UserError(
        f"no record in the split {splits[0]!r} can be used for the task {task!r}, which needs {REQUIREMENTS[task]}: "
        f"take it out of the mixture with data.mixture.{task}=0, or use other data"
    )


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
        self._first = np.concatenate(([0], np.cumsum(shards.counts)))

    def example(self, task: str, sample: Sample) -> Example:
        """The sample as an example of the task.

        Raises:
            UnusableSample: nothing of the object that the task needs is to be seen, or a caption holds a mark.
            UserError: the sample, or one that it needs, is damaged.
        """
        record = self._shards.record(sample.shard, sample.position)
        context = TaskContext(
            image_size=self._image_size,
            other_image=lambda rng: self._other_image(sample, record, rng),
            image_only=self._image_only,
            recover_min_scale=self._recover_min_scale,
            recover_distort=self._recover_distort,
        )
        try:
            return TASKS[task](record, context, sample_rng(self._seed, sample.epoch, record.key, task))
        except UnfitRecord as error:
            shard = self._shards.shard_name(sample.shard)
            raise UnusableSample(f"shard {shard}: {error}", shard, record.key, error.reason) from None

    def shard_name(self, shard: int) -> str:
        """What messages call a shard."""
        return self._shards.shard_name(shard)

    def _other_image(self, sample: Sample, record: Record, rng: random.Random) -> np.ndarray:
        """Another picture of the same shard, so that reads stay together, if possible without the record's objects.

        A shard that has no other picture to paste on borrows one from the next shard that does.
        """
        names = {thing.name for thing in record.objects}
        shard, others = self._others(sample.shard, sample.position)
        other = record
        for _ in range(REDRAWS):
            other = self._shards.record(shard, int(rng.choice(others)))
            if not names & {thing.name for thing in other.objects}:
                break
        return other.image

    def _others(self, own: int, position: int) -> tuple[int, Sequence[int]]:
        shards = len(self._shards.counts)
        for shard in [*range(own, shards), *range(own)]:
            others = self._pasteable(shard)
            if shard == own:
                others = others[others != position]
            if len(others):
                return shard, others.tolist()
        raise UserError(
            f"the split {self._shards.split!r} has no picture to paste on but the record's own: add records"
            + ("" if self._recover_distractors else " without objects or set recover_distractors=true")
        )

    def _pasteable(self, shard: int) -> np.ndarray:
        if self._recover_distractors:
            return np.arange(self._shards.counts[shard])
        objects = self._shards.contents.objects[self._first[shard] : self._first[shard + 1]]
        return np.flatnonzero(objects == 0)
