"""Small histograms as SVG, for a page that loads nothing."""

from collections.abc import Sequence
from html import escape

import numpy as np

BARS = 24
WIDTH, HEIGHT = 240, 72


def chart(title: str, values: Sequence[float]) -> str:
    """A figure with the values' histogram, or the value itself if there is but one; nothing for no values."""
    if not values:
        return ""
    array = np.asarray(values, dtype=float)
    if array.min() == array.max():
        body = f'<p class="one">{_shown(array[0])} <small>every time</small></p>'
        return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{body}</figure>'
    note = f"median {_shown(float(np.median(array)))}, mean {_shown(float(array.mean()))}"
    edges, counts, beyond = bins(array)
    step = WIDTH / len(counts)
    bars = []
    for index, count in enumerate(counts):
        height = HEIGHT * count / max(counts)
        # A single outlier stays visible beside a thousand others.
        height = max(height, 1.0) if count else 0.0
        last = index == len(counts) - 1
        bars.append(
            f'<rect x="{index * step + 0.5:.2f}" y="{HEIGHT - height:.2f}" width="{step - 1:.2f}" '
            f'height="{height:.2f}"><title>{_interval(edges, index, beyond and last)}: {count:,}</title></rect>'
        )
    whole = edges[1] - edges[0] == 1 and edges[0] == int(edges[0])
    first, final = edges[0], edges[-1] - 1 if whole else edges[-1]
    label = f'role="img" aria-label="{escape(title)}: {note}"'
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <small>{note}</small></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" {label}>{"".join(bars)}</svg>'
        f'<div class="axis"><span>{_shown(first)}</span><span>{_shown(final)}{" or more" if beyond else ""}</span>'
        "</div></figure>"
    )


def bins(values: np.ndarray) -> tuple[list[float], list[int], bool]:
    """Edges and counts of at most `BARS` equal bins, one for each whole number where these are few.

    The third value says whether the last bin also holds all that lies beyond it: far outliers do not flatten the rest.
    """
    low, high = float(values.min()), float(values.max())
    reach = float(np.quantile(values, 0.99))
    beyond = reach > low and high - low > 2 * (reach - low)
    end = reach if beyond else high
    if bool((values == np.round(values)).all()):
        width = int(-(-(np.floor(end) - low + 1) // BARS))
        count = int(-(-(np.floor(end) - low + 1) // width))
        edges = [low + width * index for index in range(count + 1)]
        beyond = high >= edges[-1]
    else:
        edges = [float(edge) for edge in np.linspace(low, end, BARS + 1)]
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return edges, np.bincount(places, minlength=len(edges) - 1).tolist(), beyond


def _interval(edges: Sequence[float], index: int, beyond: bool) -> str:
    low, high = edges[index], edges[index + 1]
    if beyond:
        return f"{_shown(low)} or more"
    return _shown(low) if high - low == 1 and low == int(low) else f"{_shown(low)} to {_shown(high)}"


def _shown(value: float) -> str:
    """A number in as many places as it needs, at most three significant beyond the point."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
