"""From records to packs of codes: which examples, in which order, made by which process, encoded how."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from einops import reduce
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mentor.data.datamodule import VALIDATION_SEED
from mentor.data.examples import ExampleMaker, no_usable_record, usable_samples
from mentor.data.loading import LEAST_SEEN, Failure, prepare_worker
from mentor.data.order import Sample as Visit
from mentor.data.order import Usable
from mentor.data.packs import NO_PIXELS, CodeLayout, Pack, encode_pack
from mentor.data.records import Dropped, UnusableSample
from mentor.data.storage.index import Counted
from mentor.data.storage.manifest import shard_path
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.writing import Sample
from mentor.data.tasks import TASKS
from mentor.errors import UserError
from mentor.tokenizers import ImageTokenizer
from mentor.types import Example, ImageSegment, Prompt

# A shard of codes covers about so many records; a shard is what an interrupted run has to make again.
RECORDS = 4096


@dataclass(frozen=True)
class Unit:
    """A shard of codes to be made of some shards of pictures."""

    split: str
    number: int
    shards: range

    @property
    def path(self) -> str:
        """Of the shard, below the folder of the codes."""
        return shard_path(self.split, self.number)

    @property
    def name(self) -> str:
        """Of the shard, for its packs."""
        return f"{self.split}-{self.number:06d}"


class Plan:
    """Which examples there are, and in which order they are made.

    Args:
        splits: the opened splits.
        tasks: empty: all that records of every split can serve.
        variants: how often each training record is made an example of each task.
        batch_size: examples that are encoded together.
        records: a shard of codes covers about so many.

    Raises:
        UserError: a task can use no record of a split.
    """

    def __init__(
        self, splits: Mapping[str, ShardSet], tasks: Sequence[str], variants: int, batch_size: int, records: int
    ) -> None:
        self.splits, self.batch_size = splits, batch_size
        self._train_variants, self._records = variants, records
        usable = {task: {name: usable_samples(shards, task) for name, shards in splits.items()} for task in TASKS}
        self.tasks = tuple(tasks or (task for task in TASKS if all(usable[task].values())))
        for task in self.tasks:
            for split in splits:
                if usable[task][split] is None:
                    raise no_usable_record([split], task)
        if not self.tasks:
            raise UserError(
                "no task can use records of every split: see the captions, objects and masks of the data set"
            )
        self._usable: dict[tuple[str, str], Usable] = {
            (task, split): one for task in self.tasks for split, one in usable[task].items() if one is not None
        }

    @property
    def fingerprint(self) -> str:
        """Of the data set."""
        return next(iter(self.splits.values())).fingerprint

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each split."""
        return {
            split: sum(int(self._usable[task, split].sizes.sum()) for task in self.tasks) * self._variants(split)
            for split in self.splits
        }

    @property
    def total(self) -> int:
        """Examples in all."""
        return sum(self.sizes.values())

    def units(self) -> Iterator[Unit]:
        """The shards to be made."""
        for split, opened in self.splits.items():
            counts = np.array(opened.counts)
            # A shard of pictures goes where its first record falls.
            groups = (np.cumsum(counts) - counts) // self._records
            starts = [*np.flatnonzero(np.diff(groups, prepend=-1)).tolist(), len(counts)]
            for number, (start, end) in enumerate(pairwise(starts)):
                yield Unit(split, number, range(start, end))

    def packs(self, unit: Unit, size: int) -> Iterator[tuple[str, list[Visit]]]:
        """The packs of a shard: task, and visits to records."""
        for task in self.tasks:
            usable = self._usable[task, unit.split]
            visits = [
                Visit(variant, shard, position)
                for variant in range(self._variants(unit.split))
                for shard in unit.shards
                for position in usable.positions(shard).tolist()
            ]
            for start in range(0, len(visits), size):
                yield task, visits[start : start + size]

    def jobs(self, unit: Unit, size: int) -> Iterator["Job"]:
        """All examples of a shard, in parts small enough to be encoded together."""
        for task, visits in self.packs(unit, size):
            for start in range(0, len(visits), self.batch_size):
                yield Job(unit.split, task, visits[start : start + self.batch_size])

    def _variants(self, split: str) -> int:
        return self._train_variants if split == "train" else 1


@dataclass(frozen=True)
class Job:
    """Examples of one task that are made and encoded together."""

    split: str
    task: str
    visits: Sequence[Visit]


@dataclass(frozen=True)
class Made:
    """A job's examples; pictures that are the same come once.

    Attributes:
        keys, prompts, focus, captions: of each example; captions only of visits in the first variant.
        targets: row of each example's target among the pictures.
        references: rows of the pictures that each example's prompt shows.
        pictures: uint8 `u c y x`.
        names: digests of the pictures.
        dropped: what could not be made.
    """

    keys: list[str] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    focus: list[np.ndarray] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    references: list[list[int]] = field(default_factory=list)
    pictures: Tensor = field(default_factory=lambda: torch.empty(0))
    names: list[bytes] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


class _Examples(Dataset[Made | Failure]):
    """Makes the examples of a job, in whichever process."""

    def __init__(self, splits: Mapping[str, ShardSet], layout: CodeLayout) -> None:
        self._splits, self._grid = splits, layout.grid
        settings = (layout.image_only, layout.recover_min_scale, layout.recover_distort, layout.recover_distractors)
        seeds = {"train": layout.seed, "heldout": VALIDATION_SEED}
        self._makers = {
            split: ExampleMaker(shards, seeds[split], layout.image_size, *settings) for split, shards in splits.items()
        }

    def __getitem__(self, job: Job) -> Made | Failure:
        pictures: dict[bytes, tuple[int, np.ndarray]] = {}
        made = Made()
        try:
            for visit in job.visits:
                try:
                    example = self._makers[job.split].example(job.task, visit)
                    words = self._splits[job.split].description(visit.shard, visit.position) if not visit.epoch else {}
                except UnusableSample as error:
                    made.dropped.append(Dropped(error.key, error.reason, str(error)))
                    continue
                self._add(made, example, pictures)
                made.captions.append(list(words.get("captions", ())))
        except UserError as error:
            return Failure(str(error))
        if not pictures:
            return made
        stacked = torch.from_numpy(np.stack([picture for _, picture in pictures.values()]))
        return replace(made, pictures=stacked, names=list(pictures))

    def _add(self, made: Made, example: Example, pictures: dict[bytes, tuple[int, np.ndarray]]) -> None:
        def row(picture: Tensor) -> int:
            # The inverse of `transforms.to_tensor`, in NumPy: torch would wake all its threads for so little.
            pixels = np.rint((picture.numpy() + 1) * 127.5).astype(np.uint8)
            name = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
            return pictures.setdefault(name, (len(pictures), pixels))[0]

        rows, columns = self._grid
        made.keys.append(example.key)
        made.targets.append(row(example.target))
        made.references.append([row(part.image) for part in example.prompt if isinstance(part, ImageSegment)])
        made.focus.append(reduce(example.focus.numpy(), "(gy y) (gx x) -> gy gx", "mean", gy=rows, gx=columns))
        made.prompts.append(
            tuple(
                ImageSegment(NO_PIXELS, part.name) if isinstance(part, ImageSegment) else part
                for part in example.prompt
            )
        )


def make_examples(plan: Plan, layout: CodeLayout, units: Sequence[Unit], workers: int) -> Iterator[Made]:
    """The examples of all units' jobs, in order, made in other processes where there are some."""
    loader = DataLoader(
        _Examples(plan.splits, layout),
        batch_size=None,
        sampler=_Chained(lambda: (job for unit in units for job in plan.jobs(unit, layout.examples))),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        worker_init_fn=prepare_worker,
    )
    batches = iter(loader)
    while True:
        try:
            made = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                "a process that makes examples died (out of memory?): run the same command with fewer --workers, "
                "it goes on"
            ) from None
        if isinstance(made, Failure):
            raise UserError(made.message)
        yield made


class _Chained(Iterable[Any]):
    """What a function yields, anew each time."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return self._make()


class Encoder:
    """Pictures to codes; of those that it has seen since `forget` the codes are remembered."""

    def __init__(self, tokenizer: ImageTokenizer, layout: CodeLayout) -> None:
        self._tokenizer, self.layout = tokenizer, layout
        self._known: dict[bytes, np.ndarray] = {}

    def forget(self) -> None:
        """Start a shard: what it holds must not depend on the shards that were made before."""
        self._known.clear()

    @torch.no_grad()
    def encode(self, made: Made) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:
        """The ids of each picture, and the features of those that prompts show, by row."""
        shown = {row for rows in made.references for row in rows} if self.layout.feature_width else set()
        rows = [row for row, name in enumerate(made.names) if row in shown or name not in self._known]
        features: dict[int, np.ndarray] = {}
        if rows:
            device = self._tokenizer.quant_conv.weight.device
            # The very steps of `transforms.to_tensor`, so that these are the pictures that training would encode.
            pictures = made.pictures[rows].to(device).float().div_(127.5).sub_(1.0)
            try:
                codes = self._tokenizer.encode(pictures)
            except torch.OutOfMemoryError:
                raise UserError(
                    f"the device has no memory for {len(rows)} pictures at once: run the same command with a smaller "
                    "--batch-size, it goes on"
                ) from None
            for row, ids in zip(rows, codes.ids.cpu().numpy().astype(self.layout.ids), strict=True):
                self._known.setdefault(made.names[row], ids)
            if shown:
                half = codes.features.half().cpu().numpy()
                features = {row: half[place] for place, row in enumerate(rows) if row in shown}
        return [self._known[name] for name in made.names], features


class Tally:
    """How many examples are done, and whether too many could not be made."""

    def __init__(self, max_bad: float, total: int, report: Callable[[int, int], None]) -> None:
        self._max_bad, self._total, self._report = max_bad, total, report
        self._made = 0
        self._dropped: Counter[str] = Counter()

    def add(self, made: int, dropped: Mapping[str, int], example: str = "") -> None:
        """Count some more.

        Raises:
            UserError: more could not be made than is allowed.
        """
        self._made += made
        self._dropped.update(dropped)
        bad = self._dropped.total()
        seen = self._made + bad
        if bad > self._max_bad * max(seen, LEAST_SEEN):
            counted = ", ".join(f"{count} {reason}" for reason, count in self._dropped.most_common())
            raise UserError(
                f"{bad} of {seen} examples cannot be made ({counted}), more than --max-bad {self._max_bad:g} allows"
                + (f"; the last: {example}" if example else "")
            )
        self._report(seen, self._total)


class _Builder:
    """Puts a pack together."""

    def __init__(self, task: str, layout: CodeLayout) -> None:
        self._task, self._layout = task, layout
        self._keys: list[str] = []
        self._prompts: list[Prompt] = []
        self._images: list[tuple[int, ...]] = []
        self._targets: list[np.ndarray] = []
        self._focus: list[np.ndarray] = []
        self._references: list[np.ndarray] = []
        self._features: list[np.ndarray] = []
        self._captions: list[str] = []

    def add(self, made: Made, ids: Sequence[np.ndarray], features: Mapping[int, np.ndarray], told: set[str]) -> None:
        """Append examples; captions only of records that `told` has not heard of."""
        self._keys += made.keys
        self._prompts += made.prompts
        self._focus += made.focus
        self._targets += [ids[row] for row in made.targets]
        for key, rows, captions in zip(made.keys, made.references, made.captions, strict=True):
            self._images.append(tuple(range(len(self._references), len(self._references) + len(rows))))
            self._references += [ids[row] for row in rows]
            self._features += [features[row] for row in rows if features]
            if key not in told:
                told.add(key)
                self._captions += captions

    def sample(self, key: str) -> Sample | None:
        """The pack as a shard's sample; None when it is empty."""
        if not self._keys:
            return None
        layout = self._layout
        pack = Pack(
            self._task,
            self._keys,
            self._prompts,
            self._images,
            np.stack(self._targets),
            np.stack(self._focus),
            _stacked(self._references, layout.grid, layout.ids),
            self._captions,
        )
        features = None
        if layout.feature_width:
            features = _stacked(self._features, (layout.feature_width, *layout.grid), np.dtype(np.float16))
        return Sample(key, encode_pack(pack, features, layout), Counted(tasks=(self._task,)))


def packs(unit: Unit, plan: Plan, made: Iterator[Made], encoder: Encoder, tally: Tally) -> Iterator[Sample | Dropped]:
    """A shard's packs as samples, and what could not be made."""
    encoder.forget()
    told: set[str] = set()
    for number, (task, visits) in enumerate(plan.packs(unit, encoder.layout.examples)):
        builder = _Builder(task, encoder.layout)
        for _ in range(-(-len(visits) // plan.batch_size)):
            part = next(made)
            builder.add(part, *encoder.encode(part), told)
            yield from part.dropped
            last = part.dropped[-1].detail if part.dropped else ""
            tally.add(len(part.keys), Counter(dropped.reason for dropped in part.dropped), last)
        sample = builder.sample(f"{unit.name}-{number:04d}-{task}")
        if sample is not None:
            yield sample


def _stacked(arrays: Sequence[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.stack(arrays) if arrays else np.empty((0, *shape), dtype)
