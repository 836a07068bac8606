"""Commands that can be killed with all that they started, and what moment they are killed at."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mentor

TICK = 0.002  # seconds between two looks at a command


class Commands:
    """Runs commands in process groups of their own; none of them is left behind when this closes."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._running:
                kill_group(process)

    def run(self, command: Sequence[str], cwd: Path, log: Path, until: Callable[[float], bool]) -> int | None:
        """The exit code of `python COMMAND`; None if it was killed because `until`, asked again and again, said so.

        Args:
            command: what stands after `python`.
            cwd: where it runs.
            log: gets what it prints.
            until: is told the seconds since the start.
        """
        path = os.pathsep.join(filter(None, (str(Path(mentor.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        # One thread: several may add up in another order from start to start.
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as output, self._lock:
            if self._closed:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            self._running.add(process)
        started, killed = time.monotonic(), False
        try:
            # Not reaped before its group is dead, so that the group's number stays its own.
            while not killed and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                time.sleep(TICK)
                killed = until(time.monotonic() - started)
        finally:
            with self._lock:
                kill_group(process)
                self._running.discard(process)
        return None if killed else process.returncode


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and all processes that it started, at once and without warning; wait until they are gone."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(TICK)


class Writing:
    """Says when to kill in the middle of writing: soon after a name that ends so has shown up in a folder.

    Args:
        folder: the folder, which need not exist yet.
        ending: of the names.
        number: which of those that come and go, from 1.
        delay: seconds to wait then.
    """

    def __init__(self, folder: Path, ending: str, number: int, delay: float) -> None:
        self._folder, self._ending, self._left, self._delay = folder, ending, number, delay
        self._there = False
        self._seen_at: float | None = None

    def __call__(self, seconds: float) -> bool:
        """Whether it is time."""
        there = False
        with contextlib.suppress(OSError):
            there = any(name.endswith(self._ending) for name in os.listdir(self._folder))  # noqa: PTH208
        self._left -= there and not self._there
        self._there = there
        if self._left <= 0 and self._seen_at is None:
            self._seen_at = seconds
        return self._seen_at is not None and seconds >= self._seen_at + self._delay


def find_place(run: Path, log: Path, validate_every: int) -> str:
    """Where a training into the folder `run` that printed `log` was killed, as far as its files tell."""
    steps = [0]
    with contextlib.suppress(OSError), (run / "logs" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        steps += [int(row["step"]) for row in csv.DictReader(file)]
    step = max(steps)
    if "training f" not in log.read_text(encoding="utf-8", errors="replace"):
        phase = "starting"
    elif any((run / "checkpoints").glob("*.partial")):
        phase = "writing a checkpoint"
    elif (run / "release.partial").exists():
        phase = "writing the release"
    elif (run / "release").exists():
        phase = "ending"
    elif not step:
        phase = "setting up, or in the first steps"
    elif validate_every and step % validate_every == 0 and not (run / "samples" / f"{step:07d}.png").exists():
        phase = "validating"
    else:
        phase = "training"
    return f"at step {step} ({phase})"
