"""What worker processes do: shards from the numbers of scenes or from items, and fingerprints of pictures."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from mentor.data.making.composing import Composer
from mentor.data.making.duplicates import Duplicates, Fingerprints, scan
from mentor.data.making.engines import Tick
from mentor.data.making.recipes import LoadedRecipe, SceneRecipe
from mentor.data.making.steps import StepConfig, prepare
from mentor.data.records import Dropped, Record
from mentor.data.sources.items import Item
from mentor.data.storage.decoding import Limits
from mentor.data.storage.encoding import Layout, encode_members
from mentor.data.storage.writing import Sample, Shard, count_record, sample_of, write_shard

T = TypeVar("T")
# `encode_members` does not look at the picture of its record.
_UNSEEN = np.zeros((1, 1, 3), np.uint8)
# Items of a job: their number in the source, and what they are.
Numbered = tuple[int, Item | Dropped]


@dataclass(frozen=True)
class Job:
    """A shard to be made.

    Attributes:
        path: below the data set's folder.
        split: that it belongs to.
        items: positions of scenes, or items with their numbers.
    """

    path: str
    split: str
    items: range | tuple[Numbered, ...]

    def without(self, dropped: Mapping[int, Dropped]) -> "Job":
        """The job with some items, by their numbers, replaced by why they are dropped."""
        if isinstance(self.items, range):
            return self
        return replace(self, items=tuple((number, dropped.get(number, item)) for number, item in self.items))


@dataclass(frozen=True)
class Made:
    """A shard that was made, and for every reason to leave something out the first case."""

    shard: Shard
    examples: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SceneWork:
    """Shards of a recipe of scenes."""

    loaded: LoadedRecipe[SceneRecipe]
    output: Path
    layout: Layout

    def begin(self) -> Callable[[Job, Tick], Made]:
        """The function of a job."""
        composer = Composer(self.loaded)

        def make(job: Job, tick: Tick) -> Made:
            assert isinstance(job.items, range)
            samples = _ticking((sample_of(composer.record(job.split, one), self.layout) for one in job.items), tick)
            return Made(write_shard(self.output, job.path, job.split, samples, self.layout.members))

        return make


@dataclass(frozen=True)
class RecordWork:
    """Shards of a recipe of records."""

    output: Path
    steps: tuple[StepConfig, ...]
    layout: Layout
    limits: Limits

    def begin(self) -> Callable[[Job, Tick], Made]:
        """The function of a job."""
        members = self.layout.members

        def make(job: Job, tick: Tick) -> Made:
            assert not isinstance(job.items, range)
            examples: dict[str, str] = {}
            samples = self._samples(job.items, tick, examples)
            return Made(write_shard(self.output, job.path, job.split, samples, members), examples)

        return make

    def _samples(self, items: Sequence[Numbered], tick: Tick, examples: dict[str, str]) -> Iterator[Sample | Dropped]:
        for number, item in items:
            for outcome in self._outcomes(number, item):
                if isinstance(outcome, Dropped):
                    examples.setdefault(outcome.reason, case(outcome))
                yield outcome
            tick()

    def _outcomes(self, number: int, item: Item | Dropped) -> Iterator[Sample | Dropped]:
        """The sample of an item, after whatever it lost; or why there is none."""
        prepared = item if isinstance(item, Dropped) else prepare(item, self.steps, self.layout, self.limits)
        if isinstance(prepared, Dropped):
            yield prepared
            return
        record = Record(
            key=f"{number:09d}",
            image=_UNSEEN,
            captions=prepared.captions,
            objects=prepared.objects,
            views=prepared.views,
            subject=prepared.subject,
            attributes={"origin": item.origin, **prepared.attributes},
            tasks=prepared.tasks,
        )
        try:
            sample = Sample(record.key, encode_members(record, prepared.picture, self.layout), count_record(record))
        except UnicodeEncodeError:
            # JSON may hold half a letter.
            yield Dropped(item.origin, "text is not UTF-8")
            return
        yield from (Dropped(item.origin, note) for note in prepared.notes)
        yield sample


@dataclass(frozen=True)
class ScanWork:
    """Fingerprints of the pictures of some items, with the number of the chunk that they are."""

    step: Duplicates
    limits: Limits

    def begin(self) -> Callable[[tuple[int, Sequence[Item]], Tick], tuple[int, Fingerprints]]:
        """The function of a chunk."""
        return lambda chunk, tick: (chunk[0], scan(_ticking(chunk[1], tick), self.step, self.limits))


def case(dropped: Dropped) -> str:
    """What a table says of a single case."""
    text = f"{dropped.origin}: {dropped.detail}" if dropped.detail else dropped.origin
    return " ".join(text.split())[:120]


def _ticking(items: Iterable[T], tick: Tick) -> Iterator[T]:
    for item in items:
        yield item
        tick()
