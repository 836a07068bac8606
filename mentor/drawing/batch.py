"""Jobs of many prompts: on one process or several, continued after any end with nothing done twice or lost."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mentor.conditioning import Condition
from mentor.data.pictures import is_finished, remove_leftovers, save_picture
from mentor.decoding.settings import SamplingConfig
from mentor.drawing.jobs import Job, plan
from mentor.drawing.loop import Room, Watcher, draw_all
from mentor.drawing.memory import fitting
from mentor.drawing.model import Model
from mentor.drawing.progress import Bar, Tally, drawing_bar
from mentor.drawing.prompts import PromptLine, check_lines
from mentor.drawing.ranks import Rank
from mentor.drawing.records import Records, begin, is_begun
from mentor.errors import UserError
from mentor.sampling import Request


@dataclass(frozen=True, eq=False)
class Wanted:
    """One picture of the job."""

    line: PromptLine
    seed: int
    tokens: int

    @property
    def file(self) -> str:
        """Its name in the job's folder."""
        return self.line.file(self.seed)


@dataclass(frozen=True)
class BatchJob:
    """A prompt file's pictures, all checked.

    Attributes:
        wanted: the pictures of this process.
        batch_size: pictures drawn at a time; None for as many as memory allows.
    """

    model: Model
    lines: Sequence[PromptLine]
    wanted: Sequence[Wanted]
    rank: Rank
    batch_size: int | None = None


def plan_batch(model: Model, lines: list[PromptLine], rank: Rank, batch_size: int | None = None) -> BatchJob:
    """The job of these lines; the processes take its pictures in turns.

    Raises:
        UserError: a line asks for what the model cannot do.
    """
    lengths = list(check_lines(model, lines))
    pictures = [Wanted(line, seed, tokens) for line, tokens in zip(lines, lengths, strict=True) for seed in line.seeds]
    return BatchJob(model, lines, pictures[rank.number :: rank.world], rank, batch_size)


def run_batch(job: BatchJob, folder: Path, overwrite: bool, tally: Tally) -> None:
    """Draw what is not there yet; each picture is written, and its line after it, as soon as it is drawn.

    Args:
        job: what to draw.
        folder: where to.
        overwrite: whether to replace other pictures of the same names.
        tally: counts the pictures of this process.

    Raises:
        UserError: the folder is another job's, or another picture has one of the names, before anything is drawn; an
            image turns out to be damaged; a file cannot be written.
    """
    begun = is_begun(folder, job.model, job.lines)
    opened = _Opened(job.model)
    there = [wanted for wanted in job.wanted if _is_there(wanted, folder, opened, overwrite)]
    if not begun:
        begin(folder, job.model, job.lines)
    with Records(folder, job.rank) as records:
        remove_leftovers(folder, {wanted.file for wanted in job.wanted})
        tally.start(len(there), len(job.wanted))
        with drawing_bar(tally, job.rank.number == 0) as bar:
            _go_on(job, folder, there, opened, records, bar)


def _go_on(job: BatchJob, folder: Path, there: Sequence[Wanted], opened: "_Opened", records: Records, bar: Bar) -> None:
    """Write the lines that are missing, then draw what is."""
    for wanted in there:
        # The end came between the picture and its line.
        if wanted.file not in records.known:
            bar.say(records.add(_describe(job.model, wanted, None)))
    finished = set(there)
    left = [wanted for wanted in job.wanted if wanted not in finished]
    watcher = Watcher[Wanted](bar.step, job.model.tokens * len(left))
    for wanted, picture, seconds in _draw(job, left, opened, watcher):
        save_picture(picture, folder / wanted.file)
        bar.finish(records.add(_describe(job.model, wanted, seconds)))


def _is_there(wanted: Wanted, folder: Path, opened: "_Opened", overwrite: bool) -> bool:
    path = folder / wanted.file
    # Images are opened only for pictures that there is something to compare with.
    if not path.exists() and not path.is_symlink():
        return False
    return is_finished(path, opened.job(wanted.line).about | {"seed": wanted.seed}, overwrite)


def _draw(
    job: BatchJob, left: Sequence[Wanted], opened: "_Opened", watcher: Watcher[Wanted]
) -> Iterator[tuple[Wanted, Image.Image, float]]:
    """The pictures that are left, those of equal settings together, with the seconds that each took."""
    groups: dict[SamplingConfig, list[Wanted]] = {}
    for wanted in left:
        groups.setdefault(wanted.line.sampling, []).append(wanted)
    room = Room(1)
    asked: dict[Wanted, tuple[Job, float]] = {}

    def ask(wanted: Wanted) -> Request:
        asked[wanted] = opened.job(wanted.line), time.monotonic()
        return Request(opened.condition(wanted.line), wanted.seed)

    for sampling, pictures in groups.items():
        lengths = [wanted.tokens for wanted in pictures]
        room.fill(job.batch_size or fitting(job.model, sampling, lengths, sharing=job.rank.local_world))
        for wanted, picture in draw_all(job.model, sampling, pictures, ask, room, watcher):
            made, start = asked.pop(wanted)
            made.sign(picture, wanted.seed)
            yield wanted, picture, time.monotonic() - start


class _Opened:
    """The line whose pictures are being drawn, with its images opened and encoded once for all of them."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._line: PromptLine | None = None
        self._job: Job | None = None
        self._condition: Condition | None = None

    def job(self, line: PromptLine) -> Job:
        """The line as a job of its own."""
        if self._line is not line or self._job is None:
            self._line = self._job = self._condition = None
            seeds, sampling = line.seeds, line.sampling.model_dump()
            try:
                self._job = plan(self._model, line.prompt, line.images, len(seeds), seeds[0], 1, **sampling)
            except UserError as error:
                raise UserError(f"{line.place}: {error}") from error
            self._line = line
        return self._job

    def condition(self, line: PromptLine) -> Condition:
        """The line's prompt with its images encoded; the same object each time."""
        job = self.job(line)
        if self._condition is None:
            self._condition = job.condition()
        return self._condition


def _describe(model: Model, wanted: Wanted, seconds: float | None) -> dict[str, Any]:
    """The line of a picture."""
    return {
        "file": wanted.file,
        "line": wanted.line.number,
        "prompt": wanted.line.prompt,
        "seed": wanted.seed,
        "sampling": wanted.line.sampling.model_dump(mode="json"),
        "fingerprint": model.fingerprint,
        "precision": model.precision,
        "seconds": None if seconds is None else round(seconds, 3),
    }
