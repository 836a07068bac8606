"""Lightning's view of the data: endless training batches that resume exactly, validation batches, and their checks."""

from collections.abc import Callable, Sequence
from typing import Any

from mentor.data.codes import KIND, CodeSet, check_alike, codes_command
from mentor.data.examples import ExampleMaker, no_usable_record, usable_samples
from mentor.data.loading import (
    CodeBatches,
    CodeValidationLoader,
    TrainingBatches,
    TrainingLoader,
    ValidationLoader,
)
from mentor.data.order import GROUP, TrainingOrder, Usable, validation_batches
from mentor.data.packs import CodeLayout
from mentor.data.resuming import ResumableData
from mentor.data.settings import DataConfig
from mentor.data.storage.files import CacheSettings, DataFiles
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError

# Held-out examples are the same whatever the seed of the run, so that runs can be compared.
VALIDATION_SEED = 0


class DataModule(ResumableData):
    """Training and validation batches from one data set or several.

    The state is the number of global batches handed out, so a resumed run goes on with the next one, on any number
    of processes. It lives here and not in the loader: Lightning gives every rank the loader state of rank 0, and
    restores a loader too late for schedulers that ask for the number of steps.

    Attributes:
        train_shards: the opened training splits, all of pictures or all of image codes.
        heldout_shards: likewise the held-out ones.
        codes: what the codes are; None for pictures.

    Args:
        config: the settings.
        seed: of the run.
        report: takes a line for people whenever something was left out.

    Raises:
        UserError: shards missing or damaged, too few records for a task.
    """

    def __init__(self, config: DataConfig, seed: int, report: Callable[[str], None] = lambda line: None) -> None:
        super().__init__(config, seed, config.max_bad, report)
        self.train_shards = self._open("train")
        self.heldout_shards = self._open("heldout")
        self.codes = self._check_kinds()
        self._usable = self._usable_samples(self.train_shards)
        self._usable_heldout = self._usable_samples(self.heldout_shards)
        self._stream = TrainingOrder(
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
    def licence(self) -> str:
        """What the recipes say of their pictures' licences; empty where they say nothing."""
        said = dict.fromkeys(str(shards.manifest["recipe"].get("licence") or "") for shards in self.train_shards)
        return "; ".join(licence for licence in said if licence)

    @property
    def size(self) -> int:
        """Training records in all."""
        return sum(map(len, self.train_shards))

    @property
    def summary(self) -> str:
        """What is trained on, in a few words."""
        return f"{self.size:,} {'codes' if self.codes else 'records'} of {self.config.places}"

    @property
    def usable(self) -> dict[str, tuple[int, int]]:
        """For each task how many training records it can use, and how many there are."""
        counts = {
            task: sum(int(one.sizes.sum()) for one in samples if one is not None)
            for task, samples in self._usable.items()
        }
        return {task: (count, self.size) for task, count in counts.items()}

    def epochs(self, number: int) -> tuple[str, float]:
        """The task of a global batch, and how often training has seen the task's samples after it, on average."""
        return self._stream.epochs(number)

    def captions(self, limit: int) -> list[str]:
        """Up to `limit` captions of training records, for training the text tokenizer; every data set gives a share."""
        share = -(-limit // len(self.train_shards))
        return [caption for shards in self.train_shards for caption in shards.captions(share)][:limit]

    def train_dataloader(self) -> TrainingLoader:
        """This rank's batches from the first that has not been consumed, without end."""
        rank, world = self.rank_and_world()
        self._stream.numbers(0, rank, world)
        if self.codes is not None:
            return TrainingLoader(self, CodeBatches(self._stream, _codes(self.train_shards), rank, world))
        makers = [self._maker(shards, self.seed) for shards in _pictures(self.train_shards)]
        return TrainingLoader(self, TrainingBatches(self._stream, makers, rank, world))

    def val_dataloader(self) -> ValidationLoader:
        """This rank's share of the held-out records, one task after another, the same in every run."""
        rank, world = self.rank_and_world()
        config = self.config
        rows = validation_batches(
            self._usable_heldout, config.validation_limit, config.validation_batch_size, rank, world
        )
        if self.codes is not None:
            return CodeValidationLoader(_codes(self.heldout_shards), rows, self)
        makers = [self._maker(shards, VALIDATION_SEED) for shards in _pictures(self.heldout_shards)]
        return ValidationLoader(makers, rows, self)

    def identity(self) -> dict[str, Any]:
        """What the order of samples follows from."""
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

    def _open(self, split: str) -> list[ShardSet | CodeSet]:
        config = self.config
        opened: list[ShardSet | CodeSet] = []
        for source in config.sources:
            cache = CacheSettings(config.cache_dir, config.cache_gigabytes)
            if DataFiles(source.root, cache).manifest["kind"] == KIND:
                # The packs of a group are read together, and lanes pass from one group to the next one by one.
                room = (3 * config.lanes // 2 + 1) * GROUP
                shards = CodeSet(source.root, split, cache, config.skip_bad_shards, room)
            else:
                shards = ShardSet(source.root, split, cache, config.skip_bad_shards, fit=config.image_size)
            for name in shards.skipped:
                self.report(f"shard {name} is missing or damaged and left out: {len(shards)} {split} samples remain")
            opened.append(shards)
        return opened

    def _check_kinds(self) -> CodeLayout | None:
        """What the data sets' codes are; None for pictures. Refuses what does not belong together."""
        codes = _codes([*self.train_shards, *self.heldout_shards])
        pictures = _pictures(self.train_shards)
        if codes and pictures:
            raise UserError(
                f"{codes[0].root} holds image codes and {pictures[0].root} pictures, which cannot be mixed: make codes "
                f"of all data sets, `{codes_command(pictures[0].root)}`, or of none"
            )
        if not codes:
            return None
        drawn = {"reconstruct": ["image_only"]}
        drawn["recover"] = ["recover_min_scale", "recover_distort", "recover_distractors"]
        names = ["image_size", *(name for task in self.config.tasks for name in drawn.get(task, ()))]
        for code_set in codes:
            for name in names:
                there, here = getattr(code_set.layout, name), getattr(self.config, name)
                if there != here:
                    raise UserError(
                        f"data.{name} is {here}, but the codes in {code_set.root} were made with {there}: say "
                        f"data.{name}={there}, or make other codes with `{codes_command()}`"
                    )
        return check_alike(codes)

    def _usable_samples(self, opened: Sequence[ShardSet | CodeSet]) -> dict[str, list[Usable | None]]:
        usable: dict[str, list[Usable | None]] = {}
        for task in self.config.tasks:
            usable[task] = [
                (shards.usable(task) if isinstance(shards, CodeSet) else usable_samples(shards, task))
                if not source.tasks or task in source.tasks
                else None
                for source, shards in zip(self.config.sources, opened, strict=True)
            ]
            if all(one is None for one in usable[task]):
                if self.codes is not None:
                    raise UserError(
                        f"there are no {opened[0].split} codes of the task {task!r} in {self.config.places}: take it "
                        f"out of the mixture, or make codes with --tasks {','.join(self.config.tasks)}"
                    )
                raise no_usable_record([shards.split for shards in opened], task)
            if task == "recover" and self.codes is None and max(map(len, opened)) < 2:
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


def _codes(opened: Sequence[ShardSet | CodeSet]) -> list[CodeSet]:
    return [one for one in opened if isinstance(one, CodeSet)]


def _pictures(opened: Sequence[ShardSet | CodeSet]) -> list[ShardSet]:
    return [one for one in opened if isinstance(one, ShardSet)]
