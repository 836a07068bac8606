"""Whose picture is it: the reference's own subject is to be found among others by what the picture shows.

Again analysis-by-synthesis: each candidate's cut-out (from its own reference picture and mask) is put on the backdrop
that the scene oracle found, where the picture has its object, and the two are compared in a perceptual colour space,
coarse to fine, allowing small shifts. Comparing whole renderings makes up for what a mask cannot know: a white object
on a white background still has its dark parts in the right places.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

from mentor.evaluation.oracles import Mask, Pixels, SceneOracle, SceneReading, robust_box

# Side of the canvas on which renderings are compared, and how finely it is divided.
CANVAS = 24
CELLS = (4, 8, 12)
SHIFTS = (-1, 0, 1)


@dataclass(frozen=True)
class Cutout:
    """A candidate on the comparison canvas, its longer side filling it: colours times coverage, and coverage."""

    colour: Float[np.ndarray, "y x 3"]
    cover: Float[np.ndarray, "y x"]


def cut_out(picture: Pixels, mask: Mask) -> Cutout:
    """The masked object of a picture, brought to the comparison canvas; an empty mask takes the whole picture."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        mask, columns, rows = np.ones_like(mask), np.arange(mask.shape[1]), np.arange(mask.shape[0])
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    cover = mask[window].astype(np.float32)
    colour = picture[window].astype(np.float32) * cover[..., None]
    height, width = cover.shape
    side = max(height, width)
    planes = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    planes[top : top + height, left : left + width] = np.dstack([colour, cover])
    resized = resize(planes, (0, 0, side, side))
    return Cutout(resized[..., :3], resized[..., 3].clip(0, 1))


class SubjectOracle:
    """Ranks candidates by how well each explains a picture."""

    def __init__(self, scenes: SceneOracle) -> None:
        self.scenes = scenes

    def find(self, picture: Pixels, candidates: Sequence[Cutout], place: str = "") -> int:
        """Index of the candidate that explains the picture best; ties go to the first.

        Args:
            picture: the picture to judge.
            candidates: cut-outs of the candidates' references.
            place: where the subject was asked for; decides which object is meant where the picture has two.
        """
        return int(np.argmin(self.distances(picture, candidates, place)))

    def distances(self, picture: Pixels, candidates: Sequence[Cutout], place: str = "") -> Float[np.ndarray, "n"]:
        """How far each candidate's rendering is from the picture, at the most favourable box and shift."""
        reading = self.scenes.read(picture)
        boxes = object_boxes(reading, place)
        return np.min([self._at_box(picture, reading, box, candidates) for box in boxes], axis=0)

    def _at_box(
        self,
        picture: Pixels,
        reading: SceneReading,
        box: tuple[float, float, float, float],
        candidates: Sequence[Cutout],
    ) -> Float[np.ndarray, "n"]:
        seen = resize(picture.astype(np.float32), box)
        backdrop = resize(reading.backdrop, box)
        colour = np.stack([candidate.colour for candidate in candidates])
        uncovered = 1 - np.stack([candidate.cover for candidate in candidates])[..., None]
        best = np.full(len(candidates), np.inf)
        for shift in itertools.product(SHIFTS, SHIFTS):
            moved, clear = (np.roll(plane, shift, axis=(1, 2)) for plane in (colour, uncovered))
            best = np.minimum(best, pyramid_distance(moved + clear * backdrop, seen))
        return best


def object_boxes(reading: SceneReading, place: str) -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, right, bottom; squares) in which the subject may stand: as laid out and as the mask has it."""
    size = reading.mask.shape[0]
    if reading.layout is None:
        return [(0.0, 0.0, float(size), float(size))]
    index = reading.layout.places.index(place) if place in reading.layout.places else 0
    left, top, side = reading.layout.boxes[index]
    boxes = [(float(left), float(top), float(left + side), float(top + side))]
    rows, columns = np.nonzero(reading.mask)
    if len(reading.layout.boxes) == 1:
        tight = robust_box(columns, rows)
        assert tight is not None
        half = max(tight[2] - tight[0], tight[3] - tight[1]) / 2
        x, y = (tight[0] + tight[2]) / 2, (tight[1] + tight[3]) / 2
        boxes.append((x - half, y - half, x + half, y + half))
    return boxes


def pyramid_distance(
    rendered: Float[np.ndarray, "n y x 3"], seen: Float[np.ndarray, "y x 3"]
) -> Float[np.ndarray, "n"]:
    """Mean distance in Oklab between pictures that are averaged over ever finer cells."""
    total = np.zeros(len(rendered), np.float64)
    for cells in CELLS:
        first, second = oklab(averages(rendered, CANVAS // cells)), oklab(averages(seen, CANVAS // cells))
        total += np.sqrt(np.square(first - second).sum(axis=-1)).mean(axis=(1, 2))
    return total / len(CELLS)


def averages(planes: Float[np.ndarray, "*n y x c"], block: int) -> Float[np.ndarray, "*n v u c"]:
    """The planes averaged over squares of `block` x `block`."""
    # A sum of few slices is several times faster than NumPy's reduction over several axes.
    columns = functools.reduce(np.add, [planes[..., :, offset::block, :] for offset in range(block)])
    rows = functools.reduce(np.add, [columns[..., offset::block, :, :] for offset in range(block)])
    return rows / np.float32(block**2)


def oklab(pixels: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
    """Oklab (B. Ottosson, 2020) of sRGB in 0-255: lightness 0-1, green-red, blue-yellow.

    Its distances are about as large as differences look.
    """
    share = np.clip(pixels / np.float32(255), 0, 1)
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_OKLAB.T


_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    dtype=np.float32,
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    dtype=np.float32,
)


def resize(planes: Float[np.ndarray, "y x c"], box: tuple[float, float, float, float]) -> Float[np.ndarray, "y x c"]:
    """The box of float planes, averaged onto the comparison canvas; what lies outside repeats the edge."""
    left, top, right, bottom = box
    height, width = planes.shape[:2]
    pad = int(np.ceil(max(0.0, -left, -top, right - width, bottom - height)))
    if pad:
        planes = np.pad(planes, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    shifted = (left + pad, top + pad, right + pad, bottom + pad)
    size = (CANVAS, CANVAS)
    return np.dstack(
        [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(plane)).resize(size, Image.Resampling.BILINEAR, box=shifted)
            )
            for plane in np.moveaxis(planes.astype(np.float32), -1, 0)
        ]
    )
