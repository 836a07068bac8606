"""Tars of strangers, read in sequence: nothing is indexed or cached, and so the order is promised only in part.

The other way of reading, by an index (`mentor.data.order`), promises everything; this one is for tars that are read
once or lie far away. What holds here:

- The order is a function of the list of tars, the seed, the epoch and the numbers of ranks and workers, and of
  nothing else. Other numbers of ranks or workers give another order.
- For one such layout, every readable sample that is not held out comes exactly once in an epoch. The shards are
  permuted and dealt to the ranks' workers in turn; with fewer shards than workers in all, several read the same shard,
  each its own part of the samples.
- Ranks do NOT get equally many samples: whoever trains on several must end an epoch after a number of steps of its own
  choosing, the same for all.
- Resuming is possible at the beginning of a shard only (`start_shard`). Samples that were in the shuffle buffer, or in
  shards just begun, are then missed or repeated, and so they are after a change of the numbers of ranks or workers.
- Held out is what the hash of the tar's file name and the sample's key says, wherever the tar lies and however many
  others there are: training never yields such a sample. Renaming a tar changes the choice.
- What cannot be used is never passed over in silence: bad samples and damaged tars come as `Dropped`, with a reason of
  few words to count by. After a damaged or unreachable tar the next one is read. Above the rate `max_bad` reading
  stops.
"""

import contextlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, field_validator

from mentor.config import Config
from mentor.data.records import Dropped, Record
from mentor.data.seeds import permutation, seed_from
from mentor.data.storage.decoding import BadSample, Limits, decode_image, decode_json, decode_text
from mentor.data.storage.grouping import Encoded, Groups
from mentor.data.storage.remote import PATIENT, Patience, Unreadable, check_url, list_files, open_stream, shown
from mentor.data.storage.tars import TarDamage, members
from mentor.errors import UserError

# A rate of bad samples says nothing before so many have been seen.
_ENOUGH = 100
_LONGEST_KEY = 100


class StreamConfig(Config):
    """Which tars to read, and what in them is a sample.

    Attributes:
        urls: paths or URLs, each with braces (`{0000..0127}`) and wildcards.
        image: endings of the picture, the preferred one first, separated by semicolons.
        caption: `txt`, or `json.FIELD` for a text or a list of texts in a JSON file; empty: captions are not read.
        shuffle: how many samples wait, encoded, for one to be drawn from; 0: none is moved.
        shuffle_mib: how much memory they may take in each worker, in MiB; large samples are shuffled among fewer.
        heldout_share: of the samples, that training never sees.
        max_bad: above this share of samples that cannot be used, reading stops.
        limits: of a single sample.
    """

    urls: tuple[str, ...] = Field(min_length=1)
    image: str = "jpg;jpeg;png;webp"
    caption: str = "txt"
    shuffle: int = Field(default=1000, ge=0)
    shuffle_mib: int = Field(default=512, ge=1)
    heldout_share: float = Field(default=0.0, ge=0, le=0.5)
    max_bad: float = Field(default=0.05, ge=0, le=1)
    limits: Limits = Limits()

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("urls")
    @classmethod
    def _allowed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_url(url) for url in value)

    @field_validator("image")
    @classmethod
    def _endings(cls, value: str) -> str:
        wrong = [ending for ending in value.split(";") if ending not in ("jpg", "jpeg", "png", "webp")]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no ending of a picture: use jpg, jpeg, png, webp, separated by ;")
        return value

    @field_validator("caption")
    @classmethod
    def _caption(cls, value: str) -> str:
        if value not in ("", "txt") and not re.fullmatch(r"json\.[^.]+", value):
            raise ValueError("use txt, json.FIELD or nothing")
        return value


@dataclass
class _Tally:
    """How an epoch of one worker goes: `offered` counts the samples of all parts, before any is read."""

    good: int = 0
    offered: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return ", ".join(f"{count} x {reason}" for reason, count in self.bad.most_common()) or "they hold none"


class TarStream:
    """The samples of unknown tars; see the head of this module for what is promised.

    Args:
        config: which tars.
        seed: of the order.
        patience: with the network.

    Attributes:
        shards: all tars, sorted.
    """

    def __init__(self, config: StreamConfig, seed: int, patience: Patience = PATIENT) -> None:
        self._config, self._seed, self._patience = config, seed, patience
        self.shards = sorted({name for url in config.urls for name in list_files(url, patience)})
        self._labels = _labels(self.shards)
        self._barren = 0

    def records(
        self, epoch: int, rank: int = 0, world: int = 1, worker: int = 0, workers: int = 1, start_shard: int = 0
    ) -> Iterator[Record | Dropped]:
        """One worker's samples of an epoch, and what could not be used.

        A record's attributes name its `shard`, and by `shard_number` its place in this worker's order of shards: what
        `start_shard` of a later run is taken from.

        Args:
            epoch: from 0.
            rank: of `world` processes.
            world: how many processes.
            worker: of the `workers` that each process has.
            workers: how many; 0 counts as 1.
            start_shard: how many of this worker's shards to leave out.

        Raises:
            UserError: too much is bad, or as many tars as there are had nothing usable.
        """
        consumers = world * max(1, workers)
        # Neighbouring numbers belong to different ranks, so that these differ by one shard at most.
        consumer = worker * world + rank
        mine, part, parts = self._deal(epoch, consumer, consumers)
        rng = random.Random(seed_from("streaming", self._seed, epoch, consumer))
        tally = _Tally()
        encoded = self._train(mine, part, parts, start_shard, tally)
        for number, item in _shuffled(encoded, rng, self._config.shuffle, self._config.shuffle_mib << 20):
            result = self._decode(mine[number], number, item) if isinstance(item, Encoded) else item
            if isinstance(result, Dropped):
                tally.bad[result.reason] += 1
            else:
                tally.good += 1
            yield result
            self._check_rate(tally)
        self._check_barren(tally, len(mine[start_shard:]))

    def heldout(self, limit: int) -> tuple[list[Record], list[Dropped]]:
        """The first held-out samples in the sorted order of the tars, at most `limit`, and what was bad on the way.

        Tars are read only as far as that needs; without a `heldout_share` there are none.
        """
        records: list[Record] = []
        bad: list[Dropped] = []
        for shard in range(len(self.shards) if self._config.heldout_share else 0):
            for item in self._samples(shard, lambda number, heldout: heldout):
                if len(records) == limit:
                    return records, bad
                result = self._decode(shard, shard, item) if isinstance(item, Encoded) else item
                if isinstance(result, Dropped):
                    bad.append(result)
                else:
                    records.append(result)
        return records, bad

    def captions(self, limit: int) -> list[str]:
        """Up to `limit` captions of training samples, from the first tars on; no picture is decoded."""
        captions: list[str] = []
        for shard in range(len(self.shards)):
            for item in self._samples(shard, lambda number, heldout: not heldout):
                if len(captions) >= limit:
                    return captions[:limit]
                if isinstance(item, Encoded) and item.wrong is None:
                    with contextlib.suppress(BadSample):
                        captions.extend(self._captions(item))
        return captions[:limit]

    def _deal(self, epoch: int, consumer: int, consumers: int) -> tuple[list[int], int, int]:
        """The consumer's shards in order, and which part of how many it reads of each."""
        order = [int(shard) for shard in permutation(len(self.shards), "streaming", self._seed, epoch)]
        if len(order) >= consumers:
            return order[consumer::consumers], 0, 1
        place, part = consumer % len(order), consumer // len(order)
        return [order[place]], part, len(range(place, consumers, len(order)))

    def _train(
        self, mine: list[int], part: int, parts: int, start: int, tally: _Tally
    ) -> Iterator[tuple[int, Encoded | Dropped]]:
        """The number of the shard and a sample of it, in the order of the tars."""

        def take(number: int, heldout: bool) -> bool:
            tally.offered += 1
            return number % parts == part and not heldout

        for number in range(start, len(mine)):
            for item in self._samples(mine[number], take):
                # What is wrong with a tar as a whole is told by one of those that read it.
                if isinstance(item, Encoded) or part == 0:
                    yield number, item

    def _samples(self, shard: int, take: Callable[[int, bool], bool]) -> Iterator[Encoded | Dropped]:
        """A tar's samples that `take(number, held out?)` wants; at last what is wrong with the tar, if anything."""
        url = self.shards[shard]

        def choose(number: int, key: str) -> bool:
            heldout = seed_from("heldout", _stem(url), key) < self._config.heldout_share * 2**64
            return take(number, heldout)

        groups = Groups(self._config.image, self._config.caption, self._config.limits, choose)
        try:
            with open_stream(url, self._patience) as file:
                for member, content in members(file, groups.wanted):
                    if not member.odd:
                        groups.add(content)
                    yield from groups.ready()
            groups.end()
            yield from groups.ready()
        # The sample that was being read may be a half one: it is lost with the rest of the tar.
        except TarDamage as error:
            yield Dropped(shown(url), "damaged tar", str(error))
        except (Unreadable, OSError) as error:
            yield Dropped(shown(url), "unreadable tar", str(error))

    def _decode(self, shard: int, number: int, sample: Encoded) -> Record | Dropped:
        try:
            if sample.wrong is not None:
                raise sample.wrong
            if sample.picture is None:
                raise BadSample("no picture", f"none of its members ends in {self._config.image}")
            captions = self._captions(sample)
            image = decode_image(sample.picture, self._config.limits)
        except BadSample as error:
            return Dropped(f"{shown(self.shards[shard])}: {sample.key}", error.reason, error.detail)
        attributes = {"shard": shown(self.shards[shard]), "shard_number": number}
        return Record(_record_key(self._labels[shard], sample.key), image, captions, attributes=attributes)

    def _captions(self, sample: Encoded) -> tuple[str, ...]:
        ending, _, name = self._config.caption.partition(".")
        if not ending:
            return ()
        if sample.caption is None:
            raise BadSample("no caption", f"none of its members ends in {ending}")
        if not name:
            found: Any = decode_text(sample.caption, self._config.limits)
        else:
            content = decode_json(sample.caption, self._config.limits)
            found = content.get(name) if isinstance(content, dict) else None
            if found is None:
                raise BadSample("no caption", f"its JSON has no field {name!r}")
        texts = found if isinstance(found, list) else [found]
        if not all(isinstance(text, str) for text in texts):
            raise BadSample("caption is no text", f"{type(found).__name__} in the field {name!r}")
        captions = tuple(text.strip() for text in texts if text.strip())
        if not captions:
            raise BadSample("empty caption")
        return captions

    def _check_rate(self, tally: _Tally) -> None:
        bad = tally.bad.total()
        seen = tally.good + bad
        if seen >= _ENOUGH and bad > self._config.max_bad * seen:
            raise UserError(
                f"{bad} of {seen} samples cannot be used ({tally}), more than max_bad={self._config.max_bad} allows: "
                f"check urls, image and caption, or raise max_bad"
            )

    def _check_barren(self, tally: _Tally, tars: int) -> None:
        """Whoever starts epoch after epoch would wait for ever when nothing is usable."""
        if tally.good or (tally.offered and not tally.bad):
            self._barren = 0
            return
        self._barren += tars
        if self._barren >= len(self.shards):
            raise UserError(
                f"no usable sample in {self._barren} tar(s) such as {shown(self.shards[0])} ({tally}): "
                f"check urls, image and caption"
            )


def _shuffled(
    items: Iterable[tuple[int, Encoded | Dropped]], rng: random.Random, most: int, most_bytes: int
) -> Iterator[tuple[int, Encoded | Dropped]]:
    """The items with samples in another order: each is drawn from those that wait."""
    waiting: list[tuple[int, Encoded]] = []
    total = 0
    for number, item in items:
        if isinstance(item, Dropped):
            yield number, item
            continue
        waiting.append((number, item))
        total += item.size
        while len(waiting) > most or total > most_bytes:
            drawn = rng.randrange(len(waiting))
            waiting[drawn], waiting[-1] = waiting[-1], waiting[drawn]
            number, item = waiting.pop()
            total -= item.size
            yield number, item
    if most:
        rng.shuffle(waiting)
    yield from waiting


def _stem(url: str) -> str:
    return PurePosixPath(url.partition("?")[0]).name.partition(".")[0]


def _labels(shards: list[str]) -> list[str]:
    """A name for each tar, different for all: its stem, and a hash of where it lies when stems are the same."""
    counts = Counter(_stem(url) for url in shards)
    return [_stem(url) if counts[_stem(url)] == 1 else f"{_stem(url)}-{_hash(url)}" for url in shards]


def _record_key(label: str, key: str) -> str:
    """A key without dots and slashes: label and key of the sample, and a hash where these two could be ambiguous."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", f"{label}-{key}")
    if re.fullmatch(r"[A-Za-z0-9_]+", key) and plain == f"{label}-{key}" and len(plain) <= _LONGEST_KEY:
        return plain
    return f"{plain[: _LONGEST_KEY - 17]}-{_hash(label, key)}"


def _hash(*parts: str) -> str:
    return f"{seed_from(*parts):016x}"
