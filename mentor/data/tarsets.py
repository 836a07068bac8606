"""Tars that somebody else wrote: their samples found and indexed where they lie, without rewriting a byte.

A sample is a picture and its words. Its members are adjacent and share the name up to the first dot, as WebDataset has
it; every other member is passed over unread.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydantic import Field

from mentor.config import Config
from mentor.data.decoding import BadSample, Limits, decode_image, decode_json, decode_text, peek_image
from mentor.data.index import Counted, Index, Place, build_index, checksum
from mentor.data.records import Record
from mentor.data.tars import Member, members

FIELDS = ("image", "words")


class TarFields(Config):
    """Which members of a sample are its picture and its caption.

    Attributes:
        image: extensions; the first that a sample has is its picture.
        caption: an extension of text ("txt"), or a path into a JSON member ("json.caption"), which may also lead to a
            list of captions; empty when there are none.
    """

    image: tuple[str, ...] = Field(default=("jpg", "jpeg", "png", "webp"), min_length=1)
    caption: str = "txt"

    @property
    def words(self) -> str:
        """Extension of the member that the caption stands in."""
        return self.caption.partition(".")[0]


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
    """The key and the extension of a member: the base name is cut at its first dot, the extension in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
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
    for key, parts in _samples(hashed, fields, limits, dropped):
        if key in seen:
            dropped["duplicate key"] += 1
            continue
        seen.add(key)
        try:
            rows[split_of(key)].append(_place(key, parts, fields, limits))
        except BadSample as error:
            dropped[error.reason] += 1
    indexes = {split: build_index(FIELDS, found) for split, found in rows.items()}
    return TarIndex(hashed.position, hashed.sha256.hexdigest(), indexes, dict(sorted(dropped.items())))


def read_tar_sample(key: str, parts: Mapping[str, bytes], fields: TarFields, limits: Limits) -> Record:
    """The record of a sample's picture and words.

    Raises:
        BadSample: the picture or the words are damaged.
    """
    captions = _captions(parts["words"], fields, limits) if "words" in parts else ()
    return Record(key=key, image=decode_image(parts["image"], limits), captions=captions)


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


def _samples(
    file: BinaryIO | _Hashing, fields: TarFields, limits: Limits, dropped: Counter[str]
) -> Iterator[tuple[str, dict[str, tuple[Member, bytes]]]]:
    """Key and read members of every sample, in order."""

    def wanted(member: Member) -> bool:
        extension = split_name(member.name)[1]
        if extension in fields.image:
            return member.size <= limits.picture_bytes
        return extension == fields.words and member.size <= limits.text_bytes

    current, parts = "", {}
    for member, content in members(file, wanted):  # pyright: ignore[reportArgumentType]
        key, extension = split_name(member.name)
        if len(member.name) > limits.name_length:
            dropped["name too long"] += 1
            continue
        if key != current:
            if parts:
                yield current, parts
            current, parts = key, {}
        if member.odd:
            dropped[f"member is {member.odd}"] += 1
        elif extension in fields.image or extension == fields.words:
            parts.setdefault(extension, (member, content))
    if parts:
        yield current, parts


def _place(
    key: str, parts: Mapping[str, tuple[Member, bytes]], fields: TarFields, limits: Limits
) -> tuple[Place, Counted]:
    name = next((name for name in fields.image if name in parts), None)
    if name is None:
        raise BadSample("no picture", f"it has {', '.join(parts)}")
    chosen = {"image": parts[name]}
    if fields.words in parts:
        chosen["words"] = parts[fields.words]
    for field, (member, content) in chosen.items():
        if len(content) != member.size:
            raise BadSample("picture too large" if field == "image" else "text too large", f"{member.size} bytes")
    peek_image(chosen["image"][1], limits)
    captions = _captions(chosen["words"][1], fields, limits) if "words" in chosen else ()
    if fields.caption and not captions:
        raise BadSample("no caption", "")
    start = min(member.offset for member, _ in chosen.values())
    places = {field: (chosen[field][0].offset - start, chosen[field][0].size) for field in FIELDS if field in chosen}
    if max(at + size for at, size in places.values()) >= 2**32:
        raise BadSample("members too far apart", "")
    crc = checksum(chosen[field][1] for field in FIELDS if field in chosen)
    return Place(key, start, places, crc), Counted(captions=len(captions))


def _captions(words: bytes, fields: TarFields, limits: Limits) -> tuple[str, ...]:
    extension, _, path = fields.caption.partition(".")
    if extension != "json":
        found: Any = decode_text(words, limits)
    else:
        found = decode_json(words, limits)
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    several = found if isinstance(found, list) else [found]
    return tuple(caption.strip() for caption in several if isinstance(caption, str) and caption.strip())
