"""Pixels: conversion, square crop, resize, and the distortions of image recovery, each exact about its mask.

Plane coordinates are continuous pixels, x to the right and y downwards; the centre of the first pixel is (0.5, 0.5).
A homography is a 3x3 matrix that maps a source point (x, y, 1) to its place in the output. The primitives are composed
into one matrix and the picture is sampled once, colour and mask by the very same numbers.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped, UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "y x 3"]
Mask = Bool[np.ndarray, "y x"]
Coverage = Float[np.ndarray, "y x"]
# What a function makes at a size of its own has letters of its own.
Canvas = UInt8[np.ndarray, "side side 3"]
CanvasMask = Bool[np.ndarray, "side side"]
CanvasCoverage = Float[np.ndarray, "side side"]
Homography = Float64[np.ndarray, "3 3"]
Box = tuple[float, float, float, float]


def centre_square(array: Shaped[np.ndarray, "y x *rest"]) -> Shaped[np.ndarray, "side side *rest"]:
    """The largest centred square of a picture or a mask; nothing is squashed."""
    height, width = array.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return array[top : top + side, left : left + side]


def fit_pixels(pixels: Pixels, size: int) -> Canvas:
    """The picture's centred square at `size` x `size`, antialiased; untouched where it has that size already."""
    square = centre_square(pixels)
    if square.shape[0] == size:
        return square
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


def fit_coverage(mask: Mask, size: int) -> CanvasCoverage:
    """The mask's centred square at `size` x `size`: the share of each output pixel's area that the mask covers."""
    square = centre_square(mask)
    if square.shape[0] == size:
        return square.astype(np.float32)
    area = Image.fromarray(square.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    return np.clip(np.asarray(area), 0.0, 1.0)


def fit_mask(mask: Mask, size: int) -> CanvasMask:
    """The mask's centred square at `size` x `size`: True where at least half of a pixel's area is covered."""
    return fit_coverage(mask, size) >= 0.5


def box_of(mask: Mask) -> tuple[int, int, int, int] | None:
    """The tight box (left, top, right, bottom) around a mask, right and bottom exclusive; None where it is empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def translate(dx: float, dy: float) -> Homography:
    """Moves to the right by `dx` and down by `dy`."""
    return np.array([[1.0, 0.0, dx], [0.0, 1.0, dy], [0.0, 0.0, 1.0]])


def stretch(factor_x: float, factor_y: float) -> Homography:
    """Makes wider by `factor_x` and taller by `factor_y` about the origin: a factor of 1.3 enlarges."""
    return np.diag([factor_x, factor_y, 1.0])


def scale(factor: float) -> Homography:
    """Enlarges (above 1) or shrinks (below 1) both axes alike about the origin."""
    return stretch(factor, factor)


def shear(along_x: float, along_y: float = 0.0) -> Homography:
    """Moves a point to the right by `along_x` times its y and down by `along_y` times its x."""
    return np.array([[1.0, along_x, 0.0], [along_y, 1.0, 0.0], [0.0, 0.0, 1.0]])


def rotate(degrees: float) -> Homography:
    """Turns about the origin; positive is counter-clockwise as one sees it, so what lay to the right goes up."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def perspective(corners: Sequence[tuple[float, float]], moved: Sequence[tuple[float, float]]) -> Homography:
    """The homography that takes four corners to four others, corner by corner."""
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, moved, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows, dtype=np.float64), np.array(values)), 1.0).reshape(3, 3)


def about(matrix: Homography, x: float, y: float) -> Homography:
    """The same homography with (x, y) in the part of the origin."""
    return translate(x, y) @ matrix @ translate(-x, -y)


def map_points(matrix: Homography, points: Sequence[tuple[float, float]]) -> Float64[np.ndarray, "n 2"]:
    """Where the points go."""
    moved = np.column_stack([np.asarray(points, dtype=np.float64), np.ones(len(points))]) @ matrix.T
    return moved[:, :2] / moved[:, 2:]


def corners_of(box: Box) -> list[tuple[float, float]]:
    """A box's corners: left top, right top, right bottom, left bottom."""
    left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def bounds(matrix: Homography, box: Box) -> Box:
    """The upright box (left, top, right, bottom) around the place to which a box goes."""
    moved = map_points(matrix, corners_of(box))
    return *map(float, moved.min(axis=0)), *map(float, moved.max(axis=0))  # type: ignore[return-value]


def warp_cutout(pixels: Pixels, mask: Mask, matrix: Homography, size: int) -> tuple[Canvas, CanvasCoverage]:
    """The masked object under a homography on a canvas of `size` x `size`, and how much of each pixel it covers (0..1).

    Colour is averaged over object pixels alone (premultiplied), so nothing of the old background comes along. Where the
    object shrinks to 1/k or less, blocks of k x k source pixels are averaged first, again colour and mask together.
    Colours where the coverage is 0 mean nothing.
    """
    box = box_of(mask)
    if box is None:
        return np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.float32)
    left, top, right, bottom = box
    cutout = np.dstack([pixels[top:bottom, left:right], mask[top:bottom, left:right].astype(np.uint8) * 255])
    from_cutout = matrix @ translate(left, top)
    block = _minification(from_cutout, (0.0, 0.0, right - left, bottom - top))
    # A clear rim of one block, filled up to whole blocks, keeps averages and interpolation inside the array.
    pad_y, pad_x = (-(bottom - top)) % block, (-(right - left)) % block
    cutout = np.pad(cutout, ((block, block + pad_y), (block, block + pad_x), (0, 0)))
    picture = Image.fromarray(cutout, "RGBA").convert("RGBa")
    if block > 1:
        picture = picture.reduce(block)
    inverse = np.linalg.inv(from_cutout @ translate(-block, -block) @ scale(block))
    inverse /= inverse[2, 2]
    warped = picture.transform(
        (size, size), Image.Transform.PERSPECTIVE, inverse.ravel()[:8].tolist(), resample=Image.Resampling.BICUBIC
    )
    rgba = np.asarray(warped.convert("RGBA"))
    return np.ascontiguousarray(rgba[..., :3]), rgba[..., 3].astype(np.float32) / 255


def paste(background: Pixels, pixels: Pixels, mask: Mask | Coverage) -> Pixels:
    """`pixels` over the background by mask or coverage; where that is 0 or 1, one of the two to the bit."""
    share = mask.astype(np.float32)[..., None]
    return np.rint(background * (1 - share) + pixels * share).astype(np.uint8)


def recovery_distortion(
    box: Box,
    size: int,
    rng: random.Random,
    min_scale: float = 0.2,
    distort: float = 0.5,
) -> Homography:
    """A random homography for an object's box on a canvas of `size` pixels, as MENTOR's image recovery draws it.

    The whole canvas, the object with it, shrinks by U(min_scale, 1). With probability `distort` the object is first
    stretched by U(0.7, 1.3) per axis and sheared by U(-0.3, 0.3), then rotated by U(-20, 20) degrees, then each corner
    of the upright box around it moved by up to 20 % of that box's sides. What no longer fits the canvas is shrunk until
    it does; the place is uniform among those where the whole object is on the canvas.
    """
    left, top, right, bottom = box
    matrix = scale(rng.uniform(min_scale, 1.0))
    if rng.random() < distort:
        centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
        affine = shear(rng.uniform(-0.3, 0.3)) @ stretch(rng.uniform(0.7, 1.3), rng.uniform(0.7, 1.3))
        turned = about(rotate(rng.uniform(-20.0, 20.0)) @ affine, centre_x, centre_y)
        matrix = matrix @ _jittered_corners(bounds(turned, box), rng, 0.2) @ turned
    left, top, right, bottom = bounds(matrix, box)
    shrink = min(1.0, size / max(right - left, bottom - top))
    matrix = scale(shrink) @ matrix
    left, top, right, bottom = bounds(matrix, box)
    x, y = rng.uniform(0.0, max(0.0, size - (right - left))), rng.uniform(0.0, max(0.0, size - (bottom - top)))
    return translate(x - left, y - top) @ matrix


def _jittered_corners(box: Box, rng: random.Random, share: float) -> Homography:
    width, height = box[2] - box[0], box[3] - box[1]
    corners = corners_of(box)
    moved = [(x + rng.uniform(-share, share) * width, y + rng.uniform(-share, share) * height) for x, y in corners]
    return perspective(corners, moved)


def _minification(matrix: Homography, box: Box) -> int:
    """How many source pixels fall on one output pixel along one axis, at least 1, rounded."""
    corners = map_points(matrix, corners_of(box))
    x, y = corners[:, 0], corners[:, 1]
    area = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    source = (box[2] - box[0]) * (box[3] - box[1])
    return max(1, round(math.sqrt(source / max(area, 1e-6))))
