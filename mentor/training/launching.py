"""Several training processes on this machine, started, watched and ended by the one that the user started."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from mentor.errors import UserError
from mentor.training.signals import SAME_REQUEST

# Tells a process that a `Launcher` has started it.
LAUNCHED = "MENTOR_LAUNCHED"
_TICK = 0.05
# After the first end in disorder, the others get so long to notice it by themselves, then as long to heed SIGTERM.
_PATIENCE = 4.0
# A process whose read end of this pipe closes has lost the one that watches it.
_LIFELINE = "MENTOR_LIFELINE"


@dataclass
class _Child:
    rank: int
    process: subprocess.Popen[bytes]

    @property
    def code(self) -> int | None:
        """The exit code; below 0 a signal's number; None while it runs."""
        return self.process.poll()

    def send(self, number: int) -> None:
        """Send a signal to the process, if it is still there."""
        if self.code is None:
            self.process.send_signal(number)

    def sweep(self) -> None:
        """Kill the process and what it has started, loader processes for example."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


class Launcher:
    """Runs this program once for each process, and gives them one end.

    A signal goes to all of them. When one fails, all end within seconds, and none is left, however this ends.

    Args:
        count: how many processes.
        say: takes a line for people.
    """

    def __init__(self, count: int, say: Callable[[str], None]) -> None:
        self._count = count
        self._say = say
        self._children: list[_Child] = []
        self._requested = 0
        self._at = 0.0

    def run(self) -> None:
        """Run to the end.

        Raises:
            SystemExit: not all of them ended well; the code of the first that did not.
        """
        reading, writing = os.pipe()
        handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                handlers[number] = signal.signal(number, self._pass_on)
        try:
            self._start(reading)
            self._watch()
        finally:
            for child in self._children:
                child.sweep()
            for child in self._children:
                child.process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(reading)
            os.close(writing)

    def _start(self, reading: int) -> None:
        common = {
            LAUNCHED: "1",
            _LIFELINE: str(reading),
            "WORLD_SIZE": str(self._count),
            "LOCAL_WORLD_SIZE": str(self._count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        command = _own_command()
        for rank in range(self._count):
            environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In sessions of their own, so that Ctrl-C comes through here and comes once.
            process = subprocess.Popen(command, env=environment, pass_fds=(reading,), start_new_session=True)
            self._children.append(_Child(rank, process))

    def _watch(self) -> None:
        first, since = None, 0.0
        while any(child.code is None for child in self._children):
            time.sleep(_TICK)
            if first is None:
                first = self._first_failure()
                since = time.monotonic()
                continue
            # All stop together after a signal; that may take the rest of a step and the writing of a checkpoint.
            if self._requested and first.code == 128 + self._requested:
                continue
            passed = time.monotonic() - since
            for child in self._children:
                if passed > 2 * _PATIENCE:
                    child.sweep()
                elif passed > _PATIENCE and child is not first:
                    child.send(signal.SIGTERM)
        first = first or self._first_failure()
        if first is not None:
            raise SystemExit(self._told(first))

    def _first_failure(self) -> _Child | None:
        """Of the processes that have ended badly, one that a signal killed from outside, else the first."""
        failed = [child for child in self._children if child.code]
        return next((child for child in failed if (child.code or 0) < 0), failed[0] if failed else None)

    def _told(self, child: _Child) -> int:
        """The exit code of a process that failed, after a word on it where it could not tell itself."""
        code = child.code or 0
        if code >= 0:
            return code
        name = signal.Signals(-code).name
        hint = "if memory ran out, use a smaller data.batch_size; " if -code == signal.SIGKILL else ""
        self._say(
            f"error: training process {child.rank} (number {child.process.pid}) was ended by {name}: {hint}"
            "the same command goes on from the last checkpoint"
        )
        return 128 - code

    def _pass_on(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if not self._requested:
            self._requested, self._at = number, now
        elif now - self._at < SAME_REQUEST:
            return
        for child in self._children:
            child.send(number)


def follow_launcher() -> None:
    """End this process when the one that started it is gone; for processes of a `Launcher`."""
    if _LIFELINE in os.environ:
        threading.Thread(target=_end_without_launcher, args=(int(os.environ[_LIFELINE]),), daemon=True).start()


def _end_without_launcher(reading: int) -> None:
    os.read(reading, 1)  # nothing is ever written: it returns when the other end is closed
    os._exit(1)


def _own_command() -> list[str]:
    """The command that started this program."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = ["-m", spec.name] if spec is not None else [os.path.abspath(sys.argv[0])]  # noqa: PTH100
    if spec is None and not os.path.isfile(started[0]):  # noqa: PTH113
        raise UserError("several processes need a program that can be started again: run python -m mentor.train")
    return [sys.executable, *started, *sys.argv[1:]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
