"""A split of a data set as its files: which shards there are, where samples lie in them, and their checked bytes."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from mentor.data.records import UnusableSample
from mentor.data.storage.decoding import BadSample
from mentor.data.storage.files import CacheSettings, DataFiles
from mentor.data.storage.index import Index, Place, checksum
from mentor.errors import UserError

_OPEN_FILES = 64
# What lies between a sample's members unasked is read along up to this share; beyond it, members are read singly.
_WASTE = 1.0


class OpenedSplit(ABC):
    """What opened splits of records and of codes have in common.

    Attributes:
        root: the data set's folder or URL.
        split: "train" or "heldout".
        fingerprint: changes when any shard of the data set changes.
        manifest: as in `manifest.json`.
        skipped: shards that are left out because they are missing or have another size.

    Args:
        root: the data set's folder or URL.
        split: "train" or "heldout".
        cache: for files from elsewhere.
        skip_bad: leave missing shards and those of another size out instead of refusing them.

    Raises:
        UserError: the data set is missing, empty, of another kind, or a shard's size is not the manifest's.
    """

    def __init__(self, root: Path | str, split: str, cache: CacheSettings | None, skip_bad: bool) -> None:
        self.root, self.split = root, split
        self._source = DataFiles(root, cache)
        self.manifest = self._source.manifest
        self.fingerprint: str = self.manifest["fingerprint"]
        self._check_kind()
        self._rows = [row for row in self.manifest["files"] if row["split"] == split]
        if not sum(row["samples"] for row in self._rows):
            raise UserError(
                f"the data set in {root} has no {split} samples (it has {self.manifest['samples']}): "
                f"make it with `{self._command}` and a larger limit or share"
            )
        self._index = self._open_index()
        self.skipped: tuple[str, ...] = self._check_shards(skip_bad)
        self._files: dict[int, int] = {}

    @property
    def index(self) -> Index:
        """Where the samples lie."""
        return self._index

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
    @abstractmethod
    def _command(self) -> str:
        """What makes the data set again."""

    @abstractmethod
    def _check_kind(self) -> None:
        """Refuse a data set of another kind."""

    def _open_index(self) -> Index:
        row = next((row for row in self.manifest["indexes"] if row["split"] == self.split), None)
        index = None if row is None else self._source.index(row)
        if index is None or index.counts.tolist() != [row["samples"] for row in self._rows]:
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
        names = tuple(self._source.name(self._rows[number]) for number in bad)
        if bad and len(bad) == len(self._rows):
            raise UserError(f"every {self.split} shard of {self.root} is missing or damaged, {names[0]} among them")
        if bad:
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

    def _members(self, shard: int, place: Place) -> dict[str, bytes]:
        """A sample's members, compared with their checksum.

        Raises:
            BadSample: they cannot be read or are not those that were written.
        """
        places = place.fields.values()
        needed = sum([size for _, size in places])
        length = max([at + size for at, size in places], default=0)
        if length <= needed * (1 + _WASTE) + 16_384:
            span = self._read(shard, place.start, length)
            members = {name: span[at : at + size] for name, (at, size) in place.fields.items()}
        else:
            members = {name: self._field(shard, place, name) for name in place.fields}
        if checksum(members.values()) != place.checksum:
            raise BadSample("checksum differs", "its bytes are not those that were indexed")
        return members

    def _field(self, shard: int, place: Place, name: str) -> bytes:
        distance, size = place.fields[name]
        return self._read(shard, place.start + distance, size)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if not 0 <= offset <= offset + size <= self._rows[shard]["bytes"]:
            raise BadSample("truncated shard", "it lies beyond the end of the shard")
        try:
            if shard not in self._files:
                if len(self._files) >= _OPEN_FILES:
                    os.close(self._files.pop(next(iter(self._files))))
                self._files[shard] = self._source.open(self._rows[shard])
            # pread has no file position, so a descriptor inherited by a forked worker is safe to use.
            content = os.pread(self._files[shard], size, offset)
        except OSError as error:
            raise BadSample("unreadable shard", error.strerror or str(error)) from None
        if len(content) != size:
            raise BadSample("truncated shard", "the file ends before it")
        return content
