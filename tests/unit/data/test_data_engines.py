"""Engines: the same results wherever work is done, and what happens when workers are lost or given up."""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mentor.data.making.engines import Tick, open_engine
from mentor.errors import UserError


@dataclass(frozen=True)
class Squares:
    """Squares of the numbers of a job; some numbers do something else."""

    folder: Path

    def begin(self) -> Callable[[tuple[int, ...], Tick], tuple[list[int], int]]:
        """Leaves a mark for each process."""
        (self.folder / f"{os.getpid()}.{time.monotonic_ns()}").touch()

        def work(job: tuple[int, ...], tick: Tick) -> tuple[list[int], int]:
            for number in job:
                if number == -1:
                    raise UserError("this number is not allowed")
                if number == -2:
                    os._exit(9)
                if number == -3:
                    raise KeyError("a fault")
                tick()
            return [number**2 for number in job], os.getpid()

        return work


JOBS = [tuple(range(start, start + 40)) for start in range(0, 400, 40)]


def results(folder: Path, name: str, workers: int, jobs: Any = JOBS) -> tuple[list[list[int]], set[int], list[int]]:
    """The results sorted, the processes that made them, and the ticks."""
    made: list[tuple[list[int], int]] = []
    ticks: list[int] = []
    with open_engine(name, workers) as engine:
        engine.run(Squares(folder), jobs, made.append, ticks.append)
    return sorted(squares for squares, _ in made), {process for _, process in made}, ticks


def test_one_process_and_several_give_the_same(tmp_path: Path) -> None:
    one, here, ticks = results(tmp_path, "local", 1)
    assert here == {os.getpid()}
    assert sum(ticks) == 400
    assert len(list(tmp_path.iterdir())) == 1
    two, elsewhere, ticks = results(tmp_path, "local", 2)
    assert one == two == [[number**2 for number in job] for job in JOBS]
    assert os.getpid() not in elsewhere
    assert sum(ticks) == 400
    assert len(list(tmp_path.iterdir())) <= 3


def test_a_single_job_starts_no_process(tmp_path: Path) -> None:
    assert results(tmp_path, "local", 4, JOBS[:1])[1] == {os.getpid()}
    assert results(tmp_path, "local", 4, [])[0] == []


def test_what_goes_wrong_in_a_process_goes_wrong_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this number is not allowed"):
        results(tmp_path, "local", 2, [(1,), (-1,), (2,)])
    with pytest.raises(KeyError, match="a fault"):
        results(tmp_path, "local", 2, [(1,), (-3,), (2,)])


def test_a_process_that_dies_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a worker process died .*fewer workers"):
        results(tmp_path, "local", 2, [(1,), (-2,), (2,)])


def test_work_stops_soon_when_this_process_gives_up(tmp_path: Path) -> None:
    long = [tuple(range(100)) for _ in range(2)]
    begun = time.monotonic()

    def refuse(ticks: int) -> None:
        if ticks:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_engine("local", 2) as engine:
        engine.run(Slow(), long, lambda made: None, refuse)
    assert time.monotonic() - begun < 60


@dataclass(frozen=True)
class Slow:
    """A second for every number."""

    def begin(self) -> Callable[[tuple[int, ...], Tick], None]:
        """Sleeps."""

        def work(job: tuple[int, ...], tick: Tick) -> None:
            for number in job:
                time.sleep(0.01 if number < 20 else 1)
                tick()

        return work


@pytest.mark.parametrize(
    ("name", "workers", "message"),
    [
        ("dask", 1, "engine 'dask' is unknown: choose local, ray"),
        ("local:here", 1, "engine 'local:here' is unknown"),
        ("local", 0, "workers=0 is not allowed"),
    ],
)
def test_engines_that_do_not_exist_are_refused(name: str, workers: int, message: str) -> None:
    with pytest.raises(UserError, match=message), open_engine(name, workers):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install ray"), open_engine("ray", 2):
        pass


@pytest.mark.slow
def test_ray_gives_the_same_and_its_failures_are_told_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    made: list[tuple[list[int], int]] = []
    ticks: list[int] = []
    work = ray_work(tmp_path)
    with open_engine("ray", 2) as engine:
        engine.run(work, JOBS, made.append, ticks.append)
        with pytest.raises(UserError, match="this number is not allowed"):
            engine.run(work, [(1,), (-1,)], made.append, ticks.append)
        with pytest.raises(UserError, match=r"a Ray worker was lost"):
            engine.run(work, [(-2,)], made.append, ticks.append)
    assert sorted(squares for squares, _ in made[:10]) == [[number**2 for number in job] for job in JOBS]
    assert os.getpid() not in {process for _, process in made}
    assert sum(ticks[:10]) == 400
    with pytest.raises(UserError, match=r"Ray cannot be reached at 127\.0\.0\.1:1"), open_engine("ray:127.0.0.1:1", 1):
        pass


def ray_work(folder: Path) -> Any:
    """The work of a module that Ray's processes can import, as they can `mentor`."""
    import test_data_engines  # type: ignore[import-not-found]

    return test_data_engines.Squares(folder)


def test_a_stop_is_noticed_by_the_work() -> None:
    from mentor.data.making import engines

    class Flag:
        value = 1

    engines._state = (Flag(), None)
    try:
        with pytest.raises(CancelledError):
            engines._do(Squares(Path("/tmp")), (1, 2))
    finally:
        engines._state = engines._making = None
