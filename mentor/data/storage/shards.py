"""A split of a data set, opened: its records at random, each checked against the checksum of its bytes."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mentor.config import validate
from mentor.data.records import Contents, Record, UnusableSample
from mentor.data.storage.decoding import LIMITS, BadSample, Limits
from mentor.data.storage.encoding import decode_description, decode_record
from mentor.data.storage.files import CacheSettings, DataFiles
from mentor.data.storage.index import Index, Place, checksum
from mentor.data.storage.tarsets import TarFields, describe_tar_sample, read_tar_sample
from mentor.errors import UserError

_OPEN_FILES = 64
# What lies between a sample's members unasked is read along up to this share; beyond it, members are read singly.
_WASTE = 1.0


class ShardSet:
    """One split of a data set, opened: its records by shard and position.

    Attributes:
        root: the data set's folder or URL.
        split: "train" or "heldout".
        counts: records in each shard.
        contents: what every record holds, in the shards' order.
        fingerprint: changes when any shard of the data set changes.
        manifest: as in `manifest.json`.
        skipped: shards that are left out because they are missing or have another size.

    Args:
        root: the data set's folder or URL.
        split: "train" or "heldout".
        cache: for files from elsewhere.
        skip_bad: leave missing shards and those of another size out instead of refusing them.
        limits: what a picture may be at most.
        fit: the side to which pictures will be shrunk: a large JPEG may then be decoded at a part of its size.

    Raises:
        UserError: the data set is missing, empty, or a shard's size is not the manifest's.
    """

    def __init__(
        self,
        root: Path | str,
        split: str,
        cache: CacheSettings | None = None,
        skip_bad: bool = False,
        limits: Limits = LIMITS,
        fit: int | None = None,
    ):
        self.root = root
        self.split = split
        self._source = DataFiles(root, cache)
        self._limits, self._fit = limits, fit
        self.manifest = self._source.manifest
        self.fingerprint: str = self.manifest["fingerprint"]
        if self.manifest["kind"] == "codes":
            raise UserError(f"{root} holds image codes, not pictures: give the data set that they were made from")
        self._rows = [row for row in self.manifest["files"] if row["split"] == split]
        if not sum(row["samples"] for row in self._rows):
            raise UserError(
                f"the data set in {root} has no {split} samples (it has {self.manifest['samples']}): "
                f"make it with `{self._command}` and a larger limit or share"
            )
        self._index = self._open_index()
        self.skipped: tuple[str, ...] = self._check_shards(skip_bad)
        self.counts: tuple[int, ...] = tuple(self._index.counts.tolist())
        self._files: dict[int, int] = {}
        self._tar_fields: TarFields | None = None
        if self.manifest["kind"] == "tars":
            self._tar_fields = validate(TarFields, self.manifest["layout"])

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def contents(self) -> Contents:
        """What every record holds, in the shards' order."""
        return self._index.contents

    @property
    def index(self) -> Index:
        """Where the samples lie."""
        return self._index

    def record(self, shard: int, position: int) -> Record:
        """The record at a position of a shard.

        Raises:
            UnusableSample: it cannot be read; the message names the shard and the record's key.
        """
        place, members = self._sample(shard, position)
        # Its checksum says that the bytes are those which were looked at when they were written or indexed.
        settings = (self._limits, self._fit, True)
        try:
            if self._tar_fields is not None:
                return read_tar_sample(place.key, members, self._tar_fields, *settings)
            return decode_record(place.key, members, *settings)
        except BadSample as error:
            raise self._damage(shard, place.key, error) from None

    def description(self, shard: int, position: int) -> dict[str, Any]:
        """The words of a record without its pictures, which are quick to read.

        Raises:
            UnusableSample: they cannot be read.
        """
        place = self._index.place(shard, position)
        try:
            if self._tar_fields is not None:
                words = self._field(shard, place, "words") if "words" in place.fields else None
                return describe_tar_sample(words, self._tar_fields, self._limits)
            return decode_description(self._field(shard, place, "json"))
        except BadSample as error:
            raise self._damage(shard, place.key, error) from None

    def key(self, shard: int, position: int) -> str:
        """The key of a record."""
        return self._index.place(shard, position).key

    def shard_name(self, shard: int) -> str:
        """What messages call a shard: its path or URL."""
        return self._source.name(self._rows[shard])

    def captions(self, limit: int) -> list[str]:
        """Up to `limit` captions, all those of the first record, then of the second, and so on, but damaged ones."""
        captions: list[str] = []
        for shard, count in enumerate(self.counts):
            for position in range(count):
                if len(captions) >= limit:
                    return captions[:limit]
                try:
                    captions.extend(self.description(shard, position)["captions"])
                except UnusableSample:
                    continue
        return captions[:limit]

    def digests(self) -> Iterator[tuple[int, bool]]:
        """Each shard, and whether its sha256 is the manifest's."""
        for shard, row in enumerate(self._rows):
            with os.fdopen(self._source.open(row), "rb") as file:
                yield shard, hashlib.file_digest(file, "sha256").hexdigest() == row["sha256"]

    def close(self) -> None:
        """Close the shards' files; they open again when needed."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    @property
    def _command(self) -> str:
        return f"python tools/make_shards.py {self.manifest['recipe'].get('name', 'RECIPE')} output={self.root}"

    def _open_index(self) -> Index:
        row = next((row for row in self.manifest["indexes"] if row["split"] == self.split), None)
        if row is None:
            raise UserError(f"the manifest of {self.root} names no index for {self.split}: run `{self._command}`")
        index = self._source.index(row)
        if index.counts.tolist() != [row["samples"] for row in self._rows]:
            raise UserError(f"the index of {self.root} does not fit its manifest: run `{self._command}`")
        return index

    def _check_shards(self, skip_bad: bool) -> tuple[str, ...]:
        """Refuse, or leave out, local shards that are missing or have another size; the names of those left out."""
        bad = []
        for number, row in enumerate(self._rows):
            fault = self._source.fault(row)
            if fault and not skip_bad:
                raise UserError(
                    f"shard {self._source.name(row)} {fault}: run `{self._command}` to make it again, "
                    "or leave such shards out with data.skip_bad_shards=true"
                )
            if fault:
                bad.append(number)
        if not bad:
            return ()
        names = tuple(self._source.name(self._rows[number]) for number in bad)
        if len(bad) == len(self._rows):
            raise UserError(f"every {self.split} shard of {self.root} is missing or damaged, {names[0]} among them")
        self._index = self._index.without(bad)
        self._rows = [row for number, row in enumerate(self._rows) if number not in bad]
        return names

    def _damage(self, shard: int, key: str, error: BadSample) -> UnusableSample:
        name = self._source.name(self._rows[shard])
        return UnusableSample(
            f"shard {name} is damaged (sample {key}: {error}): make it again with `{self._command}`, "
            f"or see `python tools/make_shards.py verify {self.root}`",
            name,
            key,
            error.reason,
        )

    def _sample(self, shard: int, position: int) -> tuple[Place, dict[str, bytes]]:
        """A sample's members, checked."""
        place = self._index.place(shard, position)
        places = place.fields.values()
        needed = sum([size for _, size in places])
        length = max([at + size for at, size in places], default=0)
        try:
            if length <= needed * (1 + _WASTE) + 16_384:
                span = self._read(shard, place.start, length)
                members = {name: span[at : at + size] for name, (at, size) in place.fields.items()}
            else:
                members = {name: self._read(shard, place.start + at, size) for name, (at, size) in place.fields.items()}
            if checksum(members.values()) != place.checksum:
                raise BadSample("checksum differs", "its bytes are not those that were indexed")
        except BadSample as error:
            raise self._damage(shard, place.key, error) from None
        return place, members

    def _field(self, shard: int, place: Place, name: str) -> bytes:
        distance, size = place.fields[name]
        return self._read(shard, place.start + distance, size)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            try:
                self._files[shard] = self._source.open(self._rows[shard])
            except OSError as error:
                raise BadSample("unreadable shard", error.strerror or str(error)) from None
        if not 0 <= offset <= offset + size <= self._rows[shard]["bytes"]:
            raise BadSample("truncated shard", "it lies beyond the end of the shard")
        # pread has no file position, so a descriptor inherited by a forked worker is safe to use.
        content = os.pread(self._files[shard], size, offset)
        if len(content) != size:
            raise BadSample("truncated shard", "the file ends before it")
        return content
