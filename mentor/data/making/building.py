"""From a recipe to a folder of shards, with as many processes and machines as one likes and the same bytes.

The work folder keeps what a build needs to go on: the plan (which shards there will be), the fingerprints of pictures
where duplicates are looked for, and a note for every shard that is finished. Parts of a build share it.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mentor.data.making.deduplicating import drop_duplicates
from mentor.data.making.engines import Engine, open_engine
from mentor.data.making.planning import Plan, Report, describe_build, describe_inputs_of, plan_build, table_line
from mentor.data.making.recipes import LoadedRecipe, RecordRecipe
from mentor.data.making.steps import duplicates_step
from mentor.data.making.work import Made
from mentor.data.records import Record
from mentor.data.sources.places import shared_trees
from mentor.data.storage.encoding import Layout
from mentor.data.storage.manifest import (
    MANIFEST,
    SPLITS,
    UNFINISHED,
    begin,
    find,
    finish,
    identity,
    lock,
    read_manifest,
    remove_partials,
    shard_path,
)
from mentor.data.storage.writing import WORK, Sample, Shard, load_shard, sample_of, write_shard, write_whole
from mentor.errors import UserError

MAKING = "making shards"
_PLAN = "plan.json"


@dataclass(frozen=True)
class Part:
    """One of several parts of a build.

    Attributes:
        index: from 0.
        count: how many there are.

    Raises:
        UserError: there is no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"part {self.index} of {self.count} does not exist: parts are 0 to {self.count - 1}")


@dataclass(frozen=True)
class Build:
    """What `build_dataset` did.

    Attributes:
        manifest: of the data set; empty after a single part.
        found: whether the data set was there before.
        shards: made by this part, or in all.
        examples: for each reason to leave something out the first case met by this run.
    """

    manifest: Mapping[str, Any]
    found: bool = False
    shards: int = 0
    examples: Mapping[str, str] = field(default_factory=dict)


def build_dataset(
    loaded: LoadedRecipe[Any],
    output: Path,
    workers: int = 1,
    report: Report = lambda stage, done, total: None,
    engine: str = "local",
    part: Part | None = None,
) -> Build:
    """Make the recipe's shards in `output`; an interrupted build goes on with the shards that are missing.

    Args:
        loaded: the recipe.
        output: folder of the data set.
        workers: processes that make shards; the bytes do not depend on it.
        report: called with the stage, the items done and the items in all (None: unknown).
        engine: where they are made: see `open_engine`.
        part: which shards to make; `merge` then makes the data set of them. All if None.

    Raises:
        UserError: the recipe yields no record, or the folder holds something else or cannot be written.
    """
    with open_engine(engine, workers) as opened:
        with shared_trees():
            inputs = describe_inputs_of(loaded)
            manifest = find(output, describe_build(loaded.recipe, inputs, None))
            if manifest is not None:
                return Build(manifest, found=True, shards=len(manifest["files"]))
            plan = plan_build(loaded, output, report, opened.warm)
        what = describe_build(loaded.recipe, inputs, plan.layout)
        with lock(output, None if part is None else part.index):
            with contextlib.nullcontext() if part is None else _alone(output):
                begin(output, what)
                _keep_plan(output, plan, part)
            if part is None:
                remove_partials(output)
            return _make(loaded, output, plan, what, opened, report, part)


def merge(output: Path) -> Build:
    """Make the data set of a build's parts, which are all finished.

    Raises:
        UserError: parts are not finished, or there are none.
    """
    if not (output / UNFINISHED).exists():
        if not (output / MANIFEST).exists():
            raise UserError(f"there is nothing to merge in {output}: make parts with --num-parts N --part I first")
        manifest = read_manifest(output)
        return Build(manifest, found=True, shards=len(manifest["files"]))
    with lock(output):
        plan, what = _read_json(output, WORK, _PLAN), _read_json(output, UNFINISHED)
        shards = [(index, _finished(output, path, split)) for index, (path, split) in enumerate(plan["shards"])]
        missing = [index for index, shard in shards if shard is None]
        if missing:
            raise UserError(_what_is_missing(output, missing, plan["parts"], what["recipe"].get("name", "RECIPE")))
        remove_partials(output)
        made = [shard for _, shard in shards if shard is not None]
        return _finish(output, what, made, Counter(plan["dropped"]), plan["examples"])


def _make(
    loaded: LoadedRecipe[Any],
    output: Path,
    plan: Plan,
    what: Mapping[str, Any],
    engine: Engine,
    report: Report,
    part: Part | None,
) -> Build:
    """Make what is missing of the plan, or of a part of it; call it under the lock."""
    jobs = plan.jobs if part is None else plan.jobs[part.index :: part.count]
    shards = {job.path: _finished(output, job.path, job.split) for job in jobs}
    missing = [job for job in jobs if shards[job.path] is None]
    recipe = loaded.recipe
    step = duplicates_step(recipe.steps) if isinstance(recipe, RecordRecipe) else None
    if step is not None and missing:
        share = None if part is None else (part.index, part.count)
        dropped = drop_duplicates(output, plan.jobs, step, recipe.limits, engine, report, share)
        missing = [job.without(dropped) for job in missing]
    total = sum(len(job.items) for job in jobs)
    done = total - sum(len(job.items) for job in missing)
    examples = dict(plan.examples)
    report(MAKING, done, total)

    def tick(count: int) -> None:
        nonlocal done
        done += count
        report(MAKING, done, total)

    def keep(made: Made) -> None:
        shards[made.shard.path] = made.shard
        for reason, example in made.examples.items():
            examples.setdefault(reason, example)

    engine.run(plan.work, missing, keep, tick)
    report(MAKING, total, total)
    made = [shard for shard in shards.values() if shard is not None]
    if part is not None:
        return Build({}, shards=len(made), examples=examples)
    return _finish(output, what, made, plan.dropped, examples)


def _finish(
    output: Path, what: Mapping[str, Any], shards: Sequence[Shard], dropped: Counter[str], examples: Mapping[str, str]
) -> Build:
    if not any(shard.samples for shard in shards):
        counts = dropped + sum((Counter(shard.dropped) for shard in shards), Counter())
        # Nothing of such a build is of any use, and it must not stand in the way of the next one.
        _remove_traces(output)
        raise UserError(f"nothing is left to write: {table_line(counts, examples)}: check the recipe's steps")
    manifest = finish(output, what, shards, dropped)
    return Build(manifest, shards=len(manifest["files"]), examples=examples)


def _remove_traces(output: Path) -> None:
    shutil.rmtree(output / WORK, ignore_errors=True)
    with contextlib.suppress(OSError):
        (output / UNFINISHED).unlink(missing_ok=True)
        for split in SPLITS:
            if (output / split).is_dir():
                (output / split).rmdir()
        output.rmdir()


def _finished(output: Path, path: str, split: str) -> Shard | None:
    """The shard, if it was finished and its file is still whole in length."""
    shard = load_shard(output, path, split)
    if shard is None or not shard.bytes:
        return shard
    file = output / path
    return shard if file.is_file() and file.stat().st_size == shard.bytes else None


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Parts that start at once make the folder ready one after the other."""
    path = output / WORK / "begin.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _keep_plan(output: Path, plan: Plan, part: Part | None) -> None:
    """Write down what will be made; a build that goes on must have the same plan.

    Raises:
        UserError: it has another one, or other parts.
    """
    kept = {
        "parts": part.count if part else None,
        "digest": plan.digest,
        "dropped": dict(sorted(plan.dropped.items())),
        "examples": plan.examples,
        "shards": [[job.path, job.split] for job in plan.jobs],
    }
    if (output / WORK / _PLAN).exists():
        before = _read_json(output, WORK, _PLAN)
        if {**before, "parts": None} != {**kept, "parts": None}:
            raise UserError(
                f"the source has changed since the unfinished build in {output} began: "
                "delete that folder or choose another output=DIR"
            )
        if part is None:
            return
        if before["parts"] not in (None, part.count):
            raise UserError(
                f"the unfinished build in {output} has {before['parts']} parts, not {part.count}: "
                f"say --num-parts {before['parts']}, or make the rest without --part"
            )
    try:
        write_whole(output / WORK / _PLAN, json.dumps(kept, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise UserError(f"cannot write to {output} ({error.strerror}): choose another output=DIR") from None


def _read_json(output: Path, *names: str) -> dict[str, Any]:
    path = output.joinpath(*names)
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError):
        raise UserError(f"{path} cannot be read: delete {output} and make the shards again") from None


def _what_is_missing(output: Path, missing: Sequence[int], parts: int | None, name: str) -> str:
    command = f"python tools/make_shards.py {name} output={output}"
    if parts is None:
        return f"the build in {output} is not finished: {len(missing)} shards are missing; run `{command}` again"
    counts = Counter(index % parts for index in missing)
    told = "; ".join(
        f"part {part} of {parts} is not finished: {count} {'shards' if count > 1 else 'shard'} missing"
        for part, count in sorted(counts.items())
    )
    which = "I" if len(counts) > 1 else str(min(counts))
    return f"{told}; run `{command} ... --num-parts {parts} --part {which}` again"


def write_dataset(
    recipe_resolved: Mapping[str, Any],
    records: Iterable[tuple[str, Record]],
    output: Path,
    samples_per_shard: int,
    layout: Layout | None = None,
) -> dict[str, Any]:
    """The manifest of the data set now in `output`, made of (split, record) pairs in their order.

    Raises:
        UserError: there is no record, or the folder cannot be written or holds something else.
    """
    layout = layout or Layout()
    what = identity(recipe_resolved, {}, "records", layout.model_dump())
    with lock(output):
        found = find(output, what)
        if found is not None:
            return found
        begin(output, what)
        shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
        waiting: dict[str, list[Sample]] = {split: [] for split in SPLITS}

        def flush(split: str) -> None:
            path = shard_path(split, len(shards[split]))
            shards[split].append(write_shard(output, path, split, waiting[split], layout.members))
            waiting[split] = []

        for split, record in records:
            waiting[split].append(sample_of(record, layout))
            if len(waiting[split]) == samples_per_shard:
                flush(split)
        for split in SPLITS:
            if waiting[split]:
                flush(split)
        return finish(output, what, [shard for split in SPLITS for shard in shards[split]])
