"""manifest.json: what a data set is. A build starts with `begin`; the manifest, which `finish` writes last, ends it."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, Field

from mentor import __version__
from mentor.data.records import SCHEMA_VERSION
from mentor.data.storage.index import Index, index_bytes, join_indexes, load_index
from mentor.data.storage.whole import PARTIAL
from mentor.data.storage.writing import WORK, Shard, save_shard, write_whole
from mentor.errors import UserError

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
SPLITS = ("train", "heldout")


def shard_path(split: str, index: int) -> str:
    """Where a shard lies below the data set's folder: `train/000000.tar`."""
    return f"{split}/{index:06d}.tar"


def index_path(split: str) -> str:
    """Where a split's index lies below the data set's folder."""
    return f"{split}.index"


def identity(
    recipe_resolved: Mapping[str, Any], inputs: Mapping[str, str], kind: str, layout: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides a data set's bytes: two builds with the same identity are the same data set.

    Args:
        recipe_resolved: every setting.
        inputs: name -> digest of what is read.
        kind: "records", "tars" or "codes".
        layout: what a sample's members are.
    """
    described = {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "kind": kind,
        "layout": dict(layout),
        "recipe": dict(recipe_resolved),
        "inputs": dict(inputs),
    }
    return json.loads(json.dumps(described))


@contextlib.contextmanager
def lock(output: Path, part: int | None = None) -> Iterator[None]:
    """Keep other writers out of the folder while the context lasts; parts of one build may work side by side.

    Raises:
        UserError: another process writes there, or nothing can be written there.
    """
    names = [("build", fcntl.LOCK_EX)] if part is None else [("build", fcntl.LOCK_SH), (f"part-{part}", fcntl.LOCK_EX)]
    with contextlib.ExitStack() as held:
        for name, kind in names:
            held.enter_context(_locked(output, name, kind))
        yield


def find(output: Path, what: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest if `output` already holds exactly this data set, with every file at its size; else None.

    Raises:
        UserError: the folder holds another data set.
    """
    if not (output / MANIFEST).exists():
        return None
    manifest = read_manifest(output)
    if {key: manifest.get(key) for key in what} != what:
        raise UserError(
            f"{output} already holds another data set (recipe {manifest['recipe'].get('name', '?')}, "
            "or the same with other settings): choose another output=DIR or delete that folder"
        )
    whole = all(_fits(output, row) for row in [*manifest["files"], *manifest["indexes"]])
    return manifest if whole else None


def begin(output: Path, what: Mapping[str, Any]) -> None:
    """Make the folder ready to be filled; call it under `lock`, when `find` has found nothing.

    A folder in which the same build was interrupted is ready: shards under their final names are whole. A finished one
    that lacks shards, or has some of another size, loses those.

    Raises:
        UserError: the folder holds something else or cannot be written.
    """
    try:
        entries = {entry.name for entry in output.iterdir()} - {WORK} if output.exists() else set()
        if MANIFEST in entries:
            _reopen(output, read_manifest(output))
        elif UNFINISHED in entries:
            if json.loads((output / UNFINISHED).read_text(encoding="utf-8")) != what:
                raise UserError(
                    f"{output} holds an unfinished build with other settings: "
                    "run make_shards.py again with those, choose another output=DIR or delete that folder"
                )
        elif entries:
            raise UserError(f"{output} is not empty and holds no data set: choose another output=DIR")
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / UNFINISHED, _json(what))
        (output / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output} ({error.strerror}): choose another output=DIR") from None
    except json.JSONDecodeError:
        raise UserError(f"{output / UNFINISHED} is damaged: delete {output} and make the shards again") from None


def remove_partials(output: Path) -> None:
    """Delete what killed writers left; only when no other part of the build is at work."""
    for leftover in [*output.glob(f"*{PARTIAL}"), *output.glob(f"*/*{PARTIAL}")]:
        leftover.unlink(missing_ok=True)


def finish(
    output: Path, what: Mapping[str, Any], shards: Sequence[Shard], left_out: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The manifest, written last: from now on the folder is a data set.

    Args:
        output: the data set's folder.
        what: its `identity`.
        shards: all shards of the build, train before held-out.
        left_out: what did not even reach a shard, by reason.

    Raises:
        UserError: there is no sample, or the folder cannot be written.
    """
    kept = [shard for shard in shards if shard.samples]
    dropped: Counter[str] = Counter(left_out)
    for shard in shards:
        dropped.update(shard.dropped)
    if not kept:
        counted = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
        raise UserError(
            "there are no records to write" + (f" (dropped: {counted})" if counted else "") + ": check the recipe"
        )
    try:
        indexes = []
        for split in SPLITS:
            parts = [shard.index for shard in kept if shard.split == split]
            if parts:
                content = index_bytes(join_indexes(parts))
                write_whole(output / index_path(split), content)
                digest = hashlib.sha256(content).hexdigest()
                indexes.append({"path": index_path(split), "split": split, "bytes": len(content), "sha256": digest})
        files = [_row(shard) for shard in kept]
        manifest = {
            **what,
            "samples": {split: sum(row["samples"] for row in files if row["split"] == split) for split in SPLITS},
            "dropped": dict(sorted(dropped.items())),
            "fingerprint": fingerprint(files, indexes),
            "indexes": indexes,
            "files": files,
        }
        write_whole(output / MANIFEST, _json(manifest))
        (output / UNFINISHED).unlink(missing_ok=True)
        _clear(output)
    except OSError as error:
        raise UserError(f"cannot write {output / MANIFEST} ({error.strerror}): make room and run again") from None
    return manifest


def fingerprint(files: Sequence[Mapping[str, Any]], indexes: Sequence[Mapping[str, Any]]) -> str:
    """What names a data set's exact content: a sha256 over the digests of its shards and indexes."""
    lines = [f"{row['path']} {row['sha256']} {row['samples']}\n" for row in files]
    lines += [f"{row['path']} {row['sha256']}\n" for row in indexes]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of the data set in `root`.

    Raises:
        UserError: there is none, or it is damaged or of another schema.
    """
    command = f"python tools/make_shards.py RECIPE output={root}"
    try:
        content = (root / MANIFEST).read_bytes()
    except OSError:
        state = "its making was interrupted" if (root / UNFINISHED).exists() else "there is no manifest.json"
        raise UserError(f"no shards in {root} ({state}): make them with `{command}`") from None
    return parse_manifest(content, str(root))


def parse_manifest(content: bytes, root: str) -> dict[str, Any]:
    """The manifest in a file's bytes, checked: it comes from wherever the data come from.

    Raises:
        UserError: it is damaged, of another schema, or names files outside its folder.
    """
    again = f"make it again with the make_shards.py command that made {root}"
    try:
        manifest = json.loads(content)
        version = manifest["schema_version"]
        if version == SCHEMA_VERSION:
            _Manifest.model_validate(manifest)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{root}/{MANIFEST} is damaged: {again}") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"the shards in {root} have schema version {version}, this program reads {SCHEMA_VERSION}: {again}"
        )
    if "base" not in manifest:
        for row in [*manifest["files"], *manifest["indexes"]]:
            path = PurePosixPath(row["path"])
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{root}/{MANIFEST} names {row['path']}, which is outside its folder: do not trust it")
    return manifest


class _IndexRow(BaseModel):
    path: str
    split: Literal["train", "heldout"]
    bytes: int = Field(ge=0)
    sha256: str


class _FileRow(_IndexRow):
    samples: int = Field(ge=0)


class _Manifest(BaseModel):
    """What a manifest must have; what else it has is for people."""

    kind: Literal["records", "tars", "codes"]
    layout: dict[str, Any]
    recipe: dict[str, Any]
    samples: dict[str, int]
    fingerprint: str = Field(min_length=1)
    indexes: list[_IndexRow]
    files: list[_FileRow]
    base: str = ""


def _row(shard: Shard) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": shard.path,
        "split": shard.split,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "samples": shard.samples,
    }
    return row | ({"dropped": dict(shard.dropped)} if shard.dropped else {})


def _fits(output: Path, row: Mapping[str, Any]) -> bool:
    path = output / row["path"]
    return path.is_file() and path.stat().st_size == row["bytes"]


def _reopen(output: Path, manifest: Mapping[str, Any]) -> None:
    """Turn a finished data set that has lost something into an unfinished one that keeps its whole shards."""
    for split in SPLITS:
        rows = [row for row in manifest["files"] if row["split"] == split]
        index: Index | None = None
        with contextlib.suppress(UserError):
            index, _ = load_index(output / index_path(split))
        for number, row in enumerate(rows):
            if index is not None and _fits(output, row):
                facts = {name: row[name] for name in ("path", "split", "bytes", "sha256")}
                save_shard(output, Shard(**facts, index=index.only(number), dropped=row.get("dropped", {})))
            else:
                (output / row["path"]).unlink(missing_ok=True)


def _clear(output: Path) -> None:
    """Remove the work folder and the mark of an unfinished build."""
    (output / UNFINISHED).unlink(missing_ok=True)
    shutil.rmtree(output / WORK, ignore_errors=True)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


@contextlib.contextmanager
def _locked(output: Path, name: str, kind: int) -> Iterator[None]:
    path = output / WORK / f"{name}.lock"
    try:
        descriptor = _acquire(path, kind)
    except BlockingIOError:
        holder = path.read_text(errors="replace").strip() if path.exists() else ""
        who = f" ({holder})" if holder else ""
        raise UserError(f"another process{who} is writing to {output}: wait for it, or choose another output") from None
    except OSError as error:
        raise UserError(f"cannot write to {output} ({error.strerror}): choose another output=DIR") from None
    try:
        if kind == fcntl.LOCK_EX:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        # What was made for the lock alone goes with it; a shared lock file may be in use by others.
        with contextlib.suppress(OSError):
            if kind == fcntl.LOCK_EX:
                path.unlink()
            path.parent.rmdir()
            output.rmdir()
        os.close(descriptor)


def _acquire(path: Path, kind: int) -> int:
    """A descriptor that holds the lock; BlockingIOError when another process does."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            # The last holder has removed the file that this process may have opened before.
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
