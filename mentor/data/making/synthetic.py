"""Procedural cut-outs: a shape in a colour with a texture, whose name says all three."""

from collections.abc import Callable
from itertools import product

import numpy as np
from jaxtyping import UInt8

from mentor.data.making.scenes import COLOURS

SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 1,
    "triangle": lambda x, y: np.maximum(2 * np.abs(x) - y - 1, y - 1) / np.sqrt(5),
    "diamond": lambda x, y: (np.abs(x) + np.abs(y) - 1) / np.sqrt(2),
    "cross": lambda x, y: np.maximum(np.minimum(np.abs(x), np.abs(y)) - 0.36, np.maximum(np.abs(x), np.abs(y)) - 1),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.74) - 0.26,
}
"""Signed distance (negative inside) at coordinates in [-1, 1], y downwards."""

TEXTURES = ("plain", "striped", "checkered")

SHAPE_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")

_BANDS = 6


def shape_name(shape: str, colour: str, texture: str) -> str:
    """What a prompt calls it: "striped red circle", or "red circle" when plain."""
    return f"{colour} {shape}" if texture == "plain" else f"{texture} {colour} {shape}"


def all_shapes() -> list[tuple[str, str, str]]:
    """Every (shape, colour, texture), always in the same order."""
    return list(product(SHAPES, SHAPE_COLOURS, TEXTURES))


def draw_shape(shape: str, colour: str, texture: str, side: int = 96) -> UInt8[np.ndarray, "{side} {side} 4"]:
    """The shape as an RGBA cut-out that touches all four edges, smooth by its signed distance.

    Stripes (horizontal) and checks alternate the colour with a light tint of it, six bands across.
    """
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    x, y = ((grid + 0.5) / side * 2 - 1 for grid in (columns, rows))
    alpha = np.clip(0.5 - SHAPES[shape](x, y) * side / 2, 0, 1)
    base = np.array(COLOURS[colour], dtype=np.float32)
    tint = 0.35 * base + 0.65 * 255
    row, column = (rows * _BANDS // side).astype(int), (columns * _BANDS // side).astype(int)
    light = {"plain": np.zeros_like(row), "striped": row % 2, "checkered": (row + column) % 2}[texture]
    pixels = np.where(light[..., None] == 1, tint, base)
    return np.concatenate([np.rint(pixels), np.rint(alpha * 255)[..., None]], axis=-1).astype(np.uint8)
