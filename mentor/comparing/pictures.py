"""What the runs draw for the same prompts, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mentor.evaluation.benchmarks import Case
from mentor.evaluation.oracles import Pixels
from mentor.evaluation.pictures import GAP, SCALE

HEADER = 14
LARGE = 128  # pictures of this size are not enlarged


@dataclass(frozen=True)
class Row:
    """A prompt with what was given, what was wanted, and what each run made of it."""

    task: str
    prompt: str
    reference: Pixels | None
    target: Pixels
    outputs: tuple[Pixels, ...]

    @property
    def pictures(self) -> tuple[Pixels | None, ...]:
        """All in order of the columns."""
        return (self.reference, self.target, *self.outputs)


def side_by_side(runs: Sequence[Mapping[str, Sequence[Case]]]) -> list[Row]:
    """The cases of all runs, a row an example; every run has the same examples."""
    rows = []
    for task, cases in runs[0].items():
        for index, case in enumerate(cases):
            outputs = tuple(run[task][index].output for run in runs)
            rows.append(Row(task, case.prompt, case.reference, case.target, outputs))
    return rows


def comparison_sheet(rows: Sequence[Row], names: Sequence[str], across: int = 2) -> Image.Image:
    """One picture of all rows: a block a task, in each a column for reference (if any), target and every run.

    Args:
        rows: what is shown.
        names: of the runs.
        across: blocks beside each other.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a sheet needs at least one row")
    tasks = dict.fromkeys(row.task for row in rows)
    blocks = [task_block([row for row in rows if row.task == task], names) for task in tasks]
    lines = [blocks[first : first + across] for first in range(0, len(blocks), across)]
    width = max(sum(block.width for block in line) + GAP * (len(line) + 1) for line in lines)
    heights = [max(block.height for block in line) + GAP for line in lines]
    sheet = Image.new("RGB", (width, sum(heights) + GAP), "white")
    top = GAP
    for line, height in zip(lines, heights, strict=True):
        left = GAP
        for block in line:
            sheet.paste(block, (left, top))
            left += block.width + GAP
        top += height
    return sheet


def task_block(rows: Sequence[Row], names: Sequence[str]) -> Image.Image:
    """The rows of one task under its name and the names of the columns."""
    size = rows[0].target.shape[0]
    scale = 1 if size >= LARGE else SCALE
    step = size * scale + 2
    columns = ("reference", "target", *names)
    first = 0 if any(row.reference is not None for row in rows) else 1
    block = Image.new("RGB", ((len(columns) - first) * step + GAP, len(rows) * step + 2 * HEADER), "white")
    pencil = ImageDraw.Draw(block)
    pencil.text((0, 0), rows[0].task, fill="black")
    for place, name in enumerate(columns[first:]):
        pencil.text((place * step, HEADER), fitting(pencil, name, size * scale), fill="black")
    for position, row in enumerate(rows):
        for place, pixels in enumerate(row.pictures[first:]):
            if pixels is not None:
                enlarged = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
                block.paste(Image.fromarray(enlarged), (place * step, 2 * HEADER + position * step))
    return block


def fitting(pencil: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """As much of a text as fits into a column, in letters that the font has."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    while text and pencil.textlength(text) > width:
        text = text[:-1]
    return text
