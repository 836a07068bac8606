"""A pair of axes in SVG: where values stand, rules and labels, colours, legends."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
PALETTE = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5a97", "#c77d0a", "#40798c", "#6b705c", "#9c3848")


@dataclass(frozen=True)
class Axes:
    """A rectangle of a drawing and the values at its edges.

    Attributes:
        first, last: values at the left and at the right edge.
        low, high: values at the lower and at the upper edge.
        logarithmic: equal steps to the right multiply; `first` and `last` are above 0 then.
    """

    first: float
    last: float
    low: float
    high: float
    logarithmic: bool = False

    def x(self, value: float) -> float:
        """Where a value stands, counted from the left."""
        place, first, last = (self._along(number) for number in (value, self.first, self.last))
        return LEFT + (place - first) * ((WIDTH - LEFT - RIGHT) / ((last - first) or 1))

    def y(self, value: float) -> float:
        """Where a value stands, counted from the top."""
        return HEIGHT - BOTTOM - (value - self.low) * ((HEIGHT - TOP - BOTTOM) / ((self.high - self.low) or 1))

    def frame(self, label: str, written: Callable[[float], str]) -> list[str]:
        """The beginning of an SVG element: three rules with their values, and three values below.

        Args:
            label: what the drawing is, for those who do not see it.
            written: the values below as text.
        """
        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
        for share in (0.0, 0.5, 1.0):
            y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
            x = LEFT + share * (WIDTH - LEFT - RIGHT)
            anchor = ("start", "middle", "end")[round(2 * share)]
            value = self.low + share * (self.high - self.low)
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
            below = escape(written(self._between(share)))
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{below}</text>')
        return parts

    def _along(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value

    def _between(self, share: float) -> float:
        if self.logarithmic:
            return self.first * (self.last / self.first) ** share
        return self.first + share * (self.last - self.first)


def colours(count: int) -> tuple[str, ...]:
    """So many colours; they come again when there are no more."""
    return (PALETTE * (1 + count // len(PALETTE)))[:count]


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """A line that says what each colour is; entries are (colour, text)."""
    keys = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{escape(text)}</span>' for colour, text in entries
    )
    return f'<p class="legend">{keys}</p>'
