"""Whether a data set is as it was written; if not, which files and which samples are damaged, and how."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from mentor.config import validate
from mentor.data.storage.damage import Fault, Written, check_members, examine_shard, read_sample
from mentor.data.storage.decoding import LIMITS, BadSample, Limits
from mentor.data.storage.encoding import decode_record
from mentor.data.storage.files import CacheSettings, DataFiles, join
from mentor.data.storage.manifest import MANIFEST, UNFINISHED, fingerprint
from mentor.data.storage.remote import Missing, is_remote, shown
from mentor.data.storage.tarsets import TarFields, read_tar_sample
from mentor.data.storage.whole import PARTIAL
from mentor.data.storage.writing import WORK
from mentor.errors import UserError

__all__ = ["Fault", "fault_lines", "verdict", "verify"]

_CHUNK = 1 << 20
# Hashing and reading release Python's lock; more threads than this only fight for the disk.
_THREADS = 4


def verify(
    root: str | Path,
    deep: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
    cache: CacheSettings | None = None,
    limits: Limits = LIMITS,
) -> list[Fault]:
    """The faults of a data set, in the order of its files; none when every byte is as it was written.

    Every file's size and sha256 are compared with the manifest. Of a file that differs, each sample is compared with
    its checksum in the index, and its headers are read, so that the damaged ones are named. Shards from elsewhere are
    checked in the cache's copy.

    Args:
        root: the data set's folder or URL.
        deep: decode every sample, too, and name those that cannot be though their bytes are as written.
        report: called with the bytes done and the bytes in all, from one thread at a time.
        cache: for shards from elsewhere.
        limits: of what is decoded.

    Raises:
        UserError: there is no such folder, or the network fails.
    """
    local = not is_remote(str(root))
    if local and not Path(root).is_dir():
        raise UserError(f"there is no folder {root}: give one that make_shards.py has written")
    try:
        files = DataFiles(root, cache)
        faults = _check_manifest(files)
    except UserError as error:
        if not local:
            raise
        return [_explain_manifest(Path(root), error)]
    except (TypeError, KeyError, AttributeError, ValueError):
        # Not all that may be wrong in it is found when it is read.
        return [Fault(shown(join(str(root), MANIFEST)), "damaged manifest", "its parts are not what they should be")]
    indexes, more = _check_indexes(files)
    faults += more
    shards: dict[str, list[Mapping[str, Any]]] = {}
    for row in files.manifest["files"]:
        shards.setdefault(row["path"], []).append(row)
    settings = cache or CacheSettings()
    checks = [
        _Shard(files, rows, [indexes[id(row)] for row in rows if id(row) in indexes], settings)
        for rows in shards.values()
    ]
    progress = _Progress(sum(rows[0]["bytes"] for rows in shards.values()), report)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(_check_shard, check, deep, limits, progress) for check in checks]
        try:
            for future in futures:
                faults += future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return faults + (list(_find_leftovers(Path(root), files, faults)) if local else [])


def verdict(root: str | Path, faults: Sequence[Fault]) -> str:
    """One line that sums up what `verify` has found."""
    if not faults:
        manifest = DataFiles(root).manifest
        counted = ", ".join(f"{count} {split}" for split, count in manifest["samples"].items())
        shards = len({row["path"] for row in manifest["files"]})
        return f"{root}: all {shards} shards are as they were written ({counted} samples)"
    damaged = len({fault.file for fault in faults})
    samples = len({(fault.file, fault.sample) for fault in faults if fault.sample})
    return f"{root}: {damaged} damaged files" + (f", with {samples} damaged samples named" if samples else "")


def fault_lines(faults: Sequence[Fault], most: int = 20) -> Iterator[str]:
    """A line for each fault, file first; of many samples of one file only the first `most`."""
    for file, group in groupby(faults, lambda fault: fault.file):
        found = list(group)
        yield from map(str, found[: most + 1])
        if len(found) > most + 1:
            yield f"{file}: and {len(found) - most - 1} more"


@dataclass(frozen=True)
class _Shard:
    """A file of the data set.

    Attributes:
        files: of the data set.
        rows: of the manifest: one for each split that has samples in it.
        written: its samples; fewer than rows where an index is damaged.
        cache: for shards from elsewhere.
    """

    files: DataFiles
    rows: Sequence[Mapping[str, Any]]
    written: Sequence[Written]
    cache: CacheSettings

    @property
    def name(self) -> str:
        """What faults call it."""
        return shown(self.files.name(self.rows[0]))


class _Progress:
    """Counts bytes over all threads."""

    def __init__(self, total: int, report: Callable[[int, int], None]) -> None:
        self._done, self._total, self._report = 0, total, report
        self._lock = threading.Lock()
        report(0, total)

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._report(self._done, self._total)


def _explain_manifest(root: Path, error: UserError) -> Fault:
    if (root / MANIFEST).exists():
        return Fault(str(root / MANIFEST), "damaged manifest", str(error))
    if (root / UNFINISHED).exists():
        return Fault(str(root / UNFINISHED), "unfinished build", "run the same command again, it goes on")
    return Fault(str(root / MANIFEST), "missing", str(error))


def _check_manifest(files: DataFiles) -> list[Fault]:
    manifest = files.manifest
    name = shown(join(files.root, MANIFEST))
    faults = []
    if manifest["fingerprint"] != fingerprint(manifest["files"], manifest["indexes"]):
        faults.append(Fault(name, "damaged manifest", "its fingerprint is not that of the files it lists"))
    counted: dict[str, int] = dict.fromkeys(manifest["samples"], 0)
    for row in manifest["files"]:
        counted[row["split"]] = counted.get(row["split"], 0) + row["samples"]
        files.name(row)
    if counted != manifest["samples"]:
        faults.append(Fault(name, "damaged manifest", f"its shards hold {counted} samples, not {manifest['samples']}"))
    return faults


def _check_indexes(files: DataFiles) -> tuple[dict[int, Written], list[Fault]]:
    """What each row of the manifest held when it was written, where its index is whole; and the indexes' faults."""
    written: dict[int, Written] = {}
    faults: list[Fault] = []
    for row in files.manifest["indexes"]:
        name = join(files.root, row["path"])
        rows = [one for one in files.manifest["files"] if one["split"] == row["split"]]
        try:
            if not is_remote(name) and _digest(Path(name)) != row["sha256"]:
                faults.append(Fault(name, "damaged index", "its sha256 is not the manifest's"))
                continue
            index = files.index(row)
        except FileNotFoundError:
            faults.append(Fault(name, "missing", "run the command again that made the data set"))
        except OSError as error:
            faults.append(Fault(name, "unreadable", error.strerror or str(error)))
        except UserError as error:
            faults.append(Fault(shown(name), "damaged index", str(error)))
        else:
            if index.counts.tolist() != [one["samples"] for one in rows]:
                faults.append(Fault(shown(name), "index does not fit", "it is of other shards than the manifest"))
                continue
            own = files.manifest["kind"] != "tars"
            written |= {id(one): Written(index, number, own) for number, one in enumerate(rows)}
    return written, faults


def _check_shard(check: _Shard, deep: bool, limits: Limits, progress: _Progress) -> list[Fault]:
    row, name = check.rows[0], check.name
    left = row["bytes"]

    def advance(count: int) -> None:
        nonlocal left
        count = min(count, left)
        left -= count
        progress.add(count)

    try:
        with os.fdopen(_open(check), "rb") as file:
            digest = _hash(file, (lambda count: None) if deep else advance)
            faults = _compare(check, file, digest)
            if deep and not any(fault.kind == "renamed" for fault in faults):
                faults += _decode(check, file, {fault.sample for fault in faults}, limits, advance)
            return faults
    except (FileNotFoundError, Missing):
        return [Fault(name, "missing", f"its {sum(one['samples'] for one in check.rows)} samples are lost")]
    except OSError as error:
        return [Fault(name, "unreadable", error.strerror or str(error))]
    except UserError as error:
        return [Fault(name, "unreadable", str(error))]
    finally:
        advance(left)


def _open(check: _Shard) -> int:
    try:
        return check.files.open(check.rows[0])
    except Missing:
        raise
    except UserError:
        # The cache takes nothing whose sha256 is not the manifest's. What is there all the same, the faults tell.
        return check.cache.cache().open(check.files.name(check.rows[0]))


def _compare(check: _Shard, file: BinaryIO, digest: str) -> list[Fault]:
    """The faults of a shard's bytes."""
    row = check.rows[0]
    size = os.fstat(file.fileno()).st_size
    if digest == row["sha256"]:
        if size == row["bytes"]:
            return []
        manifest = shown(join(check.files.root, MANIFEST))
        return [Fault(manifest, "damaged manifest", f"{row['path']} has {size} bytes, not {row['bytes']}")]
    for other in check.files.manifest["files"]:
        if other["sha256"] == digest and other["path"] != row["path"]:
            return [Fault(check.name, "renamed", f"its content is that of {other['path']}")]
    return examine_shard(check.name, file, row, check.written)


def _decode(
    check: _Shard, file: BinaryIO, known: set[str], limits: Limits, advance: Callable[[int], None]
) -> Iterator[Fault]:
    """The samples that cannot be decoded although their bytes are those that were written."""
    manifest = check.files.manifest
    fields = validate(TarFields, manifest["layout"]) if manifest["kind"] == "tars" else None
    for part in check.written:
        for place in part.places():
            if place.key in known:
                continue
            advance(sum(size for _, size in place.fields.values()))
            try:
                members = read_sample(file, place)
            except BadSample as error:
                yield Fault(check.name, "index does not fit", str(error), place.key)
                continue
            try:
                if fields is not None:
                    read_tar_sample(place.key, members, fields, limits)
                elif manifest["kind"] == "records":
                    decode_record(place.key, members, limits)
                else:
                    check_members(members)
            except BadSample as error:
                yield Fault(check.name, "undecodable", str(error), place.key)


def _find_leftovers(root: Path, files: DataFiles, faults: Sequence[Fault]) -> Iterator[Fault]:
    """What lies in the folder and should not."""
    manifest = files.manifest
    mine = {MANIFEST, *(row["path"] for row in [*manifest["indexes"], *manifest["files"]])}
    for name in (UNFINISHED, WORK):
        if (root / name).exists():
            yield Fault(str(root / name), "left over", "of an interrupted run: run it again, or delete this")
    strangers = sorted([*root.glob("*"), *root.glob("*/*")])
    # Among tars of others anything may lie.
    foreign = manifest["kind"] == "tars"
    for path in strangers:
        whole = str(path.relative_to(root)).removesuffix(PARTIAL)
        if path.name.endswith(PARTIAL) and path.parent.name != WORK and (not foreign or whole in mine):
            yield Fault(str(path), "left over", "of an interrupted run: delete it")
    absent = {fault.file for fault in faults if fault.kind == "missing"}
    lost = [row for row in manifest["files"] if shown(files.name(row)) in absent]
    kinds = {Path(name).suffix for name in mine} - {".json"}
    for path in strangers:
        if path.suffix not in kinds or str(path.relative_to(root)) in mine or path.parent.name == WORK:
            continue
        was = [row for row in lost if _size(path) == row["bytes"] and _digest(path) == row["sha256"]]
        if was:
            yield Fault(str(path), "extra", f"it is {was[0]['path']} under another name")
        elif not foreign:
            yield Fault(str(path), "extra", "the manifest does not know it")


def _hash(file: BinaryIO, advance: Callable[[int], None]) -> str:
    sha256 = hashlib.sha256()
    while content := file.read(_CHUNK):
        sha256.update(content)
        advance(len(content))
    return sha256.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
