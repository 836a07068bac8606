"""WebDataset tars of others made a data set where they lie: an index and a manifest beside them, no byte rewritten.

Each tar is read once. What was found in it is noted in the work folder, so that an interrupted run goes on after it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentor.data.making.engines import Engine, Tick, open_engine
from mentor.data.making.recipes import HeldOutConfig
from mentor.data.making.splits import is_held_out
from mentor.data.making.tarlists import STATS, Tar, common_folder, list_tars, name_some, place_tars, split_finished
from mentor.data.storage.decoding import LIMITS, Limits
from mentor.data.storage.index import index_bytes, join_indexes, load_index
from mentor.data.storage.manifest import MANIFEST, SPLITS, UNFINISHED, finish, identity, lock, read_manifest
from mentor.data.storage.remote import is_remote, open_stream, shown
from mentor.data.storage.tars import TarDamage
from mentor.data.storage.tarsets import TarFields, count_repeated_keys, index_tar
from mentor.data.storage.writing import WORK, Shard, write_whole
from mentor.errors import UserError, check_output


@dataclass(frozen=True)
class Indexed:
    """What `index_dataset` did.

    Attributes:
        output: folder of the manifest.
        manifest: of the data set.
        found: whether the data set was there before.
    """

    output: Path
    manifest: dict[str, Any]
    found: bool


@dataclass(frozen=True)
class _Job:
    """A tar, and where what is in it is to be noted."""

    tar: Tar
    note: Path


@dataclass(frozen=True)
class _Indexing:
    """What is done with every tar."""

    fields: TarFields
    heldout: HeldOutConfig
    limits: Limits

    def begin(self) -> Callable[[_Job, Tick], tuple[Tar, str]]:
        """Each tar's own function: see `job`."""
        return self.job

    def job(self, job: _Job, tick: Tick) -> tuple[Tar, str]:
        """The tar and what is wrong with it, which is empty when nothing is and its index is noted."""
        tar = job.tar

        def split_of(key: str) -> str:
            tick()
            return "heldout" if is_held_out(key, self.heldout) else "train"

        try:
            with open_stream(tar.name) as file:
                found = index_tar(file, self.fields, self.limits, split_of)
        except TarDamage as error:
            return tar, str(error)
        except OSError as error:
            raise UserError(f"{shown(tar.name)} cannot be read: {error.strerror}") from None
        if tar.size is not None and found.bytes != tar.size:
            raise UserError(f"{shown(tar.name)} changed while it was read: run again when it is complete")
        more = {"bytes": found.bytes, "sha256": found.sha256, "dropped": dict(found.dropped)}
        index = join_indexes([found.indexes[split] for split in SPLITS])
        try:
            write_whole(job.note, index_bytes(index, more))
        except OSError as error:
            raise UserError(f"cannot write {job.note} ({error.strerror}): choose another output=DIR") from None
        return tar, ""

    def note(self, output: Path, tar: Tar) -> Path:
        """Where it is noted what is in the tar, under these settings."""
        settings = [self.fields, self.heldout, self.limits]
        described = json.dumps([tar.name, tar.size, *(config.model_dump(mode="json") for config in settings)])
        return output / WORK / f"tar-{hashlib.sha256(described.encode()).hexdigest()[:32]}.index"


def index_dataset(
    paths: Sequence[str],
    fields: TarFields,
    heldout: HeldOutConfig,
    output: Path | None = None,
    skip_damaged: bool = False,
    limits: Limits = LIMITS,
    engine: Engine | None = None,
    name: str = "tars",
    description: str = "",
    licence: str = "",
    report: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda line: None,
) -> Indexed:
    """Index tars and put the manifest into `output`; an interrupted run goes on with the tars that are missing.

    A sample is held out by the hash of its key alone, so that it stays where it is when tars are added. Keys need not
    differ between tars: how many do not is counted in the manifest (`repeated_keys`).

    Args:
        paths: files, URLs, patterns with braces and wildcards, or folders, which stand for the tars in them.
        fields: which members are the picture and the caption.
        heldout: share and salt.
        output: folder of the manifest; None: the tars' common folder.
        skip_damaged: leave damaged tars out instead of refusing them.
        limits: samples beyond them are left out and counted.
        engine: where the tars are read; None: in this process. The bytes do not depend on it.
        name: what the manifest calls the recipe.
        description: one line for people, kept in the manifest.
        licence: of the pictures, kept in the manifest.
        report: called with the bytes done and the bytes in all.
        log: takes a line for people about whatever was left out.

    Raises:
        UserError: there are no tars, one is damaged or cannot be read, nothing in them is a sample, or the folder
            holds something else or cannot be written.
    """
    tars, unfinished = split_finished(list_tars(paths))
    if not tars:
        raise UserError(
            f"every tar is unfinished, {shown(unfinished[0].name)} among them (a *{STATS} beside each tells that "
            "img2dataset has completed it): wait for img2dataset, or delete those files"
        )
    folder = _choose_output(tars, output)
    base, placed = place_tars([*tars, *unfinished], folder)
    tars, unfinished = placed[: len(tars)], placed[len(tars) :]
    recipe = {"name": name, "description": description, "licence": licence, "skip_damaged": skip_damaged}
    recipe |= {"heldout": heldout.model_dump(mode="json"), "limits": limits.model_dump(mode="json")}
    listing = "".join(f"{tar.path} {tar.size}\n" for tar in tars)
    inputs = {"tars": f"{len(tars)}, sha256 {hashlib.sha256(listing.encode(errors='surrogateescape')).hexdigest()}"}
    what = identity(recipe, inputs, "tars", fields.model_dump(mode="json")) | ({"base": base} if base else {})
    manifest = _find(folder, what)
    if manifest is not None:
        return Indexed(folder, manifest, found=True)
    if unfinished:
        log(f"left out, since img2dataset has not completed them: {name_some(unfinished)}")
    with lock(folder):
        _begin(folder, what, tars)
        work = _Indexing(fields, heldout, limits)
        jobs = [_Job(tar, work.note(folder, tar)) for tar in tars]
        with contextlib.nullcontext(engine) if engine is not None else open_engine("local", 1) as where:
            damaged = _index_all(where, work, jobs, report)
        if len(damaged) == len(tars):
            # Nothing that another start could go on with.
            (folder / UNFINISHED).unlink(missing_ok=True)
        _check_damaged(damaged, len(tars), skip_damaged, log)
        left_out = [{"path": tar.path, "reason": "unfinished"} for tar in unfinished]
        left_out += [{"path": tar.path, "reason": damage} for tar, damage in damaged.items()]
        shards = [shard for job in jobs if job.tar not in damaged for shard in _shards(job)]
        shards.sort(key=lambda shard: SPLITS.index(shard.split))
        repeated = count_repeated_keys([shard.index for shard in shards])
        if repeated:
            log(f"{repeated} samples have a key that another tar has, too: all are kept")
        more = {"left_out": sorted(left_out, key=lambda row: row["path"]), "repeated_keys": repeated}
        return Indexed(folder, finish(folder, {**what, **more}, shards), found=False)


def _choose_output(tars: Sequence[Tar], output: Path | None) -> Path:
    if output is None:
        folder = common_folder([tar.name for tar in tars])
        if folder is None or is_remote(folder):
            raise UserError("the tars have no common folder on this machine: say where the index goes with output=DIR")
        output = Path(folder)
        if not os.access(output, os.W_OK | os.X_OK):
            raise UserError(f"{output} cannot be written: say where the index goes with output=DIR")
    check_output(output)
    return output


def _find(output: Path, what: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest, if `output` holds exactly this data set with its indexes; else None.

    Raises:
        UserError: it holds another data set. The advice must spare the tars, which may lie in the same folder.
    """
    path = output / MANIFEST
    if not path.exists():
        return None
    advice = f"delete {path} (the tars stay as they are) or choose another output=DIR"
    try:
        manifest = read_manifest(output)
    except UserError:
        raise UserError(f"{path} is damaged or none of this program's: {advice}") from None
    if manifest["kind"] != "tars":
        raise UserError(f"{output} holds a data set of its own, not an index of tars: choose another output=DIR")
    # A manifest without a base says the same as one whose tars lie beside it.
    differing = [key for key in {*what, "base"} if manifest.get(key) != what.get(key)]
    if differing:
        cause = "other tars, or ones of other sizes," if differing == ["inputs"] else "other tars or other settings"
        raise UserError(f"{output} already holds an index made of {cause} than are given now: {advice}")
    whole = all(
        (output / row["path"]).is_file() and (output / row["path"]).stat().st_size == row["bytes"]
        for row in manifest["indexes"]
    )
    return manifest if whole else None


def _begin(output: Path, what: Mapping[str, Any], tars: Sequence[Tar]) -> None:
    """Mark the folder as being indexed."""
    try:
        entries = {entry.name for entry in output.iterdir()} - {WORK}
        if UNFINISHED in entries:
            if _kind_of(output / UNFINISHED) != "tars":
                raise UserError(f"{output} holds an unfinished build of something else: choose another output=DIR")
        elif entries and MANIFEST not in entries and not any(Path(tar.name).is_relative_to(output) for tar in tars):
            raise UserError(f"{output} is not empty and holds no data set: choose another output=DIR")
        write_whole(output / UNFINISHED, (json.dumps(what, ensure_ascii=False, indent=1) + "\n").encode())
        (output / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output} ({error.strerror}): choose another output=DIR") from None


def _kind_of(unfinished: Path) -> str:
    try:
        return json.loads(unfinished.read_bytes())["kind"]
    except (ValueError, KeyError, TypeError):
        return "damaged"


def _check_damaged(damaged: Mapping[Tar, str], total: int, skip: bool, log: Callable[[str], None]) -> None:
    if not damaged:
        return
    tar, damage = next(iter(damaged.items()))
    if not skip:
        raise UserError(
            f"{len(damaged)} of {total} tars cannot be used: {name_some(list(damaged))}; {shown(tar.name)}: {damage}. "
            "Get them again, or leave them out with skip_damaged=true"
        )
    if len(damaged) == total:
        raise UserError(f"every tar is damaged, {shown(tar.name)} among them: {damage}")
    for tar, damage in damaged.items():
        log(f"left out, since it is damaged: {shown(tar.name)}: {damage}")


def _shards(job: _Job) -> Iterator[Shard]:
    """What is noted of a tar, as the part that each split has of it."""
    index, more = load_index(job.note)
    for number, split in enumerate(SPLITS):
        dropped = more["dropped"] if split == "train" else {}
        yield Shard(job.tar.path, split, more["bytes"], more["sha256"], index.only(number), dropped)


def _index_all(
    engine: Engine, work: _Indexing, jobs: Sequence[_Job], report: Callable[[int, int], None]
) -> dict[Tar, str]:
    """Index all tars that are not yet; the damaged ones in their order, and what is wrong with them."""
    missing = [job for job in jobs if not _is_noted(job.note)]
    total = sum(job.tar.size or 0 for job in jobs)
    done = total - sum(job.tar.size or 0 for job in missing)
    damaged: dict[Tar, str] = {}
    report(done, total)

    def count(result: tuple[Tar, str]) -> None:
        nonlocal done
        tar, damage = result
        done += tar.size or 0
        if damage:
            damaged[tar] = damage
        report(done, total)

    engine.run(work, missing, count, lambda items: None)
    return {job.tar: damaged[job.tar] for job in jobs if job.tar in damaged}


def _is_noted(note: Path) -> bool:
    try:
        return note.exists() and len(load_index(note)[0].counts) == len(SPLITS)
    except UserError:
        return False
