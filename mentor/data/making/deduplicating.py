"""The first pass of a recipe that looks for duplicates: fingerprints of all items, kept in the work folder.

Items of the training split come first, so that of two alike in both splits the held-out one goes. Fingerprints are kept
in files of some hundred, so that an interrupted pass goes on, and parts of a build do it together: each begins at
another place and takes what nobody has done yet.
"""

import os
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mentor.data.making.duplicates import (
    Duplicates,
    Fingerprints,
    find_duplicates,
    join_fingerprints,
    load_fingerprints,
)
from mentor.data.making.duplicates import save_fingerprints as to_bytes
from mentor.data.making.engines import Engine
from mentor.data.making.planning import Report
from mentor.data.making.work import Job, ScanWork
from mentor.data.records import Dropped
from mentor.data.sources.items import Item
from mentor.data.storage.decoding import Limits
from mentor.data.storage.manifest import SPLITS
from mentor.data.storage.writing import WORK, write_whole
from mentor.errors import UserError

LOOKING = "looking for duplicates"
_AT_ONCE = 500
# A part looks so often for what others have done meanwhile, in chunks.
_TURN = 16


def drop_duplicates(
    output: Path,
    jobs: Sequence[Job],
    step: Duplicates,
    limits: Limits,
    engine: Engine,
    report: Report,
    part: tuple[int, int] | None = None,
) -> dict[int, Dropped]:
    """Item number -> why it goes, for all duplicates among the items of all jobs.

    Args:
        output: the data set's folder.
        jobs: of the whole build.
        step: what counts as a duplicate.
        limits: of a picture.
        engine: does the work.
        report: told how far it is.
        part: the number of this part of the build and how many there are; None: it is the whole.

    Raises:
        UserError: the work folder cannot be written.
    """
    items = _in_order(jobs)
    if step.perceptual is None:
        items = _of_equal_length(items)
    if not items:
        return {}
    chunks = [items[first : first + _AT_ONCE] for first in range(0, len(items), _AT_ONCE)]
    found: dict[int, Fingerprints] = {}
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        report(LOOKING, done, len(items))

    def keep(result: tuple[int, Fingerprints]) -> None:
        found[result[0]] = result[1]
        _save(output, *result)

    first = 0 if part is None else part[0] * len(chunks) // part[1]
    order = [*range(first, len(chunks)), *range(first)]
    while left := [index for index in order if index not in found]:
        for index in left:
            known = _load(output, index, step, len(chunks[index]))
            if known is not None:
                found[index] = known
                tick(len(chunks[index]))
        turn = [index for index in left if index not in found][: len(left) if part is None else _TURN]
        jobs_of_turn = [(index, tuple(item for _, item in chunks[index])) for index in turn]
        engine.run(ScanWork(step, limits), jobs_of_turn, keep, tick)
    fingerprints = join_fingerprints([found[index] for index in range(len(chunks))])
    return {
        items[index][0]: Dropped(items[index][1].origin, reason)
        for index, reason in find_duplicates(fingerprints, step).items()
    }


def _in_order(jobs: Sequence[Job]) -> list[tuple[int, Item]]:
    items: list[tuple[int, Item]] = []
    for split in SPLITS:
        numbered = [one for job in jobs if job.split == split and not isinstance(job.items, range) for one in job.items]
        items += sorted(((number, item) for number, item in numbered if isinstance(item, Item)), key=lambda one: one[0])
    return items


def _of_equal_length(items: Sequence[tuple[int, Item]]) -> list[tuple[int, Item]]:
    """The items that can be exact duplicates at all; the others need not be read for it."""
    lengths = [item.picture.length() for _, item in items]
    counts = Counter(lengths)
    return [one for one, length in zip(items, lengths, strict=True) if length is None or counts[length] > 1]


def _file(output: Path, index: int) -> Path:
    return output / WORK / f"duplicates-{index:06d}"


def _save(output: Path, index: int, fingerprints: Fingerprints) -> None:
    target = _file(output, index)
    # A name of this process's own: another part may write the same file.
    own = target.with_name(f"{target.name}.{secrets.token_hex(8)}")
    try:
        write_whole(own, to_bytes(fingerprints))
        os.replace(own, target)
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror}): choose another output=DIR or make room") from None


def _load(output: Path, index: int, step: Duplicates, count: int) -> Fingerprints | None:
    """The fingerprints of a chunk, if somebody has taken them."""
    try:
        known = load_fingerprints(_file(output, index).read_bytes())
    except (OSError, UserError):
        return None
    return known if len(known) == count and known.kind == step.kind else None
