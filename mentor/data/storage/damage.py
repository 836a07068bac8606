"""What is wrong with a shard whose bytes are not those that were written: which samples, which members, and how."""

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from mentor.data.storage.decoding import BadSample, Limits, check_structure, decode_array, decode_json, decode_text
from mentor.data.storage.index import Index, Place, checksum
from mentor.data.storage.tars import BLOCK, Member, TarDamage, header, members
from mentor.data.storage.tarsets import split_name

# A run of so many zeros is no picture's and no text's.
_HOLE = 128
# Beyond this size, a flipped bit is not looked for: it takes a second for each 5 MB.
_LARGEST_SEARCH = 16 << 20
# What was written once was within the limits of that time.
_GENEROUS = Limits(text_bytes=2**62, array_bytes=2**62, json_depth=2**30)
_POLYNOMIAL = 0xEDB88320


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a data set.

    Attributes:
        file: path or URL.
        kind: a few fixed words.
        detail: what the single case adds; may be empty.
        sample: key of the damaged sample; empty when the fault is the file's as a whole.
        member: extension of the sample's damaged member; empty when that cannot be told.
    """

    file: str
    kind: str
    detail: str = ""
    sample: str = ""
    member: str = ""

    def __str__(self) -> str:
        where = f"sample {_printable(self.sample)}, " if self.sample else ""
        where += f"{self.member}: " if self.member else ""
        return f"{self.file}: {where}{self.kind}" + (f" ({_printable(self.detail)})" if self.detail else "")


@dataclass(frozen=True)
class Written:
    """The samples that a shard held when it was written.

    Attributes:
        index: where they lie.
        shard: the shard's number in it.
        own: whether this program wrote the shard, so that its headers are known to the byte.
    """

    index: Index
    shard: int
    own: bool

    def __len__(self) -> int:
        return int(self.index.counts[self.shard])

    def places(self) -> Iterator[Place]:
        """Each sample's."""
        return (self.index.place(self.shard, position) for position in range(len(self)))


@dataclass(frozen=True)
class _Walk:
    """How far a tar can be read as one.

    Attributes:
        members: by the byte at which their content begins.
        damage: that ended it; empty if it is whole.
    """

    members: Mapping[int, Member]
    damage: str


def examine_shard(name: str, file: BinaryIO, row: Mapping[str, Any], written: Sequence[Written]) -> list[Fault]:
    """The faults of a shard that is known to be damaged: the first is the file's, the others its samples'.

    Args:
        name: of the shard.
        file: it; local.
        row: of the manifest.
        written: its samples; none if no index is left.
    """
    size = os.fstat(file.fileno()).st_size
    walk = _walk(file)
    kind = "wrong size" if size != row["bytes"] else "changed content"
    found = [f"{size} bytes instead of {row['bytes']}"] if size != row["bytes"] else []
    found += [walk.damage] if walk.damage else []
    if not walk.members and not walk.damage:
        found.append("it holds no member" if size else "it is empty")
    if not written:
        return [Fault(name, kind, "; ".join([*found, "its samples cannot be told without its index"]))]
    faults = [fault for part in written for place in part.places() for fault in _examine(name, file, walk, part, place)]
    hit, count = len({fault.sample for fault in faults}), sum(map(len, written))
    if hit == count and not walk.members:
        # Nothing is left of it: a line for each sample would add nothing.
        return [Fault(name, kind, "; ".join([*found, f"all {count} samples are lost"]))]
    found.append(f"{hit} of {count} samples are damaged" if hit else f"all {count} samples are whole")
    return [Fault(name, kind, "; ".join(found)), *faults]


def read_sample(file: BinaryIO, place: Place) -> dict[str, bytes]:
    """The sample's members as they are now.

    Raises:
        BadSample: the file ends before, or they are not what was written.
    """
    found = {field: _read(file, place.start + at, size) for field, (at, size) in place.fields.items()}
    if any(len(found[field]) != size for field, (_, size) in place.fields.items()):
        raise BadSample("cut off", "the file ends before it")
    if checksum(found.values()) != place.checksum:
        raise BadSample("changed content")
    return found


def check_members(contents: Mapping[str, bytes]) -> None:
    """Make sure that all members are what their fields say, without decoding pictures.

    Raises:
        BadSample: one is not.
    """
    for field, content in contents.items():
        reason = _explain(field, content)
        if reason:
            raise BadSample("damaged sample", f"{field}: {reason}")


def _explain(field: str, content: bytes) -> str:
    """Why a member cannot be what its field says; empty if it can."""
    try:
        match field.rpartition(".")[2]:
            case "json":
                decode_json(content, _GENEROUS)
            case "txt" | "words":
                decode_text(content, _GENEROUS)
            case "npy":
                decode_array(content, _GENEROUS)
            case "png" | "jpg" | "webp" | "image":
                check_structure(content)
    except BadSample as error:
        return str(error)
    return ""


def find_flipped_bit(length: int, syndrome: int) -> int | None:
    """The byte in which a single bit differs, found by the difference of the checksums alone; None if it is not one.

    A checksum is linear: the difference of two is that of a message with nothing but the flipped bits, and says for
    each single bit something else.

    Args:
        length: of the contents in bytes.
        syndrome: crc32 of what was written xor crc32 of what is there.
    """
    singles = {_TABLE[1 << bit] for bit in range(8)}
    value = syndrome
    # Back from the last byte: the state before each zero byte follows from the state after it.
    for byte in range(length - 1, -1, -1):
        if value in singles:
            return byte
        last = _LAST[value >> 24]
        value = ((value ^ _TABLE[last]) << 8 | last) & 0xFFFFFFFF
    return None


def _walk(file: BinaryIO) -> _Walk:
    found: dict[int, Member] = {}
    try:
        for member, _ in members(file):
            found[member.offset] = member
    except TarDamage as error:
        return _Walk(found, str(error))
    return _Walk(found, "")


def _examine(name: str, file: BinaryIO, walk: _Walk, part: Written, place: Place) -> Iterator[Fault]:
    """What is wrong with a sample, member by member."""
    labels = {field: _label(walk, place, field) for field in place.fields}
    contents: dict[str, bytes] = {}
    for field, (at, size) in place.fields.items():
        offset = place.start + at
        contents[field] = _read(file, offset, size)
        if len(contents[field]) < size:
            have = f"{len(contents[field])} of {size} bytes are there" if contents[field] else "nothing of it is there"
            yield Fault(name, "cut off", have, place.key, labels[field])
        if contents[field] or not size:
            fault = _examine_header(file, walk, part, place, field)
            if fault:
                yield Fault(name, "damaged header", f"{fault} at byte {offset - BLOCK}", place.key, labels[field])
    if any(len(contents[field]) < size for field, (_, size) in place.fields.items()):
        return
    now = checksum(contents.values())
    if now == place.checksum:
        return
    found = _locate(contents, now ^ place.checksum, place)
    for field, detail in found.items():
        yield Fault(name, "changed content", detail, place.key, labels[field])
    if not found:
        yield Fault(name, "changed content", f"somewhere in {', '.join(labels.values())}", place.key)


def _label(walk: _Walk, place: Place, field: str) -> str:
    """What a member is called: by its name in the tar, where that can still be read."""
    member = walk.members.get(place.start + place.fields[field][0])
    key, extension = split_name(member.name) if member is not None else ("", "")
    return extension if key == place.key else field


def _examine_header(file: BinaryIO, walk: _Walk, part: Written, place: Place, field: str) -> str:
    """What is wrong with the header before a member; empty if nothing is."""
    at, size = place.fields[field]
    block = _read(file, place.start + at - BLOCK, BLOCK)
    if len(block) < BLOCK:
        return "cut"
    if part.own:
        return "" if block == header(f"{place.key}.{field}", size) else "not as written"
    member = walk.members.get(place.start + at)
    if member is not None:
        key, _ = split_name(member.name)
        return "" if key == place.key and member.size == size and not member.odd else "not as written"
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        return str(error)
    return ""


def _locate(contents: Mapping[str, bytes], syndrome: int, place: Place) -> dict[str, str]:
    """The members that are certainly not as written, and what shows it."""
    length = sum(map(len, contents.values()))
    byte = find_flipped_bit(length, syndrome) if length <= _LARGEST_SEARCH else None
    if byte is not None:
        for field, content in contents.items():
            if byte < len(content):
                return {field: f"one flipped bit in byte {place.start + place.fields[field][0] + byte} of the file"}
            byte -= len(content)
    found = {}
    for field, content in contents.items():
        hole = content.find(bytes(_HOLE))
        reason = _explain(field, content)
        if hole >= 0 and (reason or not content.startswith(b"\x89PNG")):
            length = len(content) - hole - len(content[hole:].lstrip(b"\0"))
            begin = place.start + place.fields[field][0] + hole
            found[field] = f"a hole of {length} zeros at byte {begin} of the file"
        elif reason:
            found[field] = reason
    return found


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    """What is there of `size` bytes at that place; the file's position plays no part."""
    there = os.fstat(file.fileno()).st_size
    if not 0 <= offset < there:
        return b""
    return os.pread(file.fileno(), min(size, there - offset), offset)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _make_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _make_table()
# The first byte of each entry is another: it tells which entry it was.
_LAST = {value >> 24: number for number, value in enumerate(_TABLE)}
