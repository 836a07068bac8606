"""What a data set holds, counted: from all its records, or from a seeded sample of them where there are very many."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mentor.data.order import Sample
from mentor.data.records import Record, UnusableSample

# Words are quick to read, pictures are not.
MOST_WORDS, MOST_PICTURES = 20_000, 500
# A caption's beginning is this many words of it: one alone is nearly always an article.
BEGINNING = 2


class Described(Protocol):
    """What is needed of an opened split (`shards.ShardSet`)."""

    counts: tuple[int, ...]

    def record(self, shard: int, position: int) -> Record:
        """A record with its pictures."""
        ...

    def description(self, shard: int, position: int) -> Mapping[str, Any]:
        """A record's words, without its pictures."""
        ...


@dataclass
class Survey:
    """Numbers and names found; each list has one entry per thing that it is about.

    Attributes:
        total: records in the data set.
        described: records whose words were read.
        pictured: records whose pictures were read.
        captions, objects, views: how many, for each record.
        caption_words: words, for each caption.
        widths, heights, ratios: in pixels, and width / height, for each picture.
        areas: share of the picture in %, for each mask.
        unmasked: objects without a mask, among the records whose pictures were read.
        names, subjects, beginnings, licences: how often each was seen.
        unreadable: an error for each record that could not be read.
    """

    total: int = 0
    described: int = 0
    pictured: int = 0
    captions: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    caption_words: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    unmasked: int = 0
    names: Counter[str] = field(default_factory=Counter)
    subjects: Counter[str] = field(default_factory=Counter)
    beginnings: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    unreadable: list[UnusableSample] = field(default_factory=list)


def pick(positions: Sequence[Sequence[int] | np.ndarray], num: int, seed: int) -> list[Sample]:
    """Up to `num` different samples in random order, from the positions given for each shard."""
    ends = np.cumsum([len(places) for places in positions])
    total = int(ends[-1]) if len(ends) else 0
    samples = []
    for number in random.Random(seed).sample(range(total), min(num, total)):
        shard = int(np.searchsorted(ends, number, side="right"))
        position = positions[shard][number - int(ends[shard])]
        samples.append(Sample(epoch=0, shard=shard, position=int(position)))
    return samples


def take_survey(splits: Sequence[Described], seed: int) -> Survey:
    """The survey of all splits of a data set together."""
    survey = Survey(total=sum(sum(shards.counts) for shards in splits))
    # All splits as one row of shards, so that each is sampled in proportion.
    owners = [(shards, shard) for shards in splits for shard in range(len(shards.counts))]
    positions = [range(shards.counts[shard]) for shards, shard in owners]
    for sample in sorted(pick(positions, MOST_WORDS, seed), key=_place):
        shards, shard = owners[sample.shard]
        try:
            _count_words(survey, shards.description(shard, sample.position))
        except UnusableSample as error:
            survey.unreadable.append(error)
    for sample in sorted(pick(positions, MOST_PICTURES, seed), key=_place):
        shards, shard = owners[sample.shard]
        try:
            _count_pixels(survey, shards.record(shard, sample.position))
        except UnusableSample as error:
            survey.unreadable.append(error)
    # A record without words has no picture either; it is one record all the same.
    survey.unreadable = list({(error.shard, error.key): error for error in survey.unreadable}.values())
    return survey


def _place(sample: Sample) -> tuple[int, int]:
    return sample.shard, sample.position


def _count_words(survey: Survey, description: Mapping[str, Any]) -> None:
    captions, objects = description["captions"], description["objects"]
    survey.described += 1
    survey.captions.append(len(captions))
    survey.objects.append(len(objects))
    survey.views.append(len(description["views"]))
    for caption in captions:
        words = caption.split()
        survey.caption_words.append(len(words))
        survey.beginnings[" ".join(words[:BEGINNING]).lower()] += 1
    survey.names.update(thing["name"] for thing in objects)
    if description["subject"]:
        survey.subjects[description["subject"]] += 1
    survey.licences.update(_licences(description["attributes"]))


def _licences(attributes: Mapping[str, Any]) -> set[str]:
    """The licences that a record names, on itself or in the credits of what it is made of."""
    credits = attributes.get("credits")
    sources = [attributes, *(credits if isinstance(credits, list) else [])]
    found = {source.get("licence") or source.get("license") for source in sources if isinstance(source, Mapping)}
    return {licence for licence in found if isinstance(licence, str)}


def _count_pixels(survey: Survey, record: Record) -> None:
    height, width = record.image.shape[:2]
    survey.pictured += 1
    survey.widths.append(width)
    survey.heights.append(height)
    survey.ratios.append(width / height)
    for mask in (thing.mask for thing in record.objects):
        if mask is not None:
            survey.areas.append(100 * float(mask.mean()))
    survey.unmasked += sum(thing.mask is None for thing in record.objects)
