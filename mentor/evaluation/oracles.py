"""What a picture shows, read off its pixels without a model: background, object mask and places, a cut-out on black.

A scene is read by analysis-by-synthesis: every procedural background is rendered and compared with the picture, and the
one that explains most of it wins; what it leaves unexplained is the object. Photographs cannot be rendered from a word,
so prompts that ask for one are no matter for this oracle: measures of prompt-following use the procedural ones only.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from mentor.data.making.scenes import (
    OPPOSITE_PLACES,
    PLACES,
    SIZES,
    Background,
    all_backgrounds,
    box_corner,
    box_side,
    render_background,
)
from mentor.errors import UserError

Pixels = UInt8[np.ndarray, "y x 3"]
Mask = Bool[np.ndarray, "y x"]

# In units of 0-255. A pixel further from a background than CAP says no more than "not this one".
CAP = 72.0
# A picture as a whole may be this much too bright, dark or tinted.
LARGEST_OFFSET = 16.0
# The colours of a pattern or gradient may have faded towards its white to this share.
LEAST_CONTRAST = 0.75
WHITE = 255.0
# Distance from the background, after smoothing, that some pixel of an object has.
OBJECT_DISTANCE = 30.0
# Distance that its other pixels have at least, even in the cleanest picture.
LEAST_DISTANCE = 8.0


@dataclass(frozen=True)
class Layout:
    """Boxes in which a scene's objects may stand.

    Attributes:
        places: the place of each object.
        boxes: left, top and side of each object's box, in px.
    """

    places: tuple[str, ...]
    boxes: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class SceneReading:
    """What the oracle sees in a picture.

    Attributes:
        background: the procedural background that fits best.
        backdrop: that background's pixels with the picture's own contrast and offset of colour, float `y x 3` in 0-255.
        mask: True on the objects.
        layout: the arrangement of objects that fits the mask best; None when there is no object.
    """

    background: Background
    backdrop: Float[np.ndarray, "y x 3"]
    mask: Mask
    layout: Layout | None

    @property
    def places(self) -> frozenset[str]:
        """Where objects stand; empty when there is none."""
        return frozenset(self.layout.places) if self.layout else frozenset()


class SceneOracle:
    """Reads background and places off pictures of `size` x `size`; what follows from the size is made once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.backgrounds = all_backgrounds()
        rendered = np.stack([render_background(background, size) for background in self.backgrounds])
        self._rendered = rendered.astype(np.float32)
        self.layouts = all_layouts(size)
        self._weights = self._background_prior()

    def read(self, picture: Pixels) -> SceneReading:
        """What the picture shows.

        Raises:
            UserError: the picture has another size.
        """
        if picture.shape != (self.size, self.size, 3):
            raise UserError(f"the scene oracle was made for {self.size} px, the picture has shape {picture.shape}")
        pixels = picture.astype(np.float32)
        index, backdrop = self._fit(pixels)
        mask = object_mask(pixels, backdrop, self._weights == self._weights.max())
        return SceneReading(self.backgrounds[index], backdrop, mask, self.read_layout(mask))

    def follows(self, picture: Pixels, background: str, places: Sequence[str]) -> tuple[bool, bool]:
        """Whether the background (its phrase) and the set of places are as asked."""
        reading = self.read(picture)
        return reading.background.phrase == background, reading.places == frozenset(places)

    def read_layout(self, mask: Mask) -> Layout | None:
        """The layout whose boxes hold the mask, fill with it and have it in their centres; None for an empty mask."""
        costs = [self._layout_cost(mask, layout) for layout in self.layouts]
        best = int(np.argmin(costs))
        return self.layouts[best] if costs[best] < float("inf") else None

    def _fit(self, pixels: Float[np.ndarray, "y x 3"]) -> tuple[int, Float[np.ndarray, "y x 3"]]:
        """Index of the best background, and its pixels as the picture seems to have them.

        All are compared on every second pixel as they are; the nearest few then with contrast and offset fitted. The
        measure is a capped distance, so that it does not matter what colour the object has, weighted by how often a
        pixel is free of objects in all layouts: corners and edges say more than the middle.
        """
        coarse = np.minimum(_distance(self._rendered[:, ::2, ::2], pixels[None, ::2, ::2]), CAP)
        scores = np.einsum("nyx,yx->n", coarse, self._weights[::2, ::2])
        fits: list[tuple[float, int, np.ndarray]] = []
        for index in np.argsort(scores, kind="stable")[:8]:
            for contrast in self._contrasts(int(index), pixels):
                adapted = self._shifted(WHITE + contrast * (self._rendered[index] - WHITE), pixels)
                score = float((np.minimum(_distance(adapted, pixels), CAP) * self._weights).sum())
                fits.append((score, int(index), adapted))
        _, index, backdrop = min(fits, key=lambda fit: fit[0])
        return index, backdrop

    def _contrasts(self, index: int, pixels: Float[np.ndarray, "y x 3"]) -> list[np.float32]:
        """Contrasts that a background may have here: its own and, if there is white in it, that of least squares."""
        rendered = self._rendered[index]
        near = _distance(pixels, rendered) < CAP
        if self.backgrounds[index].kind == "plain" or not near.any():
            return [np.float32(1)]
        weights = self._weights[near][:, None]
        ink, seen = rendered[near] - WHITE, pixels[near] - WHITE
        contrast = (weights * ink * seen).sum() / max((weights * ink * ink).sum(), 1e-6)
        return [np.float32(1), np.float32(np.clip(contrast, LEAST_CONTRAST, 1.0))]

    def _shifted(self, rendered: Float[np.ndarray, "y x 3"], pixels: Float[np.ndarray, "y x 3"]) -> np.ndarray:
        """A background with the offset of colour that the picture has where the two are near each other."""
        near = _distance(pixels, rendered) < CAP / 2
        if near.sum() < near.size / 20:
            return rendered
        offset = np.median((pixels - rendered)[near], axis=0)
        return rendered + np.clip(offset, -LARGEST_OFFSET, LARGEST_OFFSET)

    def _layout_cost(self, mask: Mask, layout: Layout) -> float:
        """How far, in box sides, the parts of the mask are from lying in the middle of their boxes and filling them.

        The part of an object is what lies nearer to its box's centre than to another's.
        """
        centres = np.array([(left + side / 2, top + side / 2) for left, top, side in layout.boxes])
        rows, columns = np.nonzero(mask)
        squared = (columns[:, None] + 0.5 - centres[:, 0]) ** 2 + (rows[:, None] + 0.5 - centres[:, 1]) ** 2
        nearest = squared.argmin(axis=1)
        misfit = 0.0
        for index, (_, _, side) in enumerate(layout.boxes):
            part = nearest == index
            box = robust_box(columns[part], rows[part])
            if box is None:
                return float("inf")
            x, y = (box[0] + box[2]) / 2 - centres[index, 0], (box[1] + box[3]) / 2 - centres[index, 1]
            longest = max(box[2] - box[0], box[3] - box[1])
            misfit += (2 * float(np.hypot(x, y)) + abs(longest - side)) / side
        return misfit / len(layout.boxes)

    def _background_prior(self) -> Float[np.ndarray, "y x"]:
        free = np.zeros((self.size, self.size), np.float32)
        for layout in self.layouts:
            covered = np.zeros((self.size, self.size), bool)
            for left, top, side in layout.boxes:
                covered[top : top + side, left : left + side] = True
            free += ~covered
        return (free / free.sum()).astype(np.float32)


def all_layouts(size: int) -> list[Layout]:
    """Every arrangement that a scene of `size` px may have: one object of either size, or two small ones opposite."""
    layouts = []
    for place, name in itertools.product(PLACES, SIZES):
        side = box_side(name, size)
        layouts.append(Layout((place,), ((*box_corner(place, side, size), side),)))
    side = box_side("small", size)
    for pair in sorted({tuple(sorted(pair)) for pair in OPPOSITE_PLACES}):
        layouts.append(Layout(pair, tuple((*box_corner(place, side, size), side) for place in pair)))
    return layouts


def object_mask(pixels: Float[np.ndarray, "y x 3"], backdrop: Float[np.ndarray, "y x 3"], free: Mask) -> Mask:
    """True where the picture differs from its backdrop: whole components, without specks, holes filled.

    A component must differ by `OBJECT_DISTANCE` somewhere and by more than the picture's own noise everywhere, so faint
    parts come along with the distinct ones. The noise is that of the `free` region, where no layout has an object.
    """
    # An edge of a pattern may be blurred: any mixture of the colours around it is still background.
    lowest, highest = (reduce(backdrop, size=(3, 3, 1)) for reduce in (ndimage.minimum_filter, ndimage.maximum_filter))
    distance = ndimage.uniform_filter(_distance(pixels, np.clip(pixels, lowest, highest)), size=3)
    noise = float(np.quantile(distance[free], 0.9))
    return clean_mask(distance > np.clip(1.5 * noise, LEAST_DISTANCE, OBJECT_DISTANCE), distance > OBJECT_DISTANCE)


def clean_mask(mask: Mask, certain: Mask | None = None) -> Mask:
    """Components that reach into `certain` and are no specks (an eighth of the largest one at least), holes filled."""
    filled = np.asarray(ndimage.binary_fill_holes(mask), dtype=bool)
    labels, count = _components(filled, np.ones((3, 3), bool))
    if not count:
        return np.zeros_like(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    if certain is not None:
        sizes[np.bincount(labels[certain], minlength=count + 1) == 0] = 0
    kept = np.flatnonzero(sizes >= max(sizes.max() / 8, mask.size / 512))
    return np.isin(labels, kept)


def robust_box(columns: np.ndarray, rows: np.ndarray, share: float = 0.005) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom (exclusive) of pixels less the outermost `share` on each side; None for under four."""
    if len(columns) < 4:
        return None
    skipped = round(share * (len(columns) - 1))
    (left, right), (top, bottom) = (np.sort(values)[[skipped, -1 - skipped]] for values in (columns, rows))
    return int(left), int(top), int(right) + 1, int(bottom) + 1


def mask_on_black(picture: Pixels, threshold: float = 40.0) -> Mask:
    """The object of a picture on black: where some channel exceeds `threshold`, without pinholes and specks.

    Parts of an object that are as dark as that count as background unless they are pinholes; the score of the ground
    truth and of its round trip shows how much that costs.
    """
    mask = picture.max(axis=-1) > threshold
    holes, count = _components(~mask)
    if count:
        sizes = np.bincount(holes.ravel())
        sizes[0] = mask.size
        mask = mask | np.isin(holes, np.flatnonzero(sizes <= mask.size / 341))
    parts, count = _components(mask, np.ones((3, 3), bool))
    if not count:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.isin(parts, np.flatnonzero(sizes >= max(sizes.max() / 32, mask.size / 512)))


def _components(mask: Mask, neighbours: Mask | None = None) -> tuple[np.ndarray, int]:
    """Each pixel's component (0: none, else counted from 1), and how many there are."""
    labels = np.zeros(mask.shape, np.int32)
    count = ndimage.label(mask, neighbours, output=labels)
    assert isinstance(count, int)
    return labels, count


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Root of the mean square over the channels, in 0-255."""
    difference = first - second
    return np.sqrt(np.einsum("...c,...c->...", difference, difference) / 3)
