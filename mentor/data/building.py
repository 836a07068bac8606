"""From a recipe to a folder of shards, with as many processes as one likes and the same bytes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from mentor.data.composing import Composer
from mentor.data.recipes import LoadedRecipe
from mentor.data.records import Record
from mentor.data.shards import SPLITS, begin, finish, identity, shard_path, write_shard
from mentor.data.sources import digest_inputs
from mentor.errors import UserError


@dataclass(frozen=True)
class _Worker:
    """What a worker process keeps between shards."""

    composer: Composer
    stop: Event

    def records(self, split: str, positions: range) -> Iterator[Record]:
        for position in positions:
            if self.stop.is_set():
                raise CancelledError
            yield self.composer.record(split, position)


_worker: _Worker | None = None


@dataclass(frozen=True)
class Build:
    """What `build_dataset` did: the manifest, and whether the data set was there before."""

    manifest: dict[str, Any]
    found: bool


def build_dataset(
    loaded: LoadedRecipe,
    output: Path,
    workers: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Build:
    """Make the recipe's shards in `output`; an interrupted build goes on with the shards that are missing.

    Args:
        loaded: the recipe.
        output: folder of the data set.
        workers: processes that make shards; the bytes do not depend on it.
        report: called with the records done and the records in all.

    Raises:
        UserError: the recipe yields no record, or the folder holds something else or cannot be written.
    """
    if workers < 1:
        raise UserError(f"workers={workers} is not allowed: say 1 or more")
    recipe = loaded.recipe
    sources = [source for source in (recipe.subjects, recipe.photographs) if source is not None]
    what = identity(recipe.resolved(), digest_inputs(sources, loaded.folder))
    composer = Composer(loaded)
    manifest = begin(output, what)
    if manifest is not None:
        return Build(manifest, found=True)
    samples: dict[str, int] = {}
    tasks: list[tuple[str, str, range]] = []
    for split in SPLITS:
        length = len(composer.plan[split])
        for index, start in enumerate(range(0, length, recipe.samples_per_shard)):
            positions = range(start, min(start + recipe.samples_per_shard, length))
            path = shard_path(split, index)
            samples[path] = len(positions)
            if not (output / path).exists():
                tasks.append((path, split, positions))
    total = sum(samples.values())
    done = total - sum(len(positions) for _, _, positions in tasks)
    report(done, total)

    def count(records: int) -> None:
        nonlocal done
        done += records
        report(done, total)

    if workers == 1 or len(tasks) < 2:
        for path, split, positions in tasks:
            count(write_shard(output, path, (composer.record(split, position) for position in positions)))
    else:
        _make_in_parallel(loaded, output, tasks, min(workers, len(tasks)), count)
    return Build(finish(output, what, samples), found=False)


def _make_in_parallel(
    loaded: LoadedRecipe,
    output: Path,
    tasks: list[tuple[str, str, range]],
    workers: int,
    count: Callable[[int], None],
) -> None:
    # Spawned, not forked: a forked child of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (loaded, stop)) as pool:
        waiting = {pool.submit(_make_shard, output, *task) for task in tasks}
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    count(future.result())
        except BrokenProcessPool:
            raise UserError(
                "a worker process died (out of memory?): run again with fewer workers, it goes on"
            ) from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(loaded: LoadedRecipe, stop: Event) -> None:
    global _worker
    # Ctrl-C is the parent's to handle: it sets `stop`, and shards in progress are dropped.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _worker = _Worker(Composer(loaded), stop)


def _make_shard(output: Path, path: str, split: str, positions: range) -> int:
    assert _worker is not None
    return write_shard(output, path, _worker.records(split, positions))
