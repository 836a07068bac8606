"""The whole path at demo size: shards, image tokenizer, stage 1, stage 2, pictures, evaluation, report.

    python tools/demo.py [--experiment NAME] [--recipe NAME] [key=value ...]

Every phase is one of the public commands and is printed before it runs. What is finished is kept: after an
interruption the same command goes on where it was, and when all is done it says so at once.
"""

import argparse
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
from rich.table import Table

from mentor.errors import Arguments, UserError, run_main
from mentor.evaluation.headlines import HEADLINES

TOOLS = Path(__file__).resolve().parent
TICK = 2.0  # seconds between two notes of the time spent: no more is lost if this program is killed
ALL = "all"


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


def make_phases(experiment: str, recipe: str, settings: list[str], progress: Progress) -> list[Phase]:
    """All commands in order; `settings` are the recipe's."""
    shards, run = Path("data") / recipe, Path("runs") / experiment
    release, pictures = run / "2" / "release", run / "pictures"

    def train(stage: str) -> tuple[str, ...]:
        return "-m", "mentor.train", f"stage={stage}", f"experiment={experiment}"

    def draw() -> tuple[str, ...]:
        prompt = save_reference(shards, pictures / "reference.png")
        files = ("--image", str(pictures / "reference.png"), "--model", str(release), "--output", str(pictures))
        settings = ("--num-images", "4", "--guidance", "2", "--temperature", "0.7", "--seed", "0", "--grid")
        return "-m", "mentor.generate", prompt, *files, *settings, "--overwrite"

    def evaluate() -> tuple[str, ...]:
        spent = f"seconds_before={sum(progress.seconds.values()):.0f}"
        return "-m", "mentor.evaluate", f"model={release}", f"data={shards}", f"output={run}", spent

    return [
        Phase("shards", lambda: (str(TOOLS / "make_shards.py"), recipe, f"output={shards}", *settings), 20),
        Phase("image tokenizer", lambda: train("tokenizer"), 375),
        Phase("stage 1", lambda: train("1"), 380),
        Phase("stage 2", lambda: train("2"), 425),
        Phase("pictures", draw, 5),
        Phase("evaluation", evaluate, 45),
    ]


def save_reference(shards: Path, path: Path) -> str:
    """Write a picture of a subject that training has never seen to `path`; a prompt that asks for it in another scene.

    Raises:
        UserError: no held-out record of one object has another view of it, or the picture cannot be written.
    """
    # Imported here, so that a finished demo says so without waiting for torch.
    from PIL import Image

    from mentor.data.storage.shards import ShardSet

    heldout = ShardSet(shards, "heldout")
    for shard, count in enumerate(heldout.counts):
        for position in range(count):
            record = heldout.record(shard, position)
            if record.views and len(record.objects) == 1:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(record.views[0].image).save(path)
                return f"The {record.objects[0].name} in <image>.\n {record.captions[0]}"
    raise UserError(f"no held-out record in {shards} has a second view of its subject: make the shards anew")


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
        again = shlex.join(["python", os.path.relpath(__file__), *sys.argv[1:]])
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


def show_numbers(console: Console, metrics: dict[str, float]) -> None:
    """Print the leading numbers beside the least they should be."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for headline in (each for each in HEADLINES if each.key in metrics and each.unit != "s"):
        least, passed = headline.least(metrics), headline.passed(metrics)
        verdict = {True: "[green]reached[/]", False: "[red]not reached[/]", None: ""}[passed]
        floor = "" if least is None else f"at least {least:.2f}"
        table.add_row(headline.key, f"{metrics[headline.key]:.3f}", floor, verdict, headline.title)
    console.print(table)


def show_places(console: Console, run: Path, seconds: float) -> None:
    """Print how long it took and where everything is."""
    console.print(f"[bold]done[/] in {in_words(seconds)} of work", highlight=False)
    release = run / "2" / "release"
    for what, path in (("report", run / "report.html"), ("metrics", run / "metrics.json"), ("model", release)):
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run what is not finished yet, then show the results."""
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--experiment", default="demo", metavar="NAME", help="a name in configs/experiment (default: demo)"
    )
    parser.add_argument("--recipe", default="emoji", metavar="NAME", help="a name in data_recipes (default: emoji)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the recipe, such as limit=300")
    options = parser.parse_args()
    console = Console(soft_wrap=True)
    run = Path("runs") / options.experiment
    progress = Progress(run / "demo.json")
    results = [run / "metrics.json", run / "report.html"]
    if ALL in progress.finished and all(path.is_file() for path in results):
        console.print(f"Finished earlier; to start again remove {run} and data/{options.recipe}.", highlight=False)
        show_numbers(console, json.loads(results[0].read_text(encoding="utf-8")))
        show_places(console, run, sum(progress.seconds.values()))
        return
    phases = make_phases(options.experiment, options.recipe, options.settings, progress)
    for number, phase in enumerate(phases, start=1):
        left = in_words(progress.left(phases))
        console.print(f"\n[bold]{number}/{len(phases)} {phase.title}[/]: about {left} left in all", highlight=False)
        run_phase(phase, progress, console)
    metrics = json.loads(results[0].read_text(encoding="utf-8"))
    write_json(results[0], metrics | {"seconds/total": round(sum(progress.seconds.values()), 1)})
    progress.finish(ALL)
    console.print()
    show_places(console, run, sum(progress.seconds.values()))


if __name__ == "__main__":
    run_main(main)
