"""From a recipe to a folder of shards, with as many processes as one likes and the same bytes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from mentor.data.composing import Composer
from mentor.data.encoding import Layout
from mentor.data.manifest import SPLITS, begin, find, finish, identity, lock, remove_partials, shard_path
from mentor.data.recipes import LoadedRecipe
from mentor.data.records import Record
from mentor.data.sources.archives import digest_inputs
from mentor.data.writing import Sample, Shard, load_shard, sample_of, write_shard
from mentor.errors import UserError


@dataclass(frozen=True)
class _Worker:
    """What a worker process keeps between shards."""

    composer: Composer
    stop: Event

    def samples(self, split: str, positions: range) -> Iterator[Sample]:
        for position in positions:
            if self.stop.is_set():
                raise CancelledError
            yield sample_of(self.composer.record(split, position), Layout())


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
    recipe, layout = loaded.recipe, Layout()
    sources = [source for source in (recipe.subjects, recipe.photographs) if source is not None]
    inputs = digest_inputs(sources, loaded.folder)
    what = identity(recipe.resolved(), inputs, "records", layout.model_dump())
    manifest = find(output, what)
    if manifest is not None:
        return Build(manifest, found=True)
    composer = Composer(loaded)
    with lock(output):
        begin(output, what)
        remove_partials(output)
        shards: dict[str, Shard | None] = {}
        tasks: list[tuple[str, str, range]] = []
        for split in SPLITS:
            length = len(composer.plan[split])
            for index, start in enumerate(range(0, length, recipe.samples_per_shard)):
                positions = range(start, min(start + recipe.samples_per_shard, length))
                path = shard_path(split, index)
                shards[path] = load_shard(output, path, split)
                if shards[path] is None:
                    tasks.append((path, split, positions))
        total = sum(map(len, composer.plan.values()))
        done = total - sum(len(positions) for _, _, positions in tasks)
        report(done, total)

        def count(shard: Shard) -> None:
            nonlocal done
            done += shard.samples
            shards[shard.path] = shard
            report(done, total)

        if workers == 1 or len(tasks) < 2:
            for path, split, positions in tasks:
                samples = (sample_of(composer.record(split, position), layout) for position in positions)
                count(write_shard(output, path, split, samples, layout.members))
        else:
            _make_in_parallel(loaded, output, tasks, min(workers, len(tasks)), count)
        return Build(finish(output, what, [shard for shard in shards.values() if shard is not None]), found=False)


def _make_in_parallel(
    loaded: LoadedRecipe,
    output: Path,
    tasks: list[tuple[str, str, range]],
    workers: int,
    count: Callable[[Shard], None],
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


def _make_shard(output: Path, path: str, split: str, positions: range) -> Shard:
    assert _worker is not None
    return write_shard(output, path, split, _worker.samples(split, positions), Layout().members)


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
