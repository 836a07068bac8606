"""One shard from its samples: a plain tar that appears whole or not at all, and what is known of it, beside it."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mentor.data.records import Dropped, Record
from mentor.data.storage.encoding import Layout, encode_record
from mentor.data.storage.index import Counted, Index, Place, build_index, checksum, index_bytes, load_index
from mentor.data.storage.tars import BLOCK, header
from mentor.data.storage.whole import PARTIAL, whole_file
from mentor.errors import UserError

WORK = ".work"
# An archive ends with two blocks of zeros and is filled up to a whole record, as Python's tarfile and GNU tar do.
_RECORD = 20 * BLOCK


@dataclass(frozen=True)
class Sample:
    """What goes into a shard.

    Attributes:
        key: of all members.
        members: extension -> content, in the order of the extensions.
        counted: what the sample holds.
    """

    key: str
    members: Mapping[str, bytes]
    counted: Counted


@dataclass(frozen=True)
class Shard:
    """A shard that has been written.

    Attributes:
        path: below the data set's folder, `train/000000.tar`.
        split: that its samples belong to.
        bytes: its size; 0 when every sample was dropped and there is no file.
        sha256: of the file.
        index: of its samples.
        dropped: how many of its items became no sample, or lost something, by reason.
    """

    path: str
    split: str
    bytes: int
    sha256: str
    index: Index
    dropped: Mapping[str, int]

    @property
    def samples(self) -> int:
        """How many it holds."""
        return len(self.index)


def sample_of(record: Record, layout: Layout) -> Sample:
    """The record as a sample.

    Raises:
        ValueError: it breaks the schema.
    """
    return Sample(record.key, encode_record(record, layout), count_record(record))


def count_record(record: Record) -> Counted:
    """What the record holds."""
    masks = sum(thing.mask is not None for thing in record.objects)
    return Counted(len(record.captions), len(record.objects), masks, len(record.views), record.tasks)


def write_shard(root: Path, path: str, split: str, samples: Iterable[Sample | Dropped], fields: Sequence[str]) -> Shard:
    """The shard now at `root/path`, which appears whole or not at all, with its description in the work folder.

    Raises:
        UserError: the file cannot be written.
        ValueError: a sample's members are not the fields.
    """
    target = root / path
    partial = target.with_name(target.name + PARTIAL)
    dropped: Counter[str] = Counter()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            output = _Hashed(file)
            index = build_index(fields, _written(output, samples, fields, dropped))
            output.write(bytes(2 * BLOCK + -(output.position + 2 * BLOCK) % _RECORD))
            file.flush()
            os.fsync(file.fileno())
        size = output.position if len(index) else 0
        digest = output.sha256.hexdigest() if size else ""
        shard = Shard(path, split, size, digest, index, dict(sorted(dropped.items())))
        if size:
            os.replace(partial, target)
        else:
            partial.unlink()
        save_shard(root, shard)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {target} ({error.strerror}): choose another output=DIR or make room") from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return shard


def save_shard(root: Path, shard: Shard) -> None:
    """Note in the work folder that the shard is finished, so that an interrupted build goes on after it.

    Raises:
        OSError: the note cannot be written.
    """
    more = {"path": shard.path, "bytes": shard.bytes, "sha256": shard.sha256, "dropped": dict(shard.dropped)}
    write_whole(_note(root, shard.path, shard.split), index_bytes(shard.index, more))


def load_shard(root: Path, path: str, split: str) -> Shard | None:
    """What an earlier start of the same build has noted of that shard; None if it has not finished it."""
    note = _note(root, path, split)
    if not note.exists():
        return None
    index, more = load_index(note)
    return Shard(path, split, more["bytes"], more["sha256"], index, more["dropped"])


def write_whole(target: Path, content: bytes) -> None:
    """Put content into a file, which appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(target) as file:
        file.write(content)


class _Hashed:
    """Writes, counts and hashes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.position = 0

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self.sha256.update(content)
        self.position += len(content)


def _written(
    output: _Hashed, samples: Iterable[Sample | Dropped], fields: Sequence[str], dropped: Counter[str]
) -> Iterator[tuple[Place, Counted]]:
    """Write the samples one after the other; where each lies."""
    for sample in samples:
        if isinstance(sample, Dropped):
            dropped[sample.reason] += 1
            continue
        if tuple(sample.members) != tuple(fields):
            raise ValueError(f"sample {sample.key} has the members {list(sample.members)}, not {list(fields)}")
        start = output.position + BLOCK
        parts: list[bytes] = []
        places: dict[str, tuple[int, int]] = {}
        at = 0
        for name, content in sample.members.items():
            padding = -len(content) % BLOCK
            parts += [header(f"{sample.key}.{name}", len(content)), content, bytes(padding)]
            places[name] = (at, len(content))
            at += len(content) + padding + BLOCK
        output.write(b"".join(parts))
        yield Place(sample.key, start, places, checksum(sample.members.values())), sample.counted


def _note(root: Path, path: str, split: str) -> Path:
    return root / WORK / f"{split}-{hashlib.sha256(path.encode()).hexdigest()[:16]}.index"
