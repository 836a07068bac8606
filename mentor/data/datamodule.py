"""Lightning's view of the data: endless training batches that resume exactly, validation batches, and their checks."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch

from mentor.data.collate import to_device
from mentor.data.examples import ExampleMaker, no_usable_record, usable_samples
from mentor.data.files import CacheSettings
from mentor.data.loading import TrainingBatches, TrainingLoader, ValidationLoader
from mentor.data.settings import DataConfig
from mentor.data.shards import ShardSet
from mentor.data.stream import TrainingStream, Usable, validation_batches
from mentor.errors import UserError
from mentor.types import Batch

# Held-out examples are the same whatever the seed of the run, so that runs can be compared.
VALIDATION_SEED = 0


class DataModule(lightning.LightningDataModule):
    """Training and validation batches from one data set or several.

    The state is the number of global batches handed out, so a resumed run goes on with the next one, on any number
    of processes. It lives here and not in the loader: Lightning gives every rank the loader state of rank 0, and
    restores a loader too late for schedulers that ask for the number of steps.

    Args:
        config: the settings.
        seed: of the run.
        report: takes a line for people whenever something was left out.

    Raises:
        UserError: shards missing or damaged, too few records for a task.
    """

    def __init__(self, config: DataConfig, seed: int, report: Callable[[str], None] = lambda line: None) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.consumed = 0
        self.skipped: Counter[str] = Counter()
        self.report = report
        self.train_shards = self._open("train")
        self.heldout_shards = self._open("heldout")
        self._usable = self._usable_samples(self.train_shards)
        self._usable_heldout = self._usable_samples(self.heldout_shards)
        self._stream = TrainingStream(
            self._usable,
            config.mixture,
            config.batch_size,
            config.lanes,
            seed,
            config.warmup_steps,
            config.warmup_task,
            [source.weight for source in config.sources],
        )
        validation_batches(self._usable_heldout, config.validation_limit, config.validation_batch_size)

    @property
    def fingerprints(self) -> list[str]:
        """Name the exact content of every data set."""
        return [shards.fingerprint for shards in self.train_shards]

    @property
    def size(self) -> int:
        """Training records in all."""
        return sum(map(len, self.train_shards))

    @property
    def usable(self) -> dict[str, tuple[int, int]]:
        """For each task how many training records it can use, and how many there are."""
        counts = {
            task: sum(int(one.sizes.sum()) for one in samples if one is not None)
            for task, samples in self._usable.items()
        }
        return {task: (count, self.size) for task, count in counts.items()}

    def captions(self, limit: int) -> list[str]:
        """Up to `limit` captions of training records, for training the text tokenizer; every data set gives a share."""
        share = -(-limit // len(self.train_shards))
        return [caption for shards in self.train_shards for caption in shards.captions(share)][:limit]

    def train_dataloader(self) -> TrainingLoader:
        """This rank's batches from the first that has not been consumed, without end."""
        rank, world = self._rank_and_world()
        self._stream.numbers(0, rank, world)
        makers = [self._maker(shards, self.seed) for shards in self.train_shards]
        return TrainingLoader(self, TrainingBatches(self._stream, makers, rank, world))

    def val_dataloader(self) -> ValidationLoader:
        """This rank's share of the held-out records, one task after another, the same in every run."""
        rank, world = self._rank_and_world()
        config = self.config
        rows = validation_batches(
            self._usable_heldout, config.validation_limit, config.validation_batch_size, rank, world
        )
        return ValidationLoader([self._maker(shards, VALIDATION_SEED) for shards in self.heldout_shards], rows, self)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The batch on the device (Lightning's hook)."""
        return to_device(batch, device)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: how far training has come, and what that number belongs to."""
        return {"consumed": self.consumed, "skipped": dict(self.skipped), **self._identity()}

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
        self.skipped = Counter(state_dict["skipped"])

    def _identity(self) -> dict[str, Any]:
        elsewhere = {
            "root",
            "datasets",
            "workers",
            "validation_batch_size",
            "validation_limit",
            "max_bad",
            "cache_dir",
            "cache_gigabytes",
        }
        sources = [{"weight": source.weight, "tasks": list(source.tasks)} for source in self.config.sources]
        left_out = sorted(name for shards in self.train_shards for name in shards.skipped)
        return {
            "fingerprints": self.fingerprints,
            "seed": self.seed,
            "datasets": sources,
            "skipped_shards": left_out,
            **self.config.model_dump(mode="json", exclude=elsewhere),
        }

    def _open(self, split: str) -> list[ShardSet]:
        config = self.config
        opened = []
        for source in config.sources:
            cache = CacheSettings(config.cache_dir, config.cache_gigabytes)
            shards = ShardSet(source.root, split, cache, config.skip_bad_shards)
            for name in shards.skipped:
                self.report(f"shard {name} is missing or damaged and left out: {len(shards)} {split} samples remain")
            opened.append(shards)
        return opened

    def _usable_samples(self, opened: Sequence[ShardSet]) -> dict[str, list[Usable | None]]:
        usable: dict[str, list[Usable | None]] = {}
        for task in self.config.tasks:
            usable[task] = [
                usable_samples(shards, task) if not source.tasks or task in source.tasks else None
                for source, shards in zip(self.config.sources, opened, strict=True)
            ]
            serving = [one for one in usable[task] if one is not None]
            if not serving:
                raise no_usable_record([shards.split for shards in opened], task)
            if task == "recover" and max(map(len, opened)) < 2:
                raise UserError(
                    f"the split {opened[0].split!r} has one record, but recover needs a second to paste on: add records"
                )
        return usable

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
