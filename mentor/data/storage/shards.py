"""A split of a data set, opened: its records at random, each checked against the checksum of its bytes."""

from pathlib import Path
from typing import Any

from mentor.config import validate
from mentor.data.records import Contents, Record, UnusableSample
from mentor.data.storage.decoding import LIMITS, BadSample, Limits
from mentor.data.storage.encoding import decode_description, decode_record
from mentor.data.storage.files import CacheSettings
from mentor.data.storage.opened import OpenedSplit
from mentor.data.storage.tarsets import TarFields, describe_tar_sample, read_tar_sample
from mentor.errors import UserError


class ShardSet(OpenedSplit):
    """One split of a data set of pictures, opened: its records by shard and position.

    Attributes:
        counts: records in each shard.

    Args:
        root: the data set's folder or URL.
        split: "train" or "heldout".
        cache: for files from elsewhere.
        skip_bad: leave missing shards and those of another size out instead of refusing them.
        limits: what a picture may be at most.
        fit: the side to which pictures will be shrunk: a large JPEG may then be decoded at a part of its size.

    Raises:
        UserError: the data set is missing, empty, of codes, or a shard's size is not the manifest's.
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
        super().__init__(root, split, cache, skip_bad)
        self._limits, self._fit = limits, fit
        self.counts: tuple[int, ...] = tuple(self._index.counts.tolist())
        self._tar_fields: TarFields | None = None
        if self.manifest["kind"] == "tars":
            self._tar_fields = validate(TarFields, self.manifest["layout"])

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def contents(self) -> Contents:
        """What every record holds, in the shards' order."""
        return self._index.contents

    def record(self, shard: int, position: int) -> Record:
        """The record at a position of a shard.

        Raises:
            UnusableSample: it cannot be read; the message names the shard and the record's key.
        """
        place = self._index.place(shard, position)
        # Its checksum says that the bytes are those which were looked at when they were written or indexed.
        settings = (self._limits, self._fit, True)
        try:
            members = self._members(shard, place)
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

    @property
    def _command(self) -> str:
        return f"python tools/make_shards.py {self.manifest['recipe'].get('name', 'RECIPE')} output={self.root}"

    def _check_kind(self) -> None:
        if self.manifest["kind"] == "codes":
            raise UserError(f"{self.root} holds image codes, not pictures: give the data set they were made from")
