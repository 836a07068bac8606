"""Where work is done: in this process, in several of this machine, or on Ray, always with the same results."""

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any, Protocol, TypeVar

from mentor.errors import UserError

ENGINES = ("local", "ray")
# Worker processes report so many items at once, and the parent looks that often, in seconds.
_AT_ONCE = 16
_PAUSE = 0.2

J = TypeVar("J")
R = TypeVar("R")
J_contra = TypeVar("J_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
Tick = Callable[[], None]


class Work(Protocol[J_contra, R_co]):
    """What is done with every job. Small and plain: it is sent to other processes."""

    def begin(self) -> Callable[[J_contra, Tick], R_co]:
        """The function of a job, made once in each process.

        It calls its second argument for every item that it is through with; that may raise `CancelledError`.
        """
        ...


class Engine(Protocol):
    """Does jobs."""

    def warm(self) -> None:
        """Start what takes time to start: there will be much to do."""
        ...

    def run(self, work: Work[J, R], jobs: Sequence[J], done: Callable[[R], None], tick: Callable[[int], None]) -> None:
        """Do all jobs, in any order.

        Args:
            work: what to do.
            jobs: with what.
            done: called with each result in this process.
            tick: called now and then with the number of items that were finished since.

        Raises:
            UserError: a worker was lost.
        """
        ...


@contextlib.contextmanager
def open_engine(name: str, workers: int) -> Iterator[Engine]:
    """The engine of that name, stopped at the end.

    Args:
        name: "local", "ray" (the cluster in RAY_ADDRESS, else this machine) or "ray:ADDRESS".
        workers: processes.

    Raises:
        UserError: there is no such engine, or no such number of workers.
    """
    kind, _, address = name.partition(":")
    if kind not in ENGINES or (address and kind != "ray"):
        raise UserError(f"engine {name!r} is unknown: choose local, ray or ray:ADDRESS")
    if workers < 1:
        raise UserError(f"workers={workers} is not allowed: say 1 or more")
    engine = _Ray(workers, address) if kind == "ray" else _Pool(workers) if workers > 1 else _Here()
    try:
        yield engine
    finally:
        if not isinstance(engine, _Here):
            engine.close()


class _Here:
    """This process."""

    def warm(self) -> None:
        pass

    def run(self, work: Work[J, R], jobs: Sequence[J], done: Callable[[R], None], tick: Callable[[int], None]) -> None:
        make = work.begin() if jobs else None
        for job in jobs:
            assert make is not None
            done(make(job, lambda: tick(1)))


class _Pool:
    """Processes of this machine, which die with their parent."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        # Not forked from here, since a forked child of a process with threads may hang, but from a server without any
        # that has imported what they need, once for all of them.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["mentor.data.making.work"])
        self._stop = self._context.RawValue("b", 0)
        self._ticks = self._context.Value("Q", 0)
        self._pool: ProcessPoolExecutor | None = None

    def warm(self) -> None:
        # The server imports while the parent still reads the source.
        forkserver.ensure_running()

    def run(self, work: Work[J, R], jobs: Sequence[J], done: Callable[[R], None], tick: Callable[[int], None]) -> None:
        if self._pool is None and len(jobs) < 2:
            _Here().run(work, jobs, done, tick)
            return
        seen = self._ticks.value
        try:
            pool = self._start(min(self._workers, len(jobs)))
            waiting: set[Future[R]] = {pool.submit(_do, work, job) for job in jobs}
            while waiting:
                finished, waiting = wait(waiting, timeout=_PAUSE, return_when=FIRST_COMPLETED)
                now = self._ticks.value
                tick(now - seen)
                seen = now
                for future in finished:
                    done(future.result())
        except BrokenProcessPool:
            raise UserError(
                "a worker process died (out of memory?): run again with fewer workers, it goes on"
            ) from None

    def close(self) -> None:
        self._stop.value = 1
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, workers: int) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(workers, self._context, _start_worker, (self._stop, self._ticks))
        return self._pool


# What a worker process keeps: the parent's wish to stop, the count of items, and the function of the work at hand.
_state: tuple[Any, Any] | None = None
_making: tuple[Work[Any, Any], Callable[[Any, Tick], Any]] | None = None


def _start_worker(stop: Any, ticks: Any) -> None:
    global _state
    # Ctrl-C is the parent's to handle: it says when to stop, and what is in progress is dropped.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _state = (stop, ticks)


def _do(work: Work[J, R], job: J) -> R:
    assert _state is not None
    stop, ticks = _state
    count = 0

    def tick() -> None:
        nonlocal count
        if stop.value:
            raise CancelledError
        count += 1
        if count == _AT_ONCE:
            report()

    def report() -> None:
        nonlocal count
        with ticks.get_lock():
            ticks.value += count
        count = 0

    made = _function(work)(job, tick)
    report()
    return made


def _function(work: Work[J, R]) -> Callable[[J, Tick], R]:
    global _making
    if _making is None or _making[0] != work:
        _making = (work, work.begin())
    return _making[1]


class _Ray:
    """Ray's processes, on this machine or a cluster. All of them must see the output folder and the source alike."""

    def __init__(self, workers: int, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("the engine ray needs a further package: pip install ray") from None
        self._ray: Any = ray
        self._workers = workers
        address = address or os.environ.get("RAY_ADDRESS", "") or "local"
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "ignore_reinit_error": True}
        options = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
        try:
            _check_reachable(address)
            ray.init(address=address, **quiet, **options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"Ray cannot be reached at {address}: {reason}; check ray:ADDRESS or RAY_ADDRESS") from None

    def warm(self) -> None:
        pass

    def run(self, work: Work[J, R], jobs: Sequence[J], done: Callable[[R], None], tick: Callable[[int], None]) -> None:
        ray = self._ray
        actor = ray.remote(num_cpus=1)(_Actor)
        idle = [actor.remote(work) for _ in range(min(self._workers, len(jobs)))]
        left = list(reversed(jobs))
        busy: dict[Any, Any] = {}
        try:
            while left or busy:
                while left and idle:
                    worker = idle.pop()
                    busy[worker.do.remote(left.pop())] = worker
                finished, _ = ray.wait(list(busy), num_returns=1)
                for reference in finished:
                    idle.append(busy.pop(reference))
                    made, count = ray.get(reference)
                    tick(count)
                    done(made)
        except ray.exceptions.RayTaskError as error:
            # What went wrong is told, not where: the engine is nobody's business.
            raise error.cause from None
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"a Ray worker was lost ({reason}): run again with fewer workers, it goes on") from None

    def close(self) -> None:
        self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would go on trying for minutes.

    Raises:
        OSError: nobody answers there.
    """
    match = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    if match:
        socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=5).close()


class _Actor:
    """One of Ray's processes."""

    def __init__(self, work: Work[Any, Any]) -> None:
        self._make = work.begin()

    def do(self, job: Any) -> tuple[Any, int]:
        """The job's result and how many items it had."""
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1

        return self._make(job, tick), count
