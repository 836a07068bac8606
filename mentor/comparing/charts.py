"""Quality over training time and over sampling time, as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mentor.comparing.sweeps import front
from mentor.evaluation.axes import Axes, colours, legend


@dataclass(frozen=True)
class Point:
    """A place in a chart: seconds to the right, quality upwards, and what is told when the mouse is on it."""

    seconds: float
    quality: float
    label: str


@dataclass(frozen=True)
class Line:
    """The points of a run."""

    name: str
    points: Sequence[Point]


def course_svg(lines: Sequence[Line], label: str) -> str:
    """Quality over seconds of training, a line a run; nothing where there are no points."""
    every = [point for line in lines for point in line.points]
    if not every:
        return ""
    low, high = bounds([point.quality for point in every])
    axes = Axes(0.0, max(point.seconds for point in every), low, high)
    parts = axes.frame(label, lambda seconds: f"{seconds:,.0f} s")
    drawn = list(zip(lines, colours(len(lines)), strict=True))
    for line, colour in drawn:
        places = " ".join(f"{axes.x(point.seconds):.1f},{axes.y(point.quality):.1f}" for point in line.points)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts += [dot(axes, point, colour, line.name) for point in line.points]
    return "".join([*parts, "</svg>", legend((colour, line.name) for line, colour in drawn)])


def pareto_svg(lines: Sequence[Line], label: str) -> str:
    """Quality over seconds a picture takes, on a logarithmic axis; the points that none beats are ringed and joined."""
    every = [
        (line, point, colour) for line, colour in zip(lines, colours(len(lines)), strict=True) for point in line.points
    ]
    if not every:
        return ""
    low, high = bounds([point.quality for _, point, _ in every])
    seconds = [point.seconds for _, point, _ in every]
    axes = Axes(min(seconds) / 1.2, max(seconds) * 1.2, low, high, logarithmic=True)
    parts = axes.frame(label, lambda value: f"{value:.2g} s")
    best = front([(point.seconds, point.quality) for _, point, _ in every])
    places = " ".join(f"{axes.x(every[index][1].seconds):.1f},{axes.y(every[index][1].quality):.1f}" for index in best)
    parts.append(f'<polyline points="{places}" fill="none" stroke="#5d6b7a" stroke-dasharray="2 3"/>')
    for index, (line, point, colour) in enumerate(every):
        parts.append(dot(axes, point, colour, line.name, ringed=index in best))
    return "".join([*parts, "</svg>", legend(zip(colours(len(lines)), (line.name for line in lines), strict=True))])


def dot(axes: Axes, point: Point, colour: str, name: str, ringed: bool = False) -> str:
    """A point with its title."""
    ring = ' stroke="#1d2733" stroke-width="1.6"' if ringed else ""
    title = escape(f"{name}: {point.label}; {point.quality:.3g} at {point.seconds:.3g} s")
    x, y = axes.x(point.seconds), axes.y(point.quality)
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"{ring}><title>{title}</title></circle>'


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest with some air, so that no point lies on an edge."""
    low, high = min(values), max(values)
    air = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    return low - air, high + air
