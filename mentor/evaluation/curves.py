"""Loss curves of training runs, read from their tables and drawn as SVG."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mentor.errors import UserError
from mentor.evaluation.axes import Axes, colours, legend

Points = Sequence[tuple[float, float]]

TABLE = Path("logs") / "metrics.csv"
MOST_POINTS = 300


@dataclass(frozen=True)
class Run:
    """A training run's losses by name, each as (step, value) points in order."""

    name: str
    losses: Mapping[str, Points]


def find_runs(model: Path) -> list[Path]:
    """Run folders with a table of losses beside the one that holds the release folder `model`, that one included."""
    siblings = model.resolve().parent.parent
    found = [path.parent.parent for path in siblings.glob(f"*/{TABLE}")] if siblings.is_dir() else []
    return sorted(found, key=lambda path: (path.name.isdigit(), path.name))


def read_run(folder: Path) -> Run:
    """The losses in a run folder's table.

    Raises:
        UserError: there is no readable table in it.
    """
    path = folder / TABLE
    losses: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name and "loss" in name and value and math.isfinite(float(value)):
                        losses.setdefault(name, []).append((float(row["step"]), float(value)))
    except OSError as error:
        raise UserError(f"{folder} is no run folder ({path} cannot be read): give the run.dir of a training") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}): leave the run out of runs=[...]") from error
    return Run(folder.name, losses)


def loss_svg(losses: Mapping[str, Points]) -> str:
    """The curves on one pair of axes, as an SVG element: step to the right, loss upwards (the rare outlier cut off)."""
    thinned = {name: _thin(points) for name, points in sorted(losses.items()) if points}
    if not thinned:
        return ""
    steps = [step for points in thinned.values() for step, _ in points]
    values = sorted(value for points in thinned.values() for _, value in points)
    high = values[min(len(values) - 1, math.ceil(0.98 * len(values)))]
    axes = Axes(min(steps), max(steps), values[0], high)
    parts = axes.frame("loss curves", lambda step: f"{step:,.0f}")
    drawn = list(zip(thinned.items(), colours(len(thinned)), strict=True))
    for (name, points), colour in drawn:
        path = " ".join(f"{axes.x(step):.1f},{axes.y(min(value, high)):.1f}" for step, value in points)
        dash = ' stroke-dasharray="5 3"' if name.startswith("val") else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}>'
            f"<title>{escape(name)}</title></polyline>"
        )
    named = ((colour, f"{name} {points[-1][1]:.3f}") for (name, points), colour in drawn)
    return "".join([*parts, "</svg>", legend(named)])


def _thin(points: Points) -> Points:
    """At most `MOST_POINTS` points, means over equally many neighbours, so that noise does not hide the course."""
    block = -(-len(points) // MOST_POINTS)
    blocks = [points[first : first + block] for first in range(0, len(points), block)]
    return [tuple(sum(column) / len(part) for column in zip(*part, strict=True)) for part in blocks]  # type: ignore[misc]
