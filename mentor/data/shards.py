"""Shards on disk: tar files with a manifest beside them, written whole or not at all, read at random."""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from mentor import __version__
from mentor.data.encoding import MEMBERS, decode_description, decode_record, encode_record
from mentor.data.records import SCHEMA_VERSION, Record
from mentor.errors import UserError

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
SPLITS = ("train", "heldout")

_PARTIAL = ".partial"
_OPEN_FILES = 64


def shard_path(split: str, index: int) -> str:
    """Where a shard lies below the data set's folder: `train/000000.tar`."""
    return f"{split}/{index:06d}.tar"


def write_shard(root: Path, path: str, records: Iterable[Record]) -> int:
    """The number of records now in the shard `root/path`, which appears whole or not at all.

    Raises:
        UserError: the file cannot be written.
        ValueError: a record breaks the schema.
    """
    target = root / path
    partial = target.with_name(target.name + _PARTIAL)
    count = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            with TarWriter(file, encoder=False, mtime=0) as writer:
                for record in records:
                    writer.write({"__key__": record.key, **encode_record(record)})
                    count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {target} ({error.strerror}): choose another output=DIR or make room") from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return count


def identity(recipe_resolved: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """What decides a data set's bytes: two builds with the same identity are the same data set."""
    described = {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "recipe": dict(recipe_resolved),
        "inputs": dict(inputs),
    }
    return json.loads(json.dumps(described))


def begin(output: Path, what: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest if `output` already holds exactly this data set; else None, and the folder is ready to be filled.

    A folder in which the same build was interrupted is ready too: shards under their final names are whole. A finished
    one with damaged shards loses those.

    Raises:
        UserError: the folder holds something else or cannot be written.
    """
    try:
        entries = {entry.name for entry in output.iterdir()} if output.exists() else set()
        if MANIFEST in entries:
            manifest = read_manifest(output)
            if {key: manifest.get(key) for key in what} != what:
                raise UserError(
                    f"{output} already holds another data set (recipe {manifest['recipe'].get('name', '?')}, "
                    "or the same with other settings): choose another output=DIR or delete that folder"
                )
            broken = [row for row in manifest["files"] if not _is_whole(output, row)]
            if not broken:
                (output / UNFINISHED).unlink(missing_ok=True)
                return manifest
            for row in broken:
                (output / row["path"]).unlink(missing_ok=True)
        elif UNFINISHED in entries:
            if json.loads((output / UNFINISHED).read_text(encoding="utf-8")) != what:
                raise UserError(
                    f"{output} holds an unfinished build with other settings: "
                    "run make_shards.py again with those, choose another output=DIR or delete that folder"
                )
        elif entries:
            raise UserError(f"{output} is not empty and holds no data set: choose another output=DIR")
        output.mkdir(parents=True, exist_ok=True)
        for leftover in output.glob(f"*/*{_PARTIAL}"):
            leftover.unlink()
        _write_json(output / UNFINISHED, what)
        (output / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output} ({error.strerror}): choose another output=DIR") from None
    except json.JSONDecodeError:
        raise UserError(f"{output / UNFINISHED} is damaged: delete {output} and make the shards again") from None
    return None


def finish(output: Path, what: Mapping[str, Any], samples: Mapping[str, int]) -> dict[str, Any]:
    """The manifest, written last: from now on the folder is a data set.

    Args:
        output: the data set's folder.
        what: its `identity`.
        samples: records in each shard, by the shard's path.
    """
    files = []
    for path, count in samples.items():
        digest, size = _digest(output / path)
        files.append({"path": path, "split": path.partition("/")[0], "bytes": size, "sha256": digest, "samples": count})
    lines = "".join(f"{row['path']} {row['sha256']} {row['samples']}\n" for row in files)
    manifest = {
        **what,
        "samples": {split: sum(row["samples"] for row in files if row["split"] == split) for split in SPLITS},
        "fingerprint": hashlib.sha256(lines.encode()).hexdigest(),
        "files": files,
    }
    try:
        _write_json(output / MANIFEST, manifest)
        (output / UNFINISHED).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output / MANIFEST} ({error.strerror}): make room and run again") from None
    return manifest


def write_dataset(
    recipe_resolved: Mapping[str, Any], records: Iterable[tuple[str, Record]], output: Path, samples_per_shard: int
) -> dict[str, Any]:
    """The manifest of the data set now in `output`, made of (split, record) pairs in their order.

    Raises:
        UserError: there is no record, or the folder cannot be written or holds something else.
    """
    what = identity(recipe_resolved, {})
    begin(output, what)
    samples: dict[str, int] = {}
    waiting: dict[str, list[Record]] = {split: [] for split in SPLITS}

    def flush(split: str) -> None:
        path = shard_path(split, sum(known.startswith(f"{split}/") for known in samples))
        samples[path] = write_shard(output, path, waiting[split])
        waiting[split] = []

    for split, record in records:
        waiting[split].append(record)
        if len(waiting[split]) == samples_per_shard:
            flush(split)
    for split in SPLITS:
        if waiting[split]:
            flush(split)
    if not samples:
        raise UserError("there are no records to write: check the recipe's sources and counts")
    ordered = {path: samples[path] for split in SPLITS for path in sorted(samples) if path.startswith(f"{split}/")}
    return finish(output, what, ordered)


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of the data set in `root`.

    Raises:
        UserError: there is none, or it is damaged or of another schema.
    """
    command = f"python tools/make_shards.py RECIPE output={root}"
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        assert manifest["recipe"] is not None and manifest["fingerprint"]
        assert all(row.keys() >= {"path", "split", "bytes", "sha256", "samples"} for row in manifest["files"])
    except OSError:
        state = "its making was interrupted" if (root / UNFINISHED).exists() else "there is no manifest.json"
        raise UserError(f"no shards in {root} ({state}): make them with `{command}`") from None
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise UserError(f"{root / MANIFEST} is damaged: delete {root} and run `{command}`") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"the shards in {root} have schema version {version}, this program reads {SCHEMA_VERSION}: "
            f"make them again with `{command}`"
        )
    return manifest


class ShardSet:
    """One split of a data set, opened: its records by shard and position.

    Attributes:
        root: the data set's folder.
        split: "train" or "heldout".
        counts: records in each shard.
        fingerprint: changes when any shard of the data set changes.
        manifest: as in `manifest.json`.

    Raises:
        UserError: the data set is missing, empty, or a shard's size is not the manifest's.
    """

    def __init__(self, root: Path | str, split: str):
        self.root = Path(root)
        self.split = split
        self.manifest = read_manifest(self.root)
        self.fingerprint: str = self.manifest["fingerprint"]
        self._rows = [row for row in self.manifest["files"] if row["split"] == split]
        self.counts: tuple[int, ...] = tuple(row["samples"] for row in self._rows)
        if not sum(self.counts):
            raise UserError(
                f"the data set in {self.root} has no {split} samples (it has {self.manifest['samples']}): "
                f"make it with `{self._command}` and a larger limit or share"
            )
        for row in self._rows:
            self._check_size(row)
        self._index: dict[int, list[tuple[str, dict[str, tuple[int, int]]]]] = {}
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(self.counts)

    def record(self, shard: int, position: int) -> Record:
        """The record at a position of a shard.

        Raises:
            UserError: the shard is damaged; the message names it and the record's key.
        """
        key, places = self._sample(shard, position)
        try:
            return decode_record(key, {name: self._read(shard, place) for name, place in places.items()})
        except ValueError as error:
            raise self._damage(shard, f"sample {key}: {error}") from None

    def captions(self, limit: int) -> list[str]:
        """Up to `limit` captions, all those of the first record, then of the second, and so on."""
        captions: list[str] = []
        for shard, count in enumerate(self.counts):
            for position in range(count):
                if len(captions) >= limit:
                    return captions[:limit]
                captions.extend(self.description(shard, position)["captions"])
        return captions[:limit]

    def description(self, shard: int, position: int) -> dict[str, Any]:
        """The words of a record without its pictures, as in its JSON member, which is quick to read."""
        key, places = self._sample(shard, position)
        try:
            return decode_description(self._read(shard, places["json"]))
        except ValueError as error:
            raise self._damage(shard, f"sample {key}: {error}") from None

    def verify(self) -> None:
        """Compare every shard's sha256 with the manifest.

        Raises:
            UserError: one differs.
        """
        for shard, row in enumerate(self._rows):
            if _digest(self.root / row["path"])[0] != row["sha256"]:
                raise self._damage(shard, "its sha256 is not the manifest's")

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

    def _check_size(self, row: Mapping[str, Any]) -> None:
        path = self.root / row["path"]
        size = path.stat().st_size if path.is_file() else None
        if size != row["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes instead of {row['bytes']}"
            raise UserError(f"shard {path} {state}: delete {self.root} and run `{self._command}`")

    def _damage(self, shard: int, what: str) -> UserError:
        path = self.root / self._rows[shard]["path"]
        return UserError(f"shard {path} is damaged ({what}): delete {self.root} and run `{self._command}`")

    def _sample(self, shard: int, position: int) -> tuple[str, dict[str, tuple[int, int]]]:
        if not 0 <= position < self.counts[shard]:
            raise IndexError(f"position {position} of shard {shard}, which holds {self.counts[shard]}")
        if shard not in self._index:
            self._index[shard] = self._scan(shard)
        return self._index[shard][position]

    def _scan(self, shard: int) -> list[tuple[str, dict[str, tuple[int, int]]]]:
        """Key and members (offset and size) of each sample; most damage to a tar ends it silently, hence the count."""
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(self.root / self._rows[shard]["path"], "r:") as archive:
                for member in archive:
                    key, _, name = member.name.partition(".")
                    samples.setdefault(key, {})[name] = (member.offset_data, member.size)
        except (OSError, tarfile.TarError) as error:
            raise self._damage(shard, str(error)) from None
        if len(samples) != self.counts[shard]:
            raise self._damage(shard, f"it holds {len(samples)} of {self.counts[shard]} samples")
        for key, members in samples.items():
            if members.keys() != set(MEMBERS):
                raise self._damage(shard, f"sample {key} has the members {', '.join(sorted(members))}")
        return list(samples.items())

    def _read(self, shard: int, place: Sequence[int]) -> bytes:
        if shard not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.root / self._rows[shard]["path"], os.O_RDONLY)
        offset, size = place
        # pread has no file position, so a descriptor inherited by a forked worker is safe to use.
        content = os.pread(self._files[shard], size, offset)
        if len(content) != size:
            raise ValueError("the file ends before it")
        return content


def _is_whole(root: Path, row: Mapping[str, Any]) -> bool:
    """Whether a shard is there with the manifest's bytes."""
    path = root / row["path"]
    return path.is_file() and _digest(path) == (row["sha256"], row["bytes"])


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1, sort_keys=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
