"""What people see while pictures are drawn: how many there are, a bar, and the line that a stopped job leaves."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@dataclass
class Tally:
    """How many pictures of how many are finished.

    Attributes:
        who: begins every line, where there is more than one process.
        again: what goes on with a stopped job.
    """

    who: str = ""
    again: str = "the same command goes on"
    done: int = 0
    total: int = 0

    def start(self, done: int, total: int) -> None:
        """Count from here; pictures that are there already are told of."""
        self.done, self.total = done, total
        if done:
            print(f"{self.who}{done} of {total} pictures are there already", file=sys.stderr, flush=True)


class Bar:
    """The bar itself, and the lines on standard output beside it."""

    def __init__(self, tally: Tally, progress: Progress) -> None:
        self._tally = tally
        self._progress = progress
        self._task = progress.add_task("drawing", done=tally.done, all=tally.total)

    def step(self, done: int, total: int) -> None:
        """So many of so many tokens are drawn."""
        self._progress.update(self._task, completed=done, total=total)

    def finish(self, line: str) -> None:
        """One more picture is finished, which the line tells of."""
        self._tally.done += 1
        self._progress.update(self._task, done=self._tally.done)
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line on standard output, above the bar where both are seen."""
        if sys.stdout.isatty() and not self._progress.console.quiet:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)


@contextmanager
def drawing_bar(tally: Tally, visible: bool = True) -> Iterator[Bar]:
    """A bar on standard error, if that is a terminal and it is to be visible."""
    console = Console(stderr=True, quiet=not (visible and sys.stderr.isatty()))
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %, {task.fields[done]} of {task.fields[all]} pictures, left:"),
        TimeRemainingColumn(),
    )
    # Redirected, lines for standard output would all go to the bar's terminal, even those that a file should get.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        yield Bar(tally, progress)


class Stop(KeyboardInterrupt):
    """A signal asks to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ending_cleanly(tally: Tally) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM end the program with one line that says what is finished.

    Raises:
        SystemExit: a signal came; 128 and its number.
    """
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # A shell makes programs in the background ignore Ctrl-C.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                handlers[number] = signal.signal(number, _stop)
    try:
        yield
    except KeyboardInterrupt as error:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        number = error.number if isinstance(error, Stop) else signal.SIGINT
        of = f"{tally.done} of {tally.total} pictures are finished" if tally.total else "no picture was begun"
        with suppress(OSError):
            print(f"{tally.who}stopped: {of}; {tally.again}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stop(number)
