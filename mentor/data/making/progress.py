"""Progress with the time left: a bar in a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

# A log gets a line that often, in seconds; what is quicker needs none.
EVERY = 30.0


class ProgressReport:
    """Shows how far work is that has stages; `report` is called as often as one likes.

    Args:
        label: what is being made.
        stream: a terminal or a log; stderr if None.
        every: seconds between lines of a log.
    """

    def __init__(self, label: str, stream: IO[str] | None = None, every: float = EVERY) -> None:
        self._stream = stream or sys.stderr
        self._label, self._every = label, every
        self._stage = ""
        self._begun = self._said = time.monotonic()
        self._first = 0
        self._bar: Progress | None = None
        self._task = None
        if self._stream.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(file=self._stream))

    def __enter__(self) -> "ProgressReport":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, stage: str, done: int, total: int | None) -> None:
        """Show that so many of so many are done in a stage; `total` is None when nobody knows it yet."""
        now = time.monotonic()
        if stage != self._stage:
            # The rate is that of this run: what an earlier one has done does not count.
            self._stage, self._begun, self._first = stage, now, done
            if self._bar is not None:
                self._task = self._bar.add_task(f"{self._label}: {stage}", total=total, completed=done)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif now - self._said >= self._every:
            self._said = now
            print(self._line(done, total, now - self._begun), file=self._stream, flush=True)

    def _line(self, done: int, total: int | None, seconds: float) -> str:
        rate = (done - self._first) / max(seconds, 1e-9)
        of = f" of {total:,}" if total is not None else ""
        left = f", {_spoken((total - done) / rate)} left" if total is not None and rate > 0 else ""
        return f"{self._label}: {self._stage}: {done:,}{of} ({rate:,.0f}/s{left})"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


def _spoken(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
