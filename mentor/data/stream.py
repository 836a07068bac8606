"""The order of samples: pure functions of the seed and of how far training has come, whatever the number of ranks.

Training runs through *steps*, one global batch each. `Mixture` names the task of every step. Each task walks over its
own usable samples (those that `tasks.REQUIRES` admits), so no task ever passes over or uses up a sample of another, and
each usable sample comes exactly once in an epoch of its task.

For an epoch the shards are permuted by (seed, epoch) and dealt to the *lanes* in turn; a global batch takes the same
number of consecutive samples from every lane, rows ordered by lane. Rank k of w reads lanes k, k + w, ...: the
deal of an epoch is the same for all tasks, so ranks read disjoint shards in it, and one process sees the batches that
two see together. A lane that is through with its shards goes on with its share of the next epoch at once. Within a lane
the shards come in groups of `GROUP`, permuted by (seed, epoch, task), and the samples of a group are permuted together.

Where a task stands after any number of steps follows from counting, without reading a picture: resuming is a lookup.
"""

import hashlib
import random
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mentor.errors import UserError

GROUP = 8


@dataclass(frozen=True)
class Sample:
    """One visit to one record: which, and in which epoch of its task."""

    epoch: int
    shard: int
    position: int


def seed_from(*parts: object) -> int:
    """A 64-bit seed from names and numbers, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def sample_rng(seed: int, epoch: int, key: str, task: str) -> random.Random:
    """The one source of chance for a sample: what is drawn for it depends on these four alone."""
    return random.Random(seed_from("sample", seed, epoch, key, task))


def permutation(length: int, *parts: object) -> np.ndarray:
    """A permutation of `length` numbers, seeded by the parts."""
    seed = seed_from(*parts)
    # NumPy guarantees this legacy generator's output for good; the newer ones may change between releases.
    return np.random.RandomState([seed >> 32, seed & 0xFFFFFFFF]).permutation(length)


class Mixture:
    """The task of every step, each task as often as its weight says.

    Tijdeman's rule for sharing one machine among several: after any number of steps no task is a whole step
    away from its share, so proportions are exact over long windows and no task clumps. The seed chooses where in the
    sequence training starts. The first `warmup` steps are all of `warmup_task`.
    """

    def __init__(self, weights: Mapping[str, float], seed: int, warmup: int = 0, warmup_task: str = "") -> None:
        total = sum(weights.values())
        names = set(weights) | ({warmup_task} if warmup else set())
        self.tasks: tuple[str, ...] = tuple(sorted(names))
        self._shares = [weights.get(task, 0.0) / total for task in self.tasks]
        self._counts = [0] * len(self.tasks)
        self._length = 0
        for _ in range(seed_from("mixture", seed) % 1009):
            self._next()
        self._warmup = (warmup, self.tasks.index(warmup_task)) if warmup else (0, 0)
        self._chosen = array("H")
        self._earlier = array("q")
        self._used = [0] * len(self.tasks)

    def at(self, step: int) -> tuple[str, int]:
        """The task of a step, and how many earlier steps had the same task."""
        while len(self._chosen) <= step:
            warmup, task = self._warmup
            chosen = task if len(self._chosen) < warmup else self._next()
            self._chosen.append(chosen)
            self._earlier.append(self._used[chosen])
            self._used[chosen] += 1
        return self.tasks[self._chosen[step]], self._earlier[step]

    def _next(self) -> int:
        self._length += 1
        active = [index for index, share in enumerate(self._shares) if share > 0]
        slack = 1 - 1 / max(2, 2 * len(active) - 2)
        # Due are the tasks whose share has run ahead of their count; the one whose deadline is nearest goes first.
        due = [i for i in active if self._shares[i] * self._length - self._counts[i] >= 1 - slack - 1e-9]
        chosen = min(due, key=lambda i: ((slack + self._counts[i]) / self._shares[i], i))
        self._counts[chosen] += 1
        return chosen


class TaskOrder:
    """One task's samples in order, lane by lane.

    Args:
        task: the task's name; it seeds the order.
        usable: for each shard the positions that the task can use.
        lanes: how many lanes the shards are dealt to.
        seed: of the run.
    """

    def __init__(self, task: str, usable: Sequence[np.ndarray], lanes: int, seed: int) -> None:
        self._task, self._usable, self._lanes, self._seed = task, usable, lanes, seed
        self._sizes = np.array([len(positions) for positions in usable], dtype=np.int64)
        if not self._sizes.sum():
            raise UserError(f"no record can be used for the task {task!r}: take it out of the mixture")
        self._starts: list[list[int]] = [[0] for _ in range(lanes)]
        self._groups: dict[tuple[int, int], list[np.ndarray]] = {}
        self._orders: dict[tuple[int, int, int], list[tuple[int, int]]] = {}

    def take(self, lane: int, start: int, count: int) -> list[Sample]:
        """The lane's samples number start, start + 1, ..., counted from the beginning of training."""
        samples: list[Sample] = []
        while len(samples) < count:
            epoch, group, offset = self._locate(lane, start + len(samples))
            rows = self._group_order(lane, epoch, group)[offset : offset + count - len(samples)]
            samples.extend(Sample(epoch, shard, position) for shard, position in rows)
        return samples

    def shards(self, lane: int, epoch: int) -> np.ndarray:
        """The shards dealt to a lane in an epoch, the same for every task."""
        return permutation(len(self._sizes), "deal", self._seed, epoch)[lane :: self._lanes]

    def _locate(self, lane: int, number: int) -> tuple[int, int, int]:
        starts = self._starts[lane]
        while starts[-1] <= number:
            epoch = len(starts) - 1
            starts.append(starts[-1] + int(self._sizes[self.shards(lane, epoch)].sum()))
        epoch = bisect_right(starts, number) - 1
        offset = number - starts[epoch]
        for group, shards in enumerate(self._lane_groups(lane, epoch)):
            size = int(self._sizes[shards].sum())
            if offset < size:
                return epoch, group, offset
            offset -= size
        raise AssertionError("the lane's epoch is as long as its groups together")

    def _lane_groups(self, lane: int, epoch: int) -> list[np.ndarray]:
        if (lane, epoch) not in self._groups:
            self._groups = {key: value for key, value in self._groups.items() if key[0] != lane}
            shards = self.shards(lane, epoch)
            shards = shards[permutation(len(shards), "shards", self._seed, epoch, self._task, lane)]
            self._groups[lane, epoch] = [shards[first : first + GROUP] for first in range(0, len(shards), GROUP)]
        return self._groups[lane, epoch]

    def _group_order(self, lane: int, epoch: int, group: int) -> list[tuple[int, int]]:
        key = (lane, epoch, group)
        if key not in self._orders:
            self._orders = {other: value for other, value in self._orders.items() if other[0] != lane}
            shards = self._lane_groups(lane, epoch)[group]
            rows = [(int(shard), int(position)) for shard in shards for position in self._usable[shard]]
            order = permutation(len(rows), "samples", self._seed, epoch, self._task, lane, group)
            self._orders[key] = [rows[index] for index in order]
        return self._orders[key]


class TrainingStream:
    """Which samples make up which global batch, and which part of it is whose.

    Args:
        usable: for each task, for each shard, the positions that the task can use.
        weights: the mixture.
        batch_size: of the global batch.
        lanes: must divide the batch size; at most one per shard.
        seed: of the run.
        warmup: number of first steps that are all of `warmup_task`.
    """

    def __init__(
        self,
        usable: Mapping[str, Sequence[np.ndarray]],
        weights: Mapping[str, float],
        batch_size: int,
        lanes: int,
        seed: int,
        warmup: int = 0,
        warmup_task: str = "",
    ) -> None:
        shards = len(next(iter(usable.values())))
        if batch_size % lanes:
            raise UserError(f"batch_size {batch_size} is not a multiple of lanes {lanes}: change one of the two")
        if shards < lanes:
            raise UserError(
                f"{shards} shard(s) cannot be dealt to {lanes} lanes: use at most {shards} lanes, "
                f"or make the shards anew with fewer samples in each"
            )
        self.mixture = Mixture(weights, seed, warmup, warmup_task)
        self.lanes = lanes
        self._per_lane = batch_size // lanes
        self._orders = {task: TaskOrder(task, usable[task], lanes, seed) for task in self.mixture.tasks}
        for task in self.mixture.tasks:
            total = sum(len(positions) for positions in usable[task])
            if total < batch_size:
                raise UserError(
                    f"the task {task!r} can use {total} sample(s), fewer than the batch size of {batch_size}: "
                    f"use a smaller batch_size or more data"
                )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[str, list[Sample]]:
        """The task of a step and the rank's share of its samples; rank 0 of 1 gets the global batch, rows by lane."""
        task, earlier = self.mixture.at(step)
        samples: list[Sample] = []
        for lane in self.lanes_of(rank, world):
            samples += self._orders[task].take(lane, earlier * self._per_lane, self._per_lane)
        return task, samples

    def lanes_of(self, rank: int, world: int) -> range:
        """The lanes a rank reads.

        Raises:
            UserError: the lanes cannot be shared evenly.
        """
        if self.lanes % world:
            raise UserError(
                f"{world} processes cannot share {self.lanes} lanes evenly: set lanes to a multiple of {world}"
            )
        return range(rank, self.lanes, world)


def validation_batches(
    usable: Mapping[str, Sequence[np.ndarray]], limit: int, batch_size: int, rank: int = 0, world: int = 1
) -> list[tuple[str, list[tuple[Sample, bool]]]]:
    """The rank's validation batches: task, and for each row the sample and whether it counts.

    For each task every usable sample comes exactly once over all ranks; beyond `limit` (0: no limit) a fixed
    random choice, the same for every run. The last batch is filled up with rows that do not count, so
    each rank has the same number of batches, all of equal length.
    """
    if batch_size % world:
        raise UserError(
            f"validation_batch_size {batch_size} cannot be shared by {world} processes: use a multiple of {world}"
        )
    share = batch_size // world
    batches = []
    for task, shards in usable.items():
        rows = [Sample(0, shard, int(position)) for shard, positions in enumerate(shards) for position in positions]
        if not rows:
            raise UserError(f"no held-out record can be used for the task {task!r}: take it out of the mixture")
        chosen = [rows[index] for index in permutation(len(rows), "validation", task)]
        chosen = chosen[:limit] if limit else chosen
        padded = [(sample, True) for sample in chosen]
        padded += [(chosen[0], False)] * (-len(chosen) % batch_size)
        for first in range(rank * share, len(padded), batch_size):
            batches.append((task, padded[first : first + share]))
    return batches
