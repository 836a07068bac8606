"""Training from a stream of unknown tars: the same batches as from a data set, with weaker promises (`streaming`)."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mentor.data.collate import PackedBatch, collate, pack
from mentor.data.datamodule import VALIDATION_SEED, DataModule
from mentor.data.loading import Failure, TrainingLoader, prepare_worker
from mentor.data.mixture import Mixture
from mentor.data.order import check_share
from mentor.data.records import Dropped, Record
from mentor.data.resuming import ResumableData
from mentor.data.seeds import sample_rng
from mentor.data.settings import DataConfig
from mentor.data.streaming import TarStream
from mentor.data.tasks import TASKS, TaskContext, UnfitRecord
from mentor.errors import UserError
from mentor.types import Batch, Example, Skipped

# What can be asked of a picture and its caption alone.
STREAMABLE = ("reconstruct", "text_to_image")


class StreamModule(ResumableData):
    """Training and validation batches from tars that nobody has indexed.

    The state is the number of global batches handed out. A resumed run begins a new pass over the tars, in an order of
    its own: what the pass in progress had not come to yet is missed by it.

    Args:
        config: the settings, with `stream`.
        seed: of the run.
        report: takes a line for people whenever something was left out.

    Raises:
        UserError: a task that needs more than pictures and captions, no tars, or nothing held out.
    """

    codes = None

    def __init__(self, config: DataConfig, seed: int, report: Callable[[str], None] = lambda line: None) -> None:
        assert config.stream is not None
        super().__init__(config, seed, config.stream.max_bad, report)
        for task in config.tasks:
            if task not in STREAMABLE:
                raise UserError(
                    f"the task {task!r} needs more than a stream of pictures and captions has: take it out of the "
                    f"mixture ({', '.join(STREAMABLE)} can stay), or make shards with tools/make_shards.py"
                )
        self._stream = TarStream(config.stream, seed)
        self._mixture = Mixture(config.mixture, seed, config.warmup_steps, config.warmup_task)
        self._heldout, bad = self._stream.heldout(config.validation_limit or config.validation_batch_size)
        for dropped in bad:
            report(f"left out of validation: {dropped.origin}: {dropped.reason}")
        if not self._heldout:
            raise UserError(
                f"nothing in {config.places} is held out for validation: set data.stream.heldout_share=0.01, say"
            )

    @property
    def fingerprints(self) -> list[str]:
        """Name the list of tars; what is in them is not known."""
        return [hashlib.sha256("\n".join(self._stream.shards).encode()).hexdigest()]

    @property
    def licence(self) -> str:
        """Nothing: tars in sequence say nothing of it."""
        return ""

    @property
    def summary(self) -> str:
        """What is trained on, in a few words."""
        return f"a stream of {len(self._stream.shards):,} tar(s), {self.config.places}"

    def epochs(self, number: int) -> tuple[str, float]:
        """The task of a global batch, and 0: how many samples there are is not known."""
        return self.task_of(number), 0.0

    def captions(self, limit: int) -> list[str]:
        """Up to `limit` captions of training samples, from the first tars."""
        return self._stream.captions(limit)

    def train_dataloader(self) -> "StreamLoader":
        """This rank's batches, without end."""
        rank, world = self.rank_and_world()
        check_share("batch_size", self.config.batch_size, world)
        return StreamLoader(self, StreamBatches(self, rank, world))

    def val_dataloader(self) -> "HeldoutBatches":
        """This rank's share of the held-out samples, one task after another, the same in every pass."""
        rank, world = self.rank_and_world()
        check_share("validation_batch_size", self.config.validation_batch_size, world)
        size = self.config.validation_batch_size
        batches = []
        for task in self.config.tasks:
            rows = [(record, True) for record in self._heldout]
            rows += [(self._heldout[0], False)] * (-len(rows) % size)
            for first in range(0, len(rows), size):
                mine = rows[first + rank : first + size : world]
                examples = [self.example(task, record, VALIDATION_SEED, 0) for record, _ in mine]
                batches.append(collate(examples, [valid for _, valid in mine]))
        return HeldoutBatches(batches)

    def example(self, task: str, record: Record, seed: int, epoch: int) -> Example:
        """The record as an example of the task."""
        context = TaskContext(self.config.image_size, lambda rng: record.image, self.config.image_only)
        return TASKS[task](record, context, sample_rng(seed, epoch, record.key, task))

    def pieces(self, step: int, rank: int, world: int, worker: int, workers: int) -> Iterator[tuple[int, Any]]:
        """The pass over the tars that begins at a step, and after it the next, without end."""
        for epoch in count(step):
            for piece in self._stream.records(epoch, rank, world, worker, workers):
                yield epoch, piece

    def task_of(self, step: int) -> str:
        """The task of a step."""
        return self._mixture.at(step)[0]

    def identity(self) -> dict[str, Any]:
        """What the order of samples follows from."""
        assert self.config.stream is not None
        kept = {"mixture", "batch_size", "image_size", "image_only", "warmup_steps", "warmup_task"}
        stream = self.config.stream.model_dump(mode="json", exclude={"urls", "max_bad"})
        settings = self.config.model_dump(mode="json", include=kept)
        return {"fingerprints": self.fingerprints, "seed": self.seed, "stream": stream, **settings}


class HeldoutBatches:
    """Batches that are in memory. Not a list: Lightning takes a list for several loaders."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


TrainingData = DataModule | StreamModule


def open_data(config: DataConfig, seed: int, report: Callable[[str], None]) -> TrainingData:
    """The data module that the settings ask for.

    Raises:
        UserError: what they name cannot be trained on.
    """
    return DataModule(config, seed, report) if config.stream is None else StreamModule(config, seed, report)


class StreamBatches(IterableDataset[PackedBatch | Failure]):
    """The rank's batches of all steps from the first that has not been consumed; worker i makes every n-th."""

    def __init__(self, module: StreamModule, rank: int, world: int) -> None:
        self._module, self._rank, self._world = module, rank, world

    def shards(self, step: int) -> list[str]:
        """What a step reads, for messages: that is not known beforehand."""
        return [self._module.summary]

    def __iter__(self) -> Iterator[PackedBatch | Failure]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        module = self._module
        first = module.consumed
        pieces = module.pieces(first, self._rank, self._world, worker, workers)
        rows = module.config.batch_size // self._world
        try:
            for step in count(first + worker, workers):
                yield self._batch(module.task_of(step), rows, pieces)
        except UserError as error:
            yield Failure(str(error))

    def _batch(self, task: str, rows: int, pieces: Iterator[tuple[int, Any]]) -> PackedBatch:
        examples: list[Example] = []
        skipped: list[Skipped] = []
        while len(examples) < rows:
            epoch, piece = next(pieces)
            if isinstance(piece, Dropped):
                message = f"{piece.origin}: {piece.reason} {piece.detail}".strip()
                skipped.append(Skipped(piece.origin, "", piece.reason, message))
                continue
            try:
                examples.append(self._module.example(task, piece, self._module.seed, epoch))
            except UnfitRecord as error:
                skipped.append(Skipped(piece.attributes["shard"], piece.key, error.reason, str(error)))
        return pack(replace(collate(examples, with_arrays=False), skipped=skipped))


class StreamLoader(TrainingLoader):
    """What `TrainingLoader` is for data sets, for a stream."""

    def __init__(self, module: StreamModule, batches: StreamBatches) -> None:
        super().__init__(module, batches)
        self._stream = batches

    def open(self) -> DataLoader[PackedBatch | Failure]:
        """The loader, at the first batch that has not been consumed."""
        workers = self._progress.config.workers
        return DataLoader(
            self._stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=prepare_worker,
            generator=torch.Generator(),
        )
