"""Where each sample of a split lies: arrays over all samples, written once, mapped into memory by every reader.

A sample's place is the byte at which its first member's content begins, and for each field of the data set (each member
that is read) the distance from there and the size. A checksum over the fields' bytes finds every flipped bit when the
sample is read. What a sample holds is counted (`Contents`), so that no picture is opened to learn what can be asked.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mentor.data.records import Contents
from mentor.errors import UserError

ABSENT = 0xFFFFFFFF
_VERSION = "1"
_DTYPES = {"U8": np.uint8, "U32": np.uint32, "I64": np.int64}
_COUNTED = ("captions", "objects", "masks", "views")
_ARRAYS: dict[str, type] = {
    **dict.fromkeys(("keys", *_COUNTED), np.uint8),
    **dict.fromkeys(("key_ends", "starts", "counts"), np.int64),
    **dict.fromkeys(("places", "checksums", "tasks"), np.uint32),
}
_MOST_TASKS = 32


@dataclass(frozen=True)
class Place:
    """Where one sample lies in its shard.

    Attributes:
        key: the sample's.
        start: byte at which its first member's content begins.
        fields: field -> (distance from `start`, size), for the fields that the sample has.
        checksum: crc32 of the fields' bytes in the order of the index.
    """

    key: str
    start: int
    fields: Mapping[str, tuple[int, int]]
    checksum: int


@dataclass(frozen=True)
class Counted:
    """What one sample holds: see `Contents`."""

    captions: int = 0
    objects: int = 0
    masks: int = 0
    views: int = 0
    tasks: tuple[str, ...] = ()


class Index:
    """The samples of some shards, in order.

    Attributes:
        fields: names of the members that are read.
        counts: int64, samples in each shard.
        task_names: what the bits of `tasks` stand for.
        arrays: name -> array over all samples; at most 100 bytes a sample besides its key.
    """

    def __init__(
        self, fields: Sequence[str], counts: Sequence[int], task_names: Sequence[str], arrays: Mapping[str, np.ndarray]
    ) -> None:
        self.fields = tuple(fields)
        self.counts = np.asarray(counts, dtype=np.int64)
        self.task_names = tuple(task_names)
        self.arrays = dict(arrays)
        self._first = np.concatenate(([0], np.cumsum(self.counts)))

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def contents(self) -> Contents:
        """What every sample holds."""
        counted = (self.arrays[name] for name in _COUNTED)
        return Contents(*counted, tasks=self.arrays["tasks"], task_names=self.task_names)

    @property
    def bytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def rows(self, shard: int) -> slice:
        """The shard's samples among all."""
        return slice(int(self._first[shard]), int(self._first[shard + 1]))

    def place(self, shard: int, position: int) -> Place:
        """Where a sample lies.

        Raises:
            IndexError: the shard has no such position.
        """
        if not 0 <= position < self.counts[shard]:
            raise IndexError(f"position {position} of shard {shard}, which holds {self.counts[shard]}")
        row = int(self._first[shard]) + position
        ends, starts = self.arrays["key_ends"], self.arrays["starts"]
        key = self.arrays["keys"][ends[row - 1] if row else 0 : ends[row]].tobytes().decode(errors="surrogateescape")
        places = self.arrays["places"][row].tolist()
        fields = {name: (at, size) for name, (at, size) in zip(self.fields, places, strict=True) if size != ABSENT}
        return Place(key, int(starts[row]), fields, int(self.arrays["checksums"][row]))

    def only(self, shard: int) -> "Index":
        """The index of one shard alone, with arrays of its own."""
        rows = self.rows(shard)
        arrays = {name: self.arrays[name][rows].copy() for name in self.arrays if name != "keys"}
        ends = self.arrays["key_ends"]
        first = int(ends[rows.start - 1]) if rows.start else 0
        last = int(ends[rows.stop - 1]) if rows.stop else 0
        arrays["key_ends"] -= first
        arrays["keys"] = self.arrays["keys"][first:last].copy()
        return Index(self.fields, [int(self.counts[shard])], self.task_names, arrays)

    def without(self, shards: Sequence[int]) -> "Index":
        """The index without some shards."""
        return join_indexes([self.only(shard) for shard in range(len(self.counts)) if shard not in set(shards)])

    def keys(self, shard: int) -> list[str]:
        """The keys of a shard's samples."""
        return [self.place(shard, position).key for position in range(int(self.counts[shard]))]


def build_index(fields: Sequence[str], samples: Iterable[tuple[Place, Counted]]) -> Index:
    """The index of one shard's samples."""
    rows = list(samples)
    keys = [place.key.encode(errors="surrogateescape") for place, _ in rows]
    names = sorted({task for _, counted in rows for task in counted.tasks})
    _check_tasks(names)
    places = np.full((len(rows), len(fields), 2), ABSENT, dtype=np.uint32)
    for row, (place, _) in enumerate(rows):
        for column, field in enumerate(fields):
            if field in place.fields:
                places[row, column] = place.fields[field]
    arrays = {
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
        "starts": np.array([place.start for place, _ in rows], dtype=np.int64),
        "places": places,
        "checksums": np.array([place.checksum for place, _ in rows], dtype=np.uint32),
        "tasks": np.array([sum(1 << names.index(task) for task in counted.tasks) for _, counted in rows], np.uint32),
    }
    for name in _COUNTED:
        arrays[name] = np.array([min(getattr(counted, name), 255) for _, counted in rows], dtype=np.uint8)
    return Index(fields, [len(rows)], names, arrays)


def join_indexes(parts: Sequence[Index]) -> Index:
    """One index of all shards, in order.

    Raises:
        ValueError: they have other fields, or too many tasks in all.
    """
    fields = parts[0].fields
    if any(part.fields != fields for part in parts):
        raise ValueError("indexes of different fields cannot be joined")
    names = sorted({name for part in parts for name in part.task_names})
    _check_tasks(names)
    arrays = {
        name: np.concatenate([part.arrays[name] for part in parts])
        for name in parts[0].arrays
        if name not in ("key_ends", "tasks")
    }
    lengths = [len(part.arrays["keys"]) for part in parts]
    shifts = np.cumsum([0, *lengths[:-1]])
    arrays["key_ends"] = np.concatenate(
        [part.arrays["key_ends"] + shift for part, shift in zip(parts, shifts, strict=True)]
    )
    arrays["tasks"] = np.concatenate([_renamed(part, names) for part in parts])
    return Index(fields, np.concatenate([part.counts for part in parts]).tolist(), names, arrays)


def index_bytes(index: Index, more: Mapping[str, Any] | None = None) -> bytes:
    """The index as the content of a safetensors file, the same for the same index; `more` is kept with it as JSON."""
    arrays = {name: np.ascontiguousarray(array) for name, array in index.arrays.items()} | {"counts": index.counts}
    described = {"version": _VERSION, "fields": index.fields, "task_names": index.task_names, **(more or {})}
    return save(arrays, {"mentor": json.dumps(described, sort_keys=True)})


def load_index(path: Path) -> tuple[Index, dict[str, Any]]:
    """The index in a file, its arrays mapped and not read, and what `more` was.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        # The library checks the header; the arrays are then mapped, so that all processes share them.
        with safe_open(path, framework="np") as file:
            described = json.loads((file.metadata() or {})["mentor"])
        arrays = _mapped(path)
        _check(described, arrays)
        index = Index(described["fields"], arrays.pop("counts").tolist(), described["task_names"], arrays)
        return index, {key: value for key, value in described.items() if key not in ("fields", "task_names")}
    except OSError as error:
        raise UserError(f"the index {path} cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"the index {path} is damaged") from None


def checksum(contents: Iterable[bytes]) -> int:
    """The crc32 of some contents one after the other."""
    value = 0
    for content in contents:
        value = zlib.crc32(content, value)
    return value


def _mapped(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        size = os.fstat(file.fileno()).st_size
    raw = np.memmap(path, dtype=np.uint8, mode="r") if size > 8 + length else np.zeros(0, np.uint8)
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            # A plain view: memmap's own type costs time at every access.
            content = np.asarray(raw[first:last]).view(_DTYPES[entry["dtype"]])
            arrays[name] = content.reshape(entry["shape"])
    return arrays


def _check(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Make sure that the arrays are those of an index and fit one another."""
    names = [*described["fields"], *described["task_names"]]
    count = int(arrays["counts"].sum())
    shapes = dict.fromkeys(_ARRAYS, (count,)) | {"places": (count, len(described["fields"]), 2)}
    # How many shards and how many letters there are nothing else tells.
    shapes |= {name: (len(arrays[name]),) for name in ("counts", "keys")}
    fits = described["version"] == _VERSION and all(isinstance(name, str) for name in names)
    fits = fits and {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        name: (np.dtype(dtype), shapes[name]) for name, dtype in _ARRAYS.items()
    }
    fits = fits and arrays["counts"].min(initial=0) >= 0 and len(described["task_names"]) <= _MOST_TASKS
    if not fits or (count and arrays["key_ends"][-1] != len(arrays["keys"])):
        raise ValueError("its parts do not fit")


def _check_tasks(names: Sequence[str]) -> None:
    if len(names) > _MOST_TASKS:
        raise ValueError(f"records name {len(names)} tasks, {_MOST_TASKS} are possible")


def _renamed(part: Index, names: Sequence[str]) -> np.ndarray:
    """The part's task bits under the joint names."""
    bits = part.arrays["tasks"]
    renamed = np.zeros_like(bits)
    for number, name in enumerate(part.task_names):
        renamed |= ((bits >> np.uint32(number)) & np.uint32(1)) << np.uint32(names.index(name))
    return renamed
