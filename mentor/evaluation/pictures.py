"""Cases of an evaluation as pictures: which to show, contact sheets, PNG bytes."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mentor.evaluation.benchmarks import Case
from mentor.evaluation.oracles import Pixels

GAP = 6
SCALE = 2
COLUMNS = ("reference", "target", "output")


def best(cases: Sequence[Case], count: int) -> list[Case]:
    """The cases that came out best, the best first."""
    return sorted(cases, key=lambda case: case.order, reverse=True)[:count]


def worst(cases: Sequence[Case], count: int) -> list[Case]:
    """The cases that came out worst, the worst first."""
    return sorted(cases, key=lambda case: case.order)[:count]


def png_bytes(pixels: Pixels) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def contact_sheet(cases: Sequence[Case], across: int = 4) -> Image.Image:
    """Cases side by side, each as reference (if there is one), target and output under the column's name.

    Raises:
        ValueError: there are no cases.
    """
    if not cases:
        raise ValueError("a contact sheet needs at least one case")
    with_reference = any(case.reference is not None for case in cases)
    names = COLUMNS if with_reference else COLUMNS[1:]
    side = cases[0].target.shape[0] * SCALE
    wide, high = len(names) * (side + 2) + GAP, side + GAP
    rows = -(-len(cases) // across)
    columns = min(across, len(cases))
    header = 14
    sheet = Image.new("RGB", (columns * wide + GAP, rows * high + header + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, case in enumerate(cases):
        left, top = GAP + index % columns * wide, header + index // columns * high
        for place, name in enumerate(names):
            x = left + place * (side + 2)
            if index < columns:
                draw.text((x, 1), name, fill="black")
            pixels = getattr(case, name)
            if pixels is not None:
                enlarged = np.repeat(np.repeat(pixels, SCALE, axis=0), SCALE, axis=1)
                sheet.paste(Image.fromarray(enlarged), (x, top))
    return sheet
