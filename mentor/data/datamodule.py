"""Lightning's view of the data: endless training batches that resume exactly, validation batches, and their checks."""

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from pydantic import Field, field_validator, model_validator
from torch.utils.data import DataLoader, Dataset

from mentor.config import Config
from mentor.data.collate import PackedBatch, collate, pack, to_device, unpack
from mentor.data.examples import ExampleMaker, usable_positions
from mentor.data.shards import ShardSet
from mentor.data.stream import Sample, TrainingStream, validation_batches
from mentor.data.tasks import TASKS
from mentor.errors import UserError
from mentor.types import Batch

# Training ends by its number of steps; the loader has a length because Lightning reads a batch ahead of one without.
ENDLESS = 10**9
# Held-out examples are the same whatever the seed of the run, so that runs can be compared.
VALIDATION_SEED = 0


class DataConfig(Config):
    """Which shards, which tasks, how many at once.

    Attributes:
        root: folder with `manifest.json`, as tools/make_shards.py writes it.
        mixture: task -> weight, above 0, in any unit.
        batch_size: examples in a step over all processes together (before accumulation).
        lanes: into how many strands an epoch's shards are dealt; a multiple of the number of processes.
        workers: loader processes per training process; 0 loads in the training process itself.
        image_size: side of references and targets in pixels.
        image_only: share of reconstruction prompts that are the bare `<image>`.
        recover_min_scale: least size of recovery's object, as a share of its size in the target.
        recover_distort: share of recovery's objects that are stretched, sheared, rotated and tilted as well.
        recover_distractors: False lets recovery paste only on pictures without labelled objects, so that nothing else
            in the reference could be meant.
        warmup_steps: this many first steps are all of `warmup_task`.
        warmup_task: see there.
        validation_batch_size: examples in a validation step over all processes together.
        validation_limit: held-out records per task at most; 0 for all.
    """

    root: str
    mixture: dict[str, float]
    batch_size: int = Field(gt=0)
    lanes: int = Field(default=2, gt=0)
    workers: int = Field(default=1, ge=0)
    image_size: int = Field(default=64, gt=0)
    image_only: float = Field(default=0.1, ge=0, le=1)
    recover_min_scale: float = Field(default=0.2, gt=0, le=1)
    recover_distort: float = Field(default=0.5, ge=0, le=1)
    recover_distractors: bool = True
    warmup_steps: int = Field(default=0, ge=0)
    warmup_task: str = "reconstruct"
    validation_batch_size: int = Field(default=32, gt=0)
    validation_limit: int = Field(default=256, ge=0)

    @field_validator("mixture")
    @classmethod
    def _known_tasks(cls, mixture: dict[str, float]) -> dict[str, float]:
        if not mixture:
            raise ValueError(f"the mixture is empty: give weights to some of {', '.join(TASKS)}")
        for task, weight in mixture.items():
            if task not in TASKS:
                raise ValueError(f"unknown task {task!r} in the mixture: known are {', '.join(TASKS)}")
            if not 0 < weight < float("inf"):
                raise ValueError(f"the weight of {task!r} is {weight:g}: give one above 0 or leave the task out")
        return mixture

    @model_validator(mode="after")
    def _known_warmup(self) -> "DataConfig":
        if self.warmup_steps and self.warmup_task not in TASKS:
            raise ValueError(f"unknown warmup_task {self.warmup_task!r}: known are {', '.join(TASKS)}")
        if self.batch_size % self.lanes:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of lanes {self.lanes}: change one of them"
            )
        return self

    @property
    def tasks(self) -> list[str]:
        """All tasks that training will meet, in the order of `TASKS`."""
        return [task for task in TASKS if task in self.mixture or (self.warmup_steps and task == self.warmup_task)]


class DataModule(lightning.LightningDataModule):
    """Training and validation batches from one data set.

    The state is the number of global batches handed out, so a resumed run goes on with the next one, on any number
    of processes. It lives here and not in the loader: Lightning gives every rank the loader state of rank 0, and
    restores a loader too late for schedulers that ask for the number of steps.

    Raises:
        UserError: shards missing or damaged, too few shards for the lanes, too few records for a task.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.consumed = 0
        self.train_shards = ShardSet(Path(config.root), "train")
        self.heldout_shards = ShardSet(Path(config.root), "heldout")
        self._usable = usable_positions(self.train_shards, config.tasks)
        self._usable_heldout = usable_positions(self.heldout_shards, config.tasks)
        self._stream = TrainingStream(
            self._usable, config.mixture, config.batch_size, config.lanes, seed, config.warmup_steps, config.warmup_task
        )
        validation_batches(self._usable_heldout, config.validation_limit, config.validation_batch_size)

    @property
    def fingerprint(self) -> str:
        """Names the shards' exact content."""
        return self.train_shards.fingerprint

    @property
    def usable(self) -> dict[str, tuple[int, int]]:
        """For each task how many training records it can use, and how many there are."""
        return {task: (sum(map(len, rows)), len(self.train_shards)) for task, rows in self._usable.items()}

    def captions(self, limit: int) -> list[str]:
        """Up to `limit` captions of training records, for training the text tokenizer."""
        return self.train_shards.captions(limit)

    def train_dataloader(self) -> "TrainingLoader":
        """This rank's batches from the first that has not been consumed, without end."""
        rank, world = self._rank_and_world()
        self._stream.lanes_of(rank, world)
        return TrainingLoader(
            self, TrainingBatches(self._stream, self._maker(self.train_shards, self.seed), rank, world)
        )

    def val_dataloader(self) -> "ValidationLoader":
        """This rank's share of the held-out records, one task after another, the same in every run."""
        rank, world = self._rank_and_world()
        config = self.config
        rows = validation_batches(
            self._usable_heldout, config.validation_limit, config.validation_batch_size, rank, world
        )
        return ValidationLoader(self._maker(self.heldout_shards, VALIDATION_SEED), rows)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The batch on the device (Lightning's hook)."""
        return to_device(batch, device)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: how far training has come, and what that number belongs to."""
        return {"consumed": self.consumed, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches that the state says were consumed.

        Raises:
            UserError: the state belongs to other data or other settings.
        """
        for name, here in self._identity().items():
            there = state_dict.get(name)
            if there != here:
                raise UserError(
                    f"cannot resume: the checkpoint was made with {name} {there!r}, this run has {here!r}: "
                    f"restore the old setting or start a run in another folder"
                )
        self.consumed = state_dict["consumed"]

    def _identity(self) -> dict[str, Any]:
        elsewhere = {"root", "workers", "validation_batch_size", "validation_limit"}
        return {"fingerprint": self.fingerprint, "seed": self.seed, **self.config.model_dump(exclude=elsewhere)}

    def _maker(self, shards: ShardSet, seed: int) -> ExampleMaker:
        config = self.config
        return ExampleMaker(
            shards,
            seed,
            config.image_size,
            config.image_only,
            config.recover_min_scale,
            config.recover_distort,
            config.recover_distractors,
        )

    def _rank_and_world(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)


class TrainingBatches(Dataset[PackedBatch]):
    """The rank's batch of any step, by the step's number."""

    def __init__(self, stream: TrainingStream, maker: ExampleMaker, rank: int, world: int) -> None:
        self._stream, self._maker, self._rank, self._world = stream, maker, rank, world

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> PackedBatch:
        task, samples = self._stream.batch(step, self._rank, self._world)
        examples = [self._maker.example(task, sample) for sample in samples]
        return pack(collate(examples, with_arrays=False))


class TrainingLoader:
    """Iterates over the batches that training has not had yet, and counts those handed out in the data module.

    Not a DataLoader itself: Lightning would put a distributed sampler into one.
    """

    def __init__(self, module: DataModule, batches: TrainingBatches) -> None:
        self._module, self._batches = module, batches

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        workers = self._module.config.workers
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=range(self._module.consumed, ENDLESS),
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_prepare_worker,
            # A generator of its own: the loader draws a seed, and the global one must not notice.
            generator=torch.Generator(),
        )
        for packed in loader:
            self._module.consumed += 1
            yield unpack(packed)

    # Lightning warns at every resume of a loader without these two; the state itself is the data module's.
    def state_dict(self) -> dict[str, Any]:
        """Nothing: see `DataModule.state_dict`."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing: see `DataModule.load_state_dict`."""


class ValidationLoader:
    """The rank's validation batches; every iteration gives the same."""

    def __init__(self, maker: ExampleMaker, rows: Sequence[tuple[str, Sequence[tuple[Sample, bool]]]]) -> None:
        self._maker, self._rows = maker, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        for task, samples in self._rows:
            examples = [self._maker.example(task, sample) for sample, _ in samples]
            yield collate(examples, valid=[valid for _, valid in samples])


def _prepare_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C goes to the whole process group; training decides when to stop, and the loader ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
