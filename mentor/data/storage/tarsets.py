"""Tars that somebody else wrote: their samples found and indexed where they lie, without rewriting a byte.

A sample is a picture and its words. Its members are adjacent and share the name up to the first dot of its last part,
as WebDataset has it; every other member is passed over unread. What is no whole sample is left out and counted by one
reason:

- A member that comes twice begins another sample of the same key; of samples with one key the first counts.
- Extensions are compared in lower case. Names without an extension belong to no sample, and neither do `__names__`,
  which WebDataset keeps for its own use. Names that are not UTF-8 or lead out of the folder are not accepted.
- A picture must be whole by its structure and within the limits; its pixels are not decoded here.
- Where captions are asked for, there must be one that is not empty, UTF-8 and within the limits.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from pydantic import Field, field_validator

from mentor.config import Config
from mentor.data.records import Record
from mentor.data.storage.decoding import (
    BadSample,
    Limits,
    check_structure,
    decode_image,
    decode_json,
    decode_text,
    peek_image,
)
from mentor.data.storage.index import Counted, Index, Place, build_index, checksum
from mentor.data.storage.tars import Member, members

FIELDS = ("image", "words")
_NOUNS = {"image": "picture", "words": "caption"}


class TarFields(Config):
    """Which members of a sample are its picture and its caption.

    Attributes:
        image: extensions; the first that a sample has is its picture. May be given as "jpg;png".
        caption: an extension of text ("txt"), or a path into a JSON member ("json.caption"), which may also lead to a
            list of captions; empty when there are none.
    """

    image: tuple[str, ...] = Field(default=("jpg", "jpeg", "png", "webp"), min_length=1)
    caption: str = "txt"

    @field_validator("image", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return tuple(value.split(";")) if isinstance(value, str) else value

    @field_validator("image")
    @classmethod
    def _extensions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [extension for extension in value if not re.fullmatch(r"[^./;\s][^/;\s]*", extension)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no extension: write them like jpg;png, without a dot in front")
        return tuple(extension.lower() for extension in value)

    @field_validator("caption")
    @classmethod
    def _caption(cls, value: str) -> str:
        if value == "json" or (value and not re.fullmatch(r"[^./;\s][^/;\s]*[^./;\s]|[^./;\s]", value)):
            raise ValueError("write an extension like txt, a field of a JSON file like json.caption, or nothing")
        return value if value.startswith("json.") else value.lower()

    @property
    def words(self) -> str:
        """Extension of the member that the caption stands in."""
        return "json" if self.caption.startswith("json.") else self.caption

    @property
    def path(self) -> tuple[str, ...]:
        """Names that lead to the caption within a JSON member; none for plain text."""
        return tuple(self.caption.split(".")[1:]) if self.caption.startswith("json.") else ()


@dataclass(frozen=True)
class TarIndex:
    """What is in one tar.

    Attributes:
        bytes: its size.
        sha256: of the file.
        indexes: split -> its samples.
        dropped: samples left out, by reason.
    """

    bytes: int
    sha256: str
    indexes: Mapping[str, Index]
    dropped: Mapping[str, int]


def split_name(name: str) -> tuple[str, str]:
    """The key and the extension of a member: the base name is cut at its first dot, the extension in lower case.

    Both are empty for members that belong to no sample.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or not extension or (name.startswith("__") and name.endswith("__")):
        return "", ""
    return folder + slash + stem, extension.lower()


def index_tar(file: BinaryIO, fields: TarFields, limits: Limits, split_of: Callable[[str], str]) -> TarIndex:
    """The index of a tar, which is read through once.

    Args:
        file: at its beginning; need not be able to seek.
        fields: what is the picture and what the caption.
        limits: samples beyond them are left out and counted.
        split_of: key -> "train" or "heldout".

    Raises:
        TarDamage: the tar is not whole.
    """
    hashed = _Hashing(file)
    rows: dict[str, list[tuple[Place, Counted]]] = {"train": [], "heldout": []}
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for group in _groups(hashed, fields, limits):
        try:
            if group.key in seen:
                raise BadSample("duplicate key")
            seen.add(group.key)
            row = _place(group, fields, limits)
            rows[split_of(group.key)].append(row)
        except BadSample as error:
            dropped[error.reason] += 1
    indexes = {split: build_index(FIELDS, found) for split, found in rows.items()}
    return TarIndex(hashed.position, hashed.sha256.hexdigest(), indexes, dict(sorted(dropped.items())))


def count_repeated_keys(indexes: list[Index]) -> int:
    """How many samples have a key that an earlier one has, told by 64-bit hashes of the keys."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *map(_hash_keys, indexes)])
    return len(hashes) - len(np.unique(hashes))


def read_tar_sample(
    key: str,
    parts: Mapping[str, bytes],
    fields: TarFields,
    limits: Limits,
    fit: int | None = None,
    whole: bool = False,
) -> Record:
    """The record of a sample's picture and words; `fit` and `whole` are those of `decode_image`.

    Raises:
        BadSample: the picture or the words are damaged.
    """
    captions = _captions(parts["words"], fields, limits) if "words" in parts else ()
    return Record(key=key, image=decode_image(parts["image"], limits, fit, whole), captions=captions)


def describe_tar_sample(words: bytes | None, fields: TarFields, limits: Limits) -> dict[str, Any]:
    """A sample's description in the form that records of our own have."""
    captions = [] if words is None else list(_captions(words, fields, limits))
    return {"captions": captions, "objects": [], "views": [], "subject": "", "attributes": {}, "tasks": []}


class _Hashing(io.RawIOBase):
    """A stream that counts and hashes what is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.sha256.update(content)
        self.position += len(content)
        return content


@dataclass
class _Group:
    """Neighbouring members of one key.

    Attributes:
        key: theirs.
        extensions: of all of them.
        parts: extension -> those that are read.
        fault: the first thing that makes it no sample; empty if there is none.
    """

    key: str
    extensions: set[str] = field(default_factory=set)
    parts: dict[str, tuple[Member, bytes]] = field(default_factory=dict)
    fault: str = ""


def _groups(file: BinaryIO | _Hashing, fields: TarFields, limits: Limits) -> Iterator[_Group]:
    """The tar's samples, in order, good ones and bad ones."""
    extensions = {*fields.image, fields.words} - {""}

    def wanted(member: Member) -> bool:
        extension = split_name(member.name)[1]
        return extension in extensions and member.size <= _most(extension, fields, limits)

    current = _Group("")
    for member, content in members(file, wanted):  # pyright: ignore[reportArgumentType]
        key, extension = split_name(member.name)
        if not key:
            continue
        if key != current.key or extension in current.extensions:
            if current.key:
                yield current
            current = _Group(key)
        current.extensions.add(extension)
        current.fault = current.fault or _fault(current, member, limits)
        if extension in extensions:
            noun = _NOUNS["image" if extension in fields.image else "words"]
            if member.odd:
                current.fault = current.fault or f"{noun} is {member.odd}"
            elif len(content) != member.size:
                current.fault = current.fault or f"{noun} too large"
            if not current.fault:
                current.parts[extension] = (member, content)
        if current.fault:
            # What it has is of no use any more.
            current.parts.clear()
    if current.key:
        yield current


def _fault(group: _Group, member: Member, limits: Limits) -> str:
    if len(member.name) > limits.name_length:
        return "name too long"
    if len(group.extensions) > limits.members:
        return "too many members"
    if ".." in group.key.split("/") or group.key.startswith("/"):
        return "name leads out of the folder"
    if any("\ud800" <= letter <= "\udfff" for letter in group.key):
        return "name not UTF-8"
    return ""


def _most(extension: str, fields: TarFields, limits: Limits) -> int:
    return limits.picture_bytes if extension in fields.image else limits.text_bytes


def _place(group: _Group, fields: TarFields, limits: Limits) -> tuple[Place, Counted]:
    parts = group.parts
    if group.fault:
        raise BadSample(group.fault)
    extension = next((extension for extension in fields.image if extension in parts), None)
    if extension is None:
        raise BadSample("no picture")
    chosen = {"image": parts[extension]}
    if fields.words in parts:
        chosen["words"] = parts[fields.words]
    elif fields.words:
        raise BadSample("no caption")
    peek_image(chosen["image"][1], limits)
    check_structure(chosen["image"][1])
    captions = _captions(chosen["words"][1], fields, limits) if "words" in chosen else ()
    if "words" in chosen and not captions:
        raise BadSample("empty caption")
    start = min(member.offset for member, _ in chosen.values())
    places = {name: (chosen[name][0].offset - start, chosen[name][0].size) for name in FIELDS if name in chosen}
    if max(at + size for at, size in places.values()) >= 2**32:
        raise BadSample("members too far apart")
    crc = checksum(chosen[name][1] for name in FIELDS if name in chosen)
    return Place(group.key, start, places, crc), Counted(captions=len(captions))


def _captions(words: bytes, fields: TarFields, limits: Limits) -> tuple[str, ...]:
    """The captions that are not empty.

    Raises:
        BadSample: they cannot be read, or are something else than text.
    """
    if not fields.path:
        found: Any = decode_text(words, limits)
    else:
        found = decode_json(words, limits)
        for name in fields.path:
            found = found.get(name) if isinstance(found, dict) else None
        if found is None:
            raise BadSample("no caption", f"its JSON has no field {'.'.join(fields.path)!r}")
    several = found if isinstance(found, list) else [found]
    if not all(isinstance(caption, str) for caption in several):
        raise BadSample("caption is no text")
    return tuple(caption.strip() for caption in several if caption.strip())


def _hash_keys(index: Index) -> np.ndarray:
    """A hash of every key: the sum of its bytes times one random number for each place."""
    ends = index.arrays["key_ends"]
    if not len(ends):
        return np.zeros(0, np.uint64)
    starts = np.concatenate(([0], ends[:-1]))
    places = np.arange(ends[-1]) - np.repeat(starts, ends - starts)
    factors = np.random.default_rng(0).integers(1, 2**64, int(places.max()) + 1, np.uint64)
    # Unsigned numbers overflow silently, which is what is wanted.
    return np.add.reduceat(index.arrays["keys"].astype(np.uint64) * factors[places], starts)
