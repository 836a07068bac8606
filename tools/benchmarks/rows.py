"""Measurements side by side: rounds interleaved in one run, medians, and a table of what was asked for and reached."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mentor.data.storage.writing import write_whole
from mentor.errors import UserError


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Attributes:
        case: what was measured.
        peer: what it is compared with; empty when the value stands for itself.
        goal: what was asked for, in words.
        value: the measurement; the median where there are rounds.
        low: the least of the rounds.
        high: the largest.
        unit: of the three; "ratio" above 1 means that ours is faster.
        reached: whether the goal was; None where it cannot be said here.
        note: what else is worth knowing.
    """

    case: str
    peer: str
    goal: str
    value: float
    low: float
    high: float
    unit: str
    reached: bool | None
    note: str = ""


def single(case: str, goal: str, value: float, unit: str, reached: bool | None, note: str = "") -> Row:
    """A row of one measurement."""
    return Row(case, "", goal, value, value, value, unit, reached, note)


def compare(
    case: str, peer: str, goal: float, ours: Callable[[], None], theirs: Callable[[], None], rounds: int, note: str = ""
) -> Row:
    """The ratio of their time to ours, round by round in turn, so that the machine's moods meet both."""
    seconds: dict[Callable[[], None], list[float]] = {ours: [], theirs: []}
    for number in range(rounds):
        # Whoever begins has the colder caches.
        for each in (ours, theirs) if number % 2 else (theirs, ours):
            seconds[each].append(timed(each))
    return ratio(case, peer, goal, seconds[ours], seconds[theirs], note)


def ratio(
    case: str, peer: str, goal: float | None, ours: Sequence[float], theirs: Sequence[float], note: str = ""
) -> Row:
    """The row of seconds that were taken round by round in turn; without a goal it is only reported."""
    ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    value = statistics.median(ratios)
    times = f"{statistics.median(ours):.2f} s against {statistics.median(theirs):.2f} s"
    note = "; ".join(part for part in (times, note) if part)
    asked = "-" if goal is None else f"at least {goal:g}"
    reached = None if goal is None else value >= goal
    return Row(case, peer, asked, value, min(ratios), max(ratios), "ratio", reached, note)


def timed(action: Callable[[], None]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    table = Table(title=title)
    for column in ("case", "against", "goal", "measured", "range", "", "note"):
        table.add_column(column, overflow="fold")
    for row in rows:
        verdict = {True: "[green]reached[/]", False: "[red]not reached[/]", None: ""}[row.reached]
        spread = "" if row.low == row.high else f"{row.low:.3g} - {row.high:.3g}"
        measured = f"{row.value:,.3g} {row.unit}" if row.value < 10_000 else f"{row.value:,.0f} {row.unit}"
        table.add_row(row.case, row.peer, row.goal, measured, spread, verdict, row.note)
    # Files and pipes have no width; a narrow terminal folds.
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def described_row(row: Row) -> dict[str, Any]:
    """The row as plain values; a ratio also goes by names of its own."""
    ratios = {"ratio_median": row.value, "ratio_min": row.low, "ratio_max": row.high}
    return asdict(row) | (ratios if row.unit == "ratio" else {})


def save(path: Path, subject: str, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Write the rows as JSON, with what they were measured on."""
    described = {
        "subject": subject,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": torch.get_num_threads(),
            "system": platform.system(),
            "python": platform.python_version(),
        }
        | {name: version(name) for name in ("torch", "numpy", "pillow", "transformers")},
        "settings": dict(settings),
        "rows": [described_row(row) for row in rows],
    }
    try:
        write_whole(path, (json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): give another --json") from None
