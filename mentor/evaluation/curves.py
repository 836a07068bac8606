"""Loss curves of training runs, read from their tables and drawn as SVG."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mentor.errors import UserError

Points = Sequence[tuple[float, float]]

TABLE = Path("logs") / "metrics.csv"
WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
PALETTE = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5a97", "#c77d0a", "#40798c", "#6b705c", "#9c3848")
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
    low, high = values[0], values[min(len(values) - 1, math.ceil(0.98 * len(values)))]
    first, last = min(steps), max(steps)
    across = (WIDTH - LEFT - RIGHT) / ((last - first) or 1)
    upwards = (HEIGHT - TOP - BOTTOM) / ((high - low) or 1)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss curves">']
    for share in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        anchor = ("start", "middle", "end")[round(2 * share)]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{low + share * (high - low):.3g}</text>')
        step = f"{first + share * (last - first):,.0f}"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{step}</text>')
    for (name, points), colour in zip(thinned.items(), PALETTE * (1 + len(thinned) // len(PALETTE)), strict=False):
        path = " ".join(
            f"{LEFT + (step - first) * across:.1f},{HEIGHT - BOTTOM - (min(value, high) - low) * upwards:.1f}"
            for step, value in points
        )
        dash = ' stroke-dasharray="5 3"' if name.startswith("val") else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}>'
            f"<title>{escape(name)}</title></polyline>"
        )
    legend = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{escape(name)} {points[-1][1]:.3f}</span>'
        for (name, points), colour in zip(thinned.items(), PALETTE * (1 + len(thinned) // len(PALETTE)), strict=False)
    )
    return "".join([*parts, "</svg>", f'<p class="legend">{legend}</p>'])


def _thin(points: Points) -> Points:
    """At most `MOST_POINTS` points, means over equally many neighbours, so that noise does not hide the course."""
    block = -(-len(points) // MOST_POINTS)
    blocks = [points[first : first + block] for first in range(0, len(points), block)]
    return [tuple(sum(column) / len(part) for column in zip(*part, strict=True)) for part in blocks]  # type: ignore[misc]
