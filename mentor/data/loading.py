"""Batches made in loader processes: unusable samples replaced and counted, every failure told on one line."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mentor.data.collate import PackedBatch, collate, pack, unpack
from mentor.data.examples import ExampleMaker
from mentor.data.records import UnusableSample
from mentor.data.settings import DataConfig
from mentor.data.stream import Sample, TrainingStream
from mentor.errors import UserError
from mentor.types import Batch, Example, Skipped

# Training ends by its number of steps; the loader has a length because Lightning reads a batch ahead of one without.
ENDLESS = 10**9
# So many unusable samples one after the other are no accident.
IN_A_ROW = 100
# The share of unusable samples is taken of at least so many.
LEAST_SEEN = 1000
# Each of the first ones is named in the log, then only those at powers of two.
NAMED = 10


class Progress(Protocol):
    """How far training has come, and who is told what was left out (`DataModule`)."""

    config: DataConfig
    consumed: int
    skipped: Counter[str]
    report: Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """An error that a loader process hands over instead of a batch: raised there, it would come as a traceback."""

    message: str


class TrainingBatches(Dataset[PackedBatch | Failure]):
    """The rank's batch of any step, by the step's number.

    An unusable sample is replaced by the next usable one in the order of its task, so what a batch holds depends on
    the data and the step alone.
    """

    def __init__(self, stream: TrainingStream, makers: Sequence[ExampleMaker], rank: int, world: int) -> None:
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


class TrainingLoader:
    """Iterates over the batches that training has not had yet, and counts those handed out in the data module.

    Not a DataLoader itself: Lightning would put a distributed sampler into one.
    """

    def __init__(self, progress: Progress, batches: TrainingBatches) -> None:
        self._progress, self._batches = progress, batches
        self._seen = 0

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        progress = self._progress
        workers = progress.config.workers
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=range(progress.consumed, ENDLESS),
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_prepare_worker,
            # A generator of its own: the loader draws a seed, and the global one must not notice.
            generator=torch.Generator(),
        )
        batches = iter(loader)
        while True:
            packed = self._next(batches)
            if isinstance(packed, Failure):
                raise UserError(packed.message)
            batch = unpack(packed)
            self._count(batch)
            progress.consumed += 1
            yield batch

    # Lightning warns at every resume of a loader without these two; the state itself is the data module's.
    def state_dict(self) -> dict[str, object]:
        """Nothing: see `DataModule.state_dict`."""
        return {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Does nothing: see `DataModule.load_state_dict`."""

    def _next(self, batches: Iterator[PackedBatch | Failure]) -> PackedBatch | Failure:
        try:
            return next(batches)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
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
            if not progress.config.max_bad:
                raise UserError(f"{skipped.message}; to leave such samples out, set data.max_bad=0.01, say")
            progress.skipped[skipped.reason] += 1
            total = progress.skipped.total()
            if total <= NAMED or total & (total - 1) == 0:
                progress.report(f"left out ({total} so far): sample {skipped.key} of {skipped.shard}: {skipped.reason}")
            if total > progress.config.max_bad * max(self._seen, LEAST_SEEN):
                counted = ", ".join(f"{count} {reason}" for reason, count in progress.skipped.most_common())
                raise UserError(
                    f"{total} of {self._seen} samples could not be used ({counted}), more than "
                    f"data.max_bad={progress.config.max_bad:g} allows: see `python tools/make_shards.py verify`"
                )


class ValidationLoader:
    """The rank's validation batches; every iteration gives the same.

    An unusable sample becomes a row that does not count, and is reported.
    """

    def __init__(
        self,
        makers: Sequence[ExampleMaker],
        rows: Sequence[tuple[str, Sequence[tuple[Sample, bool]]]],
        progress: Progress,
    ) -> None:
        self._makers, self._rows, self._progress = makers, rows, progress
        self._reported: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        for task, samples in self._rows:
            made = [(self._example(task, sample), valid) for sample, valid in samples]
            usable = next((example for example, _ in made if example is not None), None)
            if usable is None:
                raise UserError(f"no sample of a whole validation batch of the task {task!r} can be used")
            examples = [example or usable for example, _ in made]
            yield collate(examples, valid=[valid and example is not None for example, valid in made])

    def _example(self, task: str, sample: Sample) -> Example | None:
        try:
            return self._makers[sample.dataset].example(task, sample)
        except UnusableSample as error:
            if not self._progress.config.max_bad:
                raise UserError(f"{error}; to leave such samples out, set data.max_bad=0.01, say") from None
            if (error.shard, error.key) not in self._reported:
                self._reported.add((error.shard, error.key))
                self._progress.report(f"left out of validation: sample {error.key} of {error.shard}: {error.reason}")
            return None


def _prepare_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C goes to the whole process group; training decides when to stop, and the loader ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
