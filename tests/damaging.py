"""Data sets that can be damaged in places one can name, and what is found and read of them then."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mentor.data.records import Record, UnusableSample
from mentor.data.storage.damage import Fault
from mentor.data.storage.encoding import Layout
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.verifying import verify

LAYOUT = Layout(picture="jpg", masks=False, views=False)
DAMAGED = "train/000001.tar"


def make_record(number: int) -> Record:
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize((72, 64), Image.Resampling.BICUBIC))
    return Record(f"record-{number:04d}", image, (f"a caption of some length, number {number}",))


class Shard:
    """A shard that can be damaged in places one can name."""

    def __init__(self, root: Path, path: str = DAMAGED) -> None:
        self.root, self.path = root, root / path
        self.content = bytearray(self.path.read_bytes())
        manifest = json.loads((root / "manifest.json").read_text())
        self.own = manifest["kind"] == "records"
        self.rows = [row for row in manifest["files"] if row["path"] == path]
        self.places = []
        for row in self.rows:
            shards = ShardSet(root, row["split"])
            shard = [one["path"] for one in manifest["files"] if one["split"] == row["split"]].index(path)
            self.places += [shards.index.place(shard, position) for position in range(row["samples"])]
        self.places.sort(key=lambda place: place.start)

    @property
    def keys(self) -> list[str]:
        return [place.key for place in self.places]

    def field(self, extension: str) -> str:
        return extension if self.own else {"jpg": "image", "txt": "words"}[extension]

    def at(self, sample: int, extension: str) -> int:
        """Where a member's content begins."""
        place = self.places[sample]
        return place.start + place.fields[self.field(extension)][0]

    def size(self, sample: int, extension: str) -> int:
        return self.places[sample].fields[self.field(extension)][1]

    def flip(self, byte: int, bit: int = 3) -> None:
        self.content[byte] ^= 1 << bit

    def fill(self, start: int, length: int) -> None:
        self.content[start : start + length] = bytes(length)

    def save(self) -> None:
        self.path.write_bytes(self.content)


def check(root: Path, **settings: object) -> list[tuple[str, str, str, str]]:
    """The faults without their details."""
    faults = verify(root, **settings)
    return [(os.path.relpath(fault.file, root), fault.kind, fault.sample, fault.member) for fault in faults]


def read_all(root: Path, **settings: object) -> tuple[dict[str, Record], dict[str, UnusableSample]]:
    """What training gets of a data set, and what it is told it cannot get."""
    good: dict[str, Record] = {}
    bad: dict[str, UnusableSample] = {}
    for split in ("train", "heldout"):
        shards = ShardSet(root, split, **settings)
        for shard, count in enumerate(shards.counts):
            for position in range(count):
                try:
                    record = shards.record(shard, position)
                    good[record.key] = record
                except UnusableSample as error:
                    bad[shards.key(shard, position)] = error
                    named = (error.key, error.shard) == (shards.key(shard, position), shards.shard_name(shard))
                    if not named or error.key not in str(error) or error.shard not in str(error):
                        pytest.fail(f"{error} does not name its sample")
    return good, bad


def assert_right(pristine: Path, good: dict[str, Record]) -> None:
    truth, _ = read_all(pristine)
    for key, record in good.items():
        assert record.captions == truth[key].captions and np.array_equal(record.image, truth[key].image)


def only(lines: Sequence[Fault]) -> Fault:
    (fault,) = lines
    return fault
