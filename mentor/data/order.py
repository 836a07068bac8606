"""The order of samples: pure functions of the seed and of how far training has come; it knows nothing of ranks.

Training runs through *steps*, one global batch each. `Mixture` names the task of every step. The samples of a task are
*numbered* from the beginning of training; step s, the task's step number k, has the numbers k * batch size and on.
Where a task draws on several data sets, a `Pattern` says which of them serves a number. Both patterns repeat every
`PERIOD` places, so each window of that length holds exactly the shares that were asked for, wherever it begins.

Within one data set a task walks over its own usable samples (`TaskOrder`), each exactly once in an epoch. For an epoch
the shards are permuted by (seed, epoch), the same for all tasks, and laid end to end; the row of their samples is cut
into *lanes*, stretches of equal length, that are read in turn, one sample from each. Within a lane the shards come in
groups of up to `GROUP`, whose samples are permuted together: reads stay in few shards, batches come from many.

Rank r of w takes the rows r, r + w, ... of the global batch. Where w divides the lanes, and there is one data set, each
rank thus reads lanes of its own for an epoch. Which sample has which number follows from counting and from arrays as
long as there are shards, without touching other samples: resuming is a lookup.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from mentor.data.mixture import PERIOD, Mixture, Pattern
from mentor.data.seeds import permutation, seed_from
from mentor.data.seeds import sample_rng as sample_rng
from mentor.errors import UserError

GROUP = 8

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Sample:
    """One visit to one record: which, in which epoch of its task, and of which data set."""

    epoch: int
    shard: int
    position: int
    dataset: int = 0


class Samples(NamedTuple):
    """Many samples, an array for each field of `Sample`."""

    epoch: np.ndarray
    shard: np.ndarray
    position: np.ndarray
    dataset: np.ndarray

    def each(self) -> list[Sample]:
        """The samples one by one."""
        return [Sample(*fields) for fields in zip(*(field.tolist() for field in self), strict=True)]


@dataclass(frozen=True, eq=False)
class Usable:
    """The samples of one data set that a task can use.

    Attributes:
        sizes: for each shard, how many.
        positions: their positions in a shard; asked for only when the order comes to that shard.
    """

    sizes: np.ndarray
    positions: Callable[[int], np.ndarray]

    @classmethod
    def listed(cls, positions: Sequence[np.ndarray]) -> "Usable":
        """From the positions in each shard, where they are at hand anyway."""
        return cls(np.array([len(rows) for rows in positions], dtype=np.int64), positions.__getitem__)


class _Recent(Generic[Key, Value]):
    """What was made last, up to a number of things; the one unused for longest is forgotten first."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = self._kept[key] = make()
        if len(self._kept) > self._room:
            self._kept.popitem(last=False)
        return value


@dataclass(frozen=True, eq=False)
class _Plan:
    """An epoch of one task in one data set, as places in the row of its samples laid end to end.

    Attributes:
        shards: those with usable samples, in the order of the epoch.
        ends: where each of them ends.
        starts: where each group begins, and at last where the row ends. No group reaches over two lanes.
    """

    shards: np.ndarray
    ends: np.ndarray
    starts: np.ndarray


class TaskOrder:
    """One task's samples of one data set in order: the numbers e * size to (e + 1) * size visit each exactly once.

    Args:
        task: the task's name.
        usable: its samples.
        lanes: into how many stretches an epoch is cut; never more than there are shards with usable samples.
        seed: of the run.
        dataset: which data set this is.
    """

    def __init__(self, task: str, usable: Usable, lanes: int, seed: int, dataset: int = 0) -> None:
        self._task, self._seed, self._dataset = task, seed, dataset
        self._sizes, self._positions = np.asarray(usable.sizes, dtype=np.int64), usable.positions
        self.size = int(self._sizes.sum())
        self.lanes = min(lanes, int(np.count_nonzero(self._sizes)))
        if not self.size:
            raise UserError(f"no record can be used for the task {task!r}: take it out of the mixture")
        lane = np.arange(self.lanes + 1)
        # Number p of an epoch belongs to lane p % lanes, so the first lanes are one longer where lanes do not divide.
        self._lane_starts = lane * (self.size // self.lanes) + np.minimum(lane, self.size % self.lanes)
        self._plans = _Recent[int, _Plan](2)
        # A lane stands in one group, or in two while a batch passes from one to the next.
        self._tables = _Recent[tuple[int, int], np.ndarray](2 * self.lanes + 2)

    def take(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Epoch, shard and position of each number, counted from the beginning of training."""
        epochs, within = np.divmod(np.asarray(numbers, dtype=np.int64), self.size)
        places = self._lane_starts[within % self.lanes] + within // self.lanes
        found = np.empty((2, len(places)), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            plan = self._plan(epoch)
            rows = np.flatnonzero(epochs == epoch)
            groups = np.searchsorted(plan.starts, places[rows], side="right") - 1
            by_group = np.argsort(groups, kind="stable")
            rows, groups = rows[by_group], groups[by_group]
            firsts = np.flatnonzero(np.diff(groups, prepend=-1)).tolist()
            for first, end in zip(firsts, [*firsts[1:], len(rows)], strict=True):
                part, group = rows[first:end], int(groups[first])
                found[:, part] = self._table(epoch, group)[:, places[part] - plan.starts[group]]
        return epochs, found[0], found[1]

    def _plan(self, epoch: int) -> _Plan:
        return self._plans.get(epoch, lambda: self._make_plan(epoch))

    def _make_plan(self, epoch: int) -> _Plan:
        # Seeded without the task: tasks walk over the same shards at about the same time.
        shards = permutation(len(self._sizes), "shards", self._seed, epoch, self._dataset)
        shards = shards[self._sizes[shards] > 0]
        ends = np.cumsum(self._sizes[shards])
        starts = []
        for start, end in zip(self._lane_starts[:-1], self._lane_starts[1:], strict=True):
            first, last = np.searchsorted(ends, [start, end - 1], side="right")
            count = last + 1 - first
            groups = -(-count // GROUP)
            # As even as can be, so that no lane ends with a group of a single shard.
            heads = first + np.arange(groups) * count // groups
            starts.append(np.maximum(start, ends[heads] - self._sizes[shards[heads]]))
        return _Plan(shards, ends, np.concatenate([*starts, [self.size]]))

    def _table(self, epoch: int, group: int) -> np.ndarray:
        """Shard and position of a group's samples, in order."""
        return self._tables.get((epoch, group), lambda: self._make_table(epoch, group))

    def _make_table(self, epoch: int, group: int) -> np.ndarray:
        plan = self._plan(epoch)
        start, end = plan.starts[group : group + 2].tolist()
        first, last = np.searchsorted(plan.ends, [start, end - 1], side="right")
        pieces = []
        for shard, shard_end in zip(
            plan.shards[first : last + 1].tolist(), plan.ends[first : last + 1].tolist(), strict=True
        ):
            size = int(self._sizes[shard])
            offset = shard_end - size
            piece = self._rows(epoch, shard, max(start - offset, 0), min(end - offset, size))
            pieces.append(np.stack([np.full(len(piece), shard, dtype=np.int32), piece.astype(np.int32)]))
        table = np.concatenate(pieces, axis=1)
        return table[:, self._permutation("samples", epoch, group, length=end - start)]

    def _rows(self, epoch: int, shard: int, start: int, end: int) -> np.ndarray:
        """The positions in a shard from one place to another; of a shard that lanes share, each gets random ones."""
        positions, size = np.asarray(self._positions(shard)), int(self._sizes[shard])
        if len(positions) != size:
            raise ValueError(
                f"shard {shard} has {len(positions)} positions for the task {self._task!r}, where {size} were announced"
            )
        if end - start < size:
            return positions[self._permutation("rows", epoch, shard, length=size)[start:end]]
        return positions

    def _permutation(self, *parts: object, length: int) -> np.ndarray:
        return permutation(length, *parts, self._seed, self._dataset, self._task)


class _Task:
    """A task's samples over all data sets that can serve it."""

    def __init__(
        self, task: str, usable: Sequence[Usable | None], weights: Sequence[float], lanes: int, seed: int
    ) -> None:
        serving = {i: one for i, one in enumerate(usable) if one is not None and np.any(one.sizes)}
        if not serving:
            raise UserError(f"no record can be used for the task {task!r}: take it out of the mixture")
        named = {f"data set {i} for the task {task!r}": weights[i] for i in serving}
        self._pattern = Pattern(named, seed_from("data sets", seed, task) % PERIOD)
        self._orders = {i: TaskOrder(task, one, lanes, seed, i) for i, one in serving.items()}
        self.size = sum(order.size for order in self._orders.values())

    def take(self, numbers: np.ndarray) -> Samples:
        """The samples of these numbers, counted from the beginning of training."""
        choices, earlier = self._pattern.which(numbers), self._pattern.before(numbers)
        found = Samples(*(np.empty(len(numbers), dtype=np.int64) for _ in Samples._fields))
        for choice, (dataset, order) in enumerate(self._orders.items()):
            rows = np.flatnonzero(choices == choice)
            if len(rows):
                found.epoch[rows], found.shard[rows], found.position[rows] = order.take(earlier[rows])
                found.dataset[rows] = dataset
        return found


class TrainingOrder:
    """Which samples make up which global batch, and which part of it is whose.

    Args:
        usable: for each task, for each data set, the samples that the task can use; None for a data set that cannot
            serve the task.
        weights: the mixture of tasks.
        batch_size: of the global batch.
        lanes: from how many places an epoch is read at once; a multiple of the number of ranks keeps these to shards
            of their own.
        seed: of the run.
        warmup: number of first steps that are all of `warmup_task`.
        warmup_task: see there.
        datasets: the weight of each data set; a task divides its samples among those that can serve it.

    Raises:
        UserError: a weight is too small, or a task has too few samples.
    """

    def __init__(
        self,
        usable: Mapping[str, Sequence[Usable | None]],
        weights: Mapping[str, float],
        batch_size: int,
        lanes: int,
        seed: int,
        warmup: int = 0,
        warmup_task: str = "",
        datasets: Sequence[float] = (1.0,),
    ) -> None:
        self.mixture = Mixture(weights, seed, warmup, warmup_task)
        self._batch_size = batch_size
        self._tasks: dict[str, _Task] = {}
        for task in self.mixture.tasks:
            if len(usable[task]) != len(datasets):
                raise ValueError(
                    f"{len(usable[task])} data set(s) for the task {task!r}, but {len(datasets)} weight(s)"
                )
            self._tasks[task] = _Task(task, usable[task], datasets, lanes, seed)
            total = self._tasks[task].size
            if total < batch_size:
                raise UserError(
                    f"the task {task!r} can use {total} sample(s), fewer than the batch size of {batch_size}: "
                    f"use a smaller batch_size or more data"
                )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[str, list[Sample]]:
        """The task of a step and the rank's share of its samples; rank 0 of 1 gets the global batch."""
        task, samples = self.batch_arrays(step, rank, world)
        return task, samples.each()

    def batch_arrays(self, step: int, rank: int = 0, world: int = 1) -> tuple[str, Samples]:
        """What `batch` gives, as arrays."""
        task, numbers = self.numbers(step, rank, world)
        return task, self._tasks[task].take(numbers)

    def numbers(self, step: int, rank: int = 0, world: int = 1) -> tuple[str, np.ndarray]:
        """The task of a step, and the rank's samples as numbers counted over the task from the beginning of training.

        Raises:
            UserError: the batch cannot be shared evenly.
        """
        check_share("batch_size", self._batch_size, world)
        task, earlier = self.mixture.at(step)
        return task, np.arange(earlier * self._batch_size + rank, (earlier + 1) * self._batch_size, world)

    def epochs(self, step: int) -> tuple[str, float]:
        """The task of a step, and how often the task's samples have been seen after it, on average."""
        task, earlier = self.mixture.at(step)
        return task, (earlier + 1) * self._batch_size / self._tasks[task].size

    def at(self, task: str, numbers: np.ndarray) -> list[Sample]:
        """A task's samples by their numbers, in whatever order and however far out."""
        return self._tasks[task].take(np.asarray(numbers, dtype=np.int64)).each()


def check_share(name: str, size: int, world: int) -> None:
    """Nothing, where as many processes can share a batch of this size evenly.

    Raises:
        UserError: they cannot.
    """
    if size % world:
        raise UserError(
            f"{name} {size} cannot be shared by {world} processes: "
            f"use a multiple of {world} or another number of processes"
        )


def validation_batches(
    usable: Mapping[str, Sequence[Usable | None]], limit: int, batch_size: int, rank: int = 0, world: int = 1
) -> list[tuple[str, list[tuple[Sample, bool]]]]:
    """The rank's validation batches: task, and for each row the sample and whether it counts.

    For each task every usable sample of every data set comes exactly once over all ranks; beyond `limit` (0: no
    limit) a fixed random choice, the same for every run. The last batch is filled up with rows that do not count, so
    each rank has the same number of batches, all of equal length.
    """
    check_share("validation_batch_size", batch_size, world)
    share = batch_size // world
    batches = []
    for task, datasets in usable.items():
        chosen = _validation_choice(task, datasets, limit)
        padded = [(sample, True) for sample in chosen]
        padded += [(chosen[0], False)] * (-len(chosen) % batch_size)
        for first in range(rank * share, len(padded), batch_size):
            batches.append((task, padded[first : first + share]))
    return batches


def _validation_choice(task: str, datasets: Sequence[Usable | None], limit: int) -> list[Sample]:
    serving = [(dataset, usable) for dataset, usable in enumerate(datasets) if usable is not None]
    ends = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *(usable.sizes for _, usable in serving)]))
    shards = [(dataset, usable, shard) for dataset, usable in serving for shard in range(len(usable.sizes))]
    if not ends[-1]:
        raise UserError(f"no held-out record can be used for the task {task!r}: take it out of the mixture")
    rows = permutation(int(ends[-1]), "validation", task)
    rows = rows[:limit] if limit else rows
    places = np.searchsorted(ends, rows, side="right") - 1
    chosen = []
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        dataset, usable, shard = shards[place]
        chosen.append(Sample(0, shard, int(usable.positions(shard)[row - ends[place]]), dataset))
    return chosen
