"""Public commands run one after another: printed before they run, timed, and kept when they are finished."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mentor.errors import UserError

TOOLS = Path(__file__).resolve().parent
TICK = 2.0  # seconds between two notes of the time spent: no more is lost if this program is killed


@dataclass(frozen=True)
class Phase:
    """One command of the path.

    Attributes:
        title: what it is called on the screen and in the file of times.
        command: gives what stands after `python`; called when the phases before it are done.
        seconds: how long it takes on two cores, for the estimate of what is left.
    """

    title: str
    command: Callable[[], tuple[str, ...]]
    seconds: float


class Progress:
    """What has been done and how long it took, kept in a small file beside the results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        self.finished: list[str] = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(path.read_text(encoding="utf-8"))
            self.seconds, self.finished = dict(known["seconds"]), list(known["finished"])

    def add(self, title: str, seconds: float) -> None:
        """Count `seconds` more for a phase, and remember it."""
        self.seconds[title] = self.seconds.get(title, 0.0) + seconds
        self.save()

    def finish(self, title: str) -> None:
        """Remember that a phase is done."""
        if title not in self.finished:
            self.finished.append(title)
        self.save()

    def left(self, phases: list[Phase]) -> float:
        """Seconds that the unfinished phases will take if they keep the pace of the finished ones."""
        done = [phase for phase in phases if phase.title in self.finished and phase.seconds]
        expected = sum(phase.seconds for phase in done)
        pace = sum(self.seconds.get(phase.title, 0.0) for phase in done) / expected if expected > 200 else 1.0
        ahead = [phase for phase in phases if phase.title not in self.finished]
        return sum(max(phase.seconds * pace - self.seconds.get(phase.title, 0.0), 0.0) for phase in ahead)

    def save(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: the place cannot be written.
        """
        try:
            write_json(self.path, {"seconds": self.seconds, "finished": self.finished})
        except OSError as error:
            raise UserError(
                f"cannot write {self.path} ({error.strerror}): start from a folder that can be written"
            ) from error


def run_command(title: str, command: tuple[str, ...], progress: Progress) -> int:
    """The exit code of a command, which shares this terminal; the time is counted whatever happens.

    Ctrl-C reaches the command too, which gets the time to stop in order.
    """
    last = time.monotonic()
    process = subprocess.Popen([sys.executable, *command])
    with passing_on_termination(process):
        while True:
            try:
                code = process.wait(TICK)
            except subprocess.TimeoutExpired:
                code = None
            except KeyboardInterrupt:
                process.wait()
                code = 130
            now = time.monotonic()
            progress.add(title, now - last)
            last = now
            if code is not None:
                return code if code >= 0 else 128 - code


def run_phase(phase: Phase, progress: Progress, console: Console) -> None:
    """Run a phase and say how long it took; if it fails or is interrupted, say how to go on and exit with its code."""
    command = phase.command()
    console.print(f"  {as_typed(command)}", style="dim", highlight=False, markup=False)
    code = run_command(phase.title, command, progress)
    if code:
        again = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
        why = "interrupted" if code in (130, 143) else f"failed with exit code {code}"
        print(f"error: {phase.title} {why}; what is finished is kept, go on with: {again}", file=sys.stderr)
        sys.exit(code)
    progress.finish(phase.title)
    console.print(f"  {phase.title} took {in_words(progress.seconds[phase.title])}", highlight=False)


@contextlib.contextmanager
def passing_on_termination(process: subprocess.Popen[Any]) -> Iterator[None]:
    """While this holds, a request to terminate this program goes to `process`."""
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def as_typed(command: tuple[str, ...]) -> str:
    """The command as one would type it in bash, on one line."""
    words = []
    for word in ("python", *command):
        path = Path(word)
        if path.is_absolute() and path.is_relative_to(TOOLS.parent):
            word = os.path.relpath(path)
        words.append(quote_lines(word) if "\n" in word else shlex.quote(word))
    return " ".join(words)


def quote_lines(word: str) -> str:
    """The word in bash's quotes that can hold line breaks."""
    for plain, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n")):
        word = word.replace(plain, escaped)
    return f"$'{word}'"


def in_words(seconds: float) -> str:
    """A duration such as `7 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
