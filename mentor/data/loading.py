"""Batches made in loader processes: unusable samples replaced and counted, every failure told on one line."""

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mentor.data.codes import CodeSet, gather, samples_of
from mentor.data.collate import PackedBatch, collate, pack, unpack
from mentor.data.examples import ExampleMaker
from mentor.data.order import Sample, TrainingOrder
from mentor.data.records import UnusableSample
from mentor.data.settings import DataConfig
from mentor.errors import UserError
from mentor.types import Batch, Example, Skipped

# Training ends by its number of steps; the loader has a length because Lightning reads a batch ahead of one without.
ENDLESS = 10**9
# So many unusable samples one after the other are no accident.
IN_A_ROW = 100
# The share of unusable samples is taken of at least so many.
LEAST_SEEN = 1000
# A loader process that is asked to end lives on for so long, since a training in progress may want a batch from it.
LAST_SECONDS = 60
# Each of the first ones is named in the log, then only those at powers of two.
NAMED = 10


class Progress(Protocol):
    """How far training has come, and who is told what was left out (`DataModule`)."""

    config: DataConfig
    max_bad: float
    consumed: int
    left_out: set[int]
    skipped: Counter[str]
    report: Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """An error that a loader process hands over instead of a batch: raised there, it would come as a traceback."""

    message: str


class Batches(Protocol):
    """What a `Dataset` of batches has besides."""

    def shards(self, step: int) -> list[str]:
        """The shards that a step's batch reads, for messages."""
        ...


class TrainingBatches(Dataset[PackedBatch | Failure]):
    """The rank's batch of any step, by the step's number.

    An unusable sample is replaced by the next usable one in the order of its task, so what a batch holds depends on
    the data and the step alone.
    """

    def __init__(self, stream: TrainingOrder, makers: Sequence[ExampleMaker], rank: int, world: int) -> None:
        self._stream, self._makers, self._rank, self._world = stream, makers, rank, world

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> PackedBatch | Failure:
        skipped: list[Skipped] = []
        try:
            task, numbers = self._stream.numbers(step, self._rank, self._world)
            samples = self._stream.at(task, numbers)
            examples = [
                self._example(task, int(number), sample, skipped)
                for number, sample in zip(numbers, samples, strict=True)
            ]
            return pack(replace(collate(examples, with_arrays=False), skipped=skipped))
        except UserError as error:
            return Failure(str(error))

    def shards(self, step: int) -> list[str]:
        """The shards that a step's batch reads, for messages."""
        _, samples = self._stream.batch(step, self._rank, self._world)
        return sorted({self._makers[sample.dataset].shard_name(sample.shard) for sample in samples})

    def _example(self, task: str, number: int, sample: Sample, skipped: list[Skipped]) -> Example:
        for further in range(1, IN_A_ROW + 1):
            try:
                return self._makers[sample.dataset].example(task, sample)
            except UnusableSample as error:
                skipped.append(Skipped(error.shard, error.key, error.reason, str(error)))
            (sample,) = self._stream.at(task, np.array([number + further]))
        raise UserError(f"{IN_A_ROW} samples in a row cannot be used, the last: {skipped[-1].message}")


class CodeBatches(Dataset[PackedBatch | Failure]):
    """What `TrainingBatches` is for pictures, for image codes."""

    def __init__(self, stream: TrainingOrder, sets: Sequence[CodeSet], rank: int, world: int) -> None:
        self._stream, self._sets, self._rank, self._world = stream, sets, rank, world

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> PackedBatch | Failure:
        try:
            task, samples = self._stream.batch_arrays(step, self._rank, self._world)
            try:
                return pack(gather(self._sets, task, samples))
            except UnusableSample:
                return pack(self._repaired(step))
        except UserError as error:
            return Failure(str(error))

    def shards(self, step: int) -> list[str]:
        """The shards that a step's batch reads, for messages."""
        _, samples = self._stream.batch(step, self._rank, self._world)
        return sorted({self._sets[sample.dataset].shard_name(sample.shard) for sample in samples})

    def _repaired(self, step: int) -> Batch:
        """The batch with the next usable samples in the places of those whose pack cannot be read."""
        task, numbers = self._stream.numbers(step, self._rank, self._world)
        skipped: list[Skipped] = []
        samples = [self._usable(task, number, skipped) for number in numbers.tolist()]
        return replace(gather(self._sets, task, samples_of(samples)), skipped=skipped)

    def _usable(self, task: str, number: int, skipped: list[Skipped]) -> Sample:
        for further in range(IN_A_ROW):
            (sample,) = self._stream.at(task, np.array([number + further]))
            try:
                self._sets[sample.dataset].pack(sample.shard)
                return sample
            except UnusableSample as error:
                skipped.append(Skipped(error.shard, error.key, error.reason, str(error)))
        raise UserError(f"{IN_A_ROW} samples in a row cannot be used, the last: {skipped[-1].message}")


@dataclass(frozen=True)
class Numbers:
    """Numbers from `first` on but for some, without end; each iteration begins anew."""

    first: int
    left_out: frozenset[int]

    def __iter__(self) -> Iterator[int]:
        return (number for number in range(self.first, ENDLESS) if number not in self.left_out)

    def __len__(self) -> int:
        return ENDLESS


class TrainingLoader:
    """Iterates over the batches that training has not had yet, and counts those handed out in the data module.

    Not a DataLoader itself: Lightning would put a distributed sampler into one.
    """

    def __init__(self, progress: Progress, batches: Batches) -> None:
        self._progress, self._batches = progress, batches
        # Since this start: an earlier one may have left out many among far more.
        self._seen = self._bad = 0

    def __len__(self) -> int:
        return ENDLESS

    def open(self) -> DataLoader[PackedBatch | Failure]:
        """The loader, at the first batch that has not been consumed."""
        workers = self._progress.config.workers
        return DataLoader(
            cast(Dataset[PackedBatch | Failure], self._batches),
            batch_size=None,
            sampler=self.numbers(),  # type: ignore[arg-type]  # it only asks for an iterator
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=prepare_worker,
            # A generator of its own: the loader draws a seed, and the global one must not notice.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:
        progress = self._progress
        with _child_signals_left_alone():
            batches = iter(self.open())
        for number in self.numbers():
            packed = self._next(batches)
            if isinstance(packed, Failure):
                raise UserError(packed.message)
            batch = unpack(packed)
            self._count(batch)
            progress.consumed = number + 1
            yield batch

    def numbers(self) -> "Numbers":
        """Which global batches come: from the first that has not been consumed on, but for those left out."""
        return Numbers(self._progress.consumed, frozenset(self._progress.left_out))

    # Lightning warns at every resume of a loader without these two; the state itself is the data module's.
    def state_dict(self) -> dict[str, object]:
        """Nothing: see `DataModule.state_dict`."""
        return {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Does nothing: see `DataModule.load_state_dict`."""

    def _next(self, batches: Iterator[PackedBatch | Failure]) -> PackedBatch | Failure:
        try:
            return next(batches)
        except StopIteration:
            raise UserError(
                f"the data end before training does, at batch {self._progress.consumed}: add data or lower "
                "trainer.max_steps; the same command then goes on"
            ) from None
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A process that dies while it hands over a batch shows as a broken connection.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            step = self._progress.consumed
            shards = ", ".join(self._batches.shards(step)[:5])
            raise UserError(
                f"a loader process died while it made the batch of step {step} or one soon after ({shards}): if memory "
                "ran out, use fewer data.workers or a smaller data.batch_size; the same command goes on"
            ) from None

    def _count(self, batch: Batch) -> None:
        """Report what the batch had to leave out; stop the run when it is too much."""
        progress = self._progress
        self._seen += len(batch.keys)
        for skipped in batch.skipped:
            if not progress.max_bad:
                raise UserError(f"{skipped.message}; to leave such samples out, set data.max_bad=0.01, say")
            progress.skipped[skipped.reason] += 1
            self._bad += 1
            total = progress.skipped.total()
            if total <= NAMED or total & (total - 1) == 0:
                sample = f"sample {skipped.key} of {skipped.shard}" if skipped.key else skipped.shard
                progress.report(f"left out ({total} so far): {sample}: {skipped.reason}")
            if self._bad > progress.max_bad * max(self._seen, LEAST_SEEN):
                counted = ", ".join(f"{count} {reason}" for reason, count in progress.skipped.most_common())
                raise UserError(
                    f"{self._bad} of {self._seen} samples could not be used (in all: {counted}), more than "
                    f"max_bad={progress.max_bad:g} allows: see `python tools/make_shards.py verify`"
                )


Rows = Sequence[tuple[Sample, bool]]
Made = TypeVar("Made")


class ValidationLoader:
    """The rank's validation batches; every iteration gives the same.

    An unusable sample becomes a row that does not count, and is reported.
    """

    def __init__(self, makers: Sequence[ExampleMaker], rows: Sequence[tuple[str, Rows]], progress: Progress) -> None:
        self._makers, self._rows, self._progress = makers, rows, progress
        self._reported: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        for task, rows in self._rows:
            yield self._batch(task, rows)

    def _batch(self, task: str, rows: Rows) -> Batch:
        made = [self._attempt(partial(self._makers[sample.dataset].example, task, sample)) for sample, _ in rows]
        return collate(*self._filled(task, made, rows))

    def _attempt(self, make: Callable[[], Made]) -> Made | None:
        """What is made; None, and a report, if the sample cannot be used."""
        try:
            return make()
        except UnusableSample as error:
            if not self._progress.max_bad:
                raise UserError(f"{error}; to leave such samples out, set data.max_bad=0.01, say") from None
            if (error.shard, error.key) not in self._reported:
                self._reported.add((error.shard, error.key))
                self._progress.report(f"left out of validation: sample {error.key} of {error.shard}: {error.reason}")
            return None

    def _filled(self, task: str, made: Sequence[Made | None], rows: Rows) -> tuple[list[Made], list[bool]]:
        """What was made, with another thing in each gap, and which of all that counts."""
        usable = next((one for one in made if one is not None), None)
        if usable is None:
            raise UserError(f"no sample of a whole validation batch of the task {task!r} can be used")
        filled = [usable if one is None else one for one in made]
        return filled, [counts and one is not None for one, (_, counts) in zip(made, rows, strict=True)]


class CodeValidationLoader(ValidationLoader):
    """What `ValidationLoader` is for pictures, for image codes."""

    def __init__(self, sets: Sequence[CodeSet], rows: Sequence[tuple[str, Rows]], progress: Progress) -> None:
        super().__init__((), rows, progress)
        self._sets = sets

    def _batch(self, task: str, rows: Rows) -> Batch:
        packs = [self._attempt(partial(self._sets[sample.dataset].pack, sample.shard)) for sample, _ in rows]
        made = [None if pack is None else sample for pack, (sample, _) in zip(packs, rows, strict=True)]
        samples, valid = self._filled(task, made, rows)
        return gather(self._sets, task, samples_of(samples), valid)


@contextlib.contextmanager
def _child_signals_left_alone() -> Iterator[None]:
    """Take out the handler that torch installs with the first loader processes.

    It raises wherever the main thread happens to be when a process dies, in the middle of a training step or of writing
    a file. Without it, the loader itself notices within five seconds of waiting.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def prepare_worker(worker: int) -> None:
    """Make a loader process frugal with threads, and leave the answer to signals to training."""
    torch.set_num_threads(1)
    # Training has them written down too, and would take this process's for its own.
    signal.set_wakeup_fd(-1)
    # Ctrl-C and a scheduler's signals go to the whole process group; training decides when to stop, and the loader ends
    # with it. SIGTERM ends a process that nobody ends otherwise, but later than it takes to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(LAST_SECONDS))
