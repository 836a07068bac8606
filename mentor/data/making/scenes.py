"""Scenes: an object or two, cut out, on a background, at a place. Knows pixels and words, knows no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFilter

from mentor.errors import UserError

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 214, 50),
    "green": (56, 160, 72),
    "blue": (44, 96, 212),
    "purple": (126, 62, 176),
    "pink": (246, 140, 190),
    "gray": (132, 136, 140),
    "white": (252, 252, 252),
    "black": (22, 22, 26),
}

# Share of the free range (canvas minus box) that lies left of and above the box.
PLACES: dict[str, tuple[float, float]] = {
    "in the middle": (0.5, 0.5),
    "at the left": (0.0, 0.5),
    "at the right": (1.0, 0.5),
    "at the top": (0.5, 0.0),
    "at the bottom": (0.5, 1.0),
}

# Two small boxes, each half as wide as the canvas, overlap anywhere but at opposite edges.
OPPOSITE_PLACES: tuple[tuple[str, str], ...] = (
    ("at the left", "at the right"),
    ("at the right", "at the left"),
    ("at the top", "at the bottom"),
    ("at the bottom", "at the top"),
)

SIZES: dict[str, float] = {"large": 0.75, "small": 0.5}

BackgroundKind = Literal["plain", "gradient", "stripes", "checks", "dots", "photo"]
PROCEDURAL_KINDS: tuple[BackgroundKind, ...] = ("plain", "gradient", "stripes", "checks", "dots")

_PERIODS_ACROSS = 4
_MASK_THRESHOLD = 128


@dataclass(frozen=True)
class Background:
    """What stands behind the objects; for the kind "photo", `colour` is what the photograph shows ("daisies")."""

    kind: BackgroundKind
    colour: str

    @property
    def phrase(self) -> str:
        """How a caption names it after the word "on"."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        match self.kind:
            case "plain":
                return f"{article} {self.colour} background"
            case "gradient":
                return f"{article} {self.colour} gradient"
            case "photo":
                return f"a photo of {self.colour}"
            case _:
                return f"{self.colour} {self.kind}"


def all_backgrounds() -> list[Background]:
    """Every procedural background, always in the same order; white and black exist as plain ones only."""
    chromatic = [colour for colour in COLOURS if colour not in ("white", "black")]
    return [
        Background(kind, colour) for kind in PROCEDURAL_KINDS for colour in (COLOURS if kind == "plain" else chromatic)
    ]


def render_background(
    background: Background, size: int, photo: UInt8[np.ndarray, "y x 3"] | None = None
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The background's pixels.

    A gradient runs from its colour at the top to white at the bottom. Patterns are the colour on white with four
    periods across the canvas, so that at 64 px every 8 px token cell looks like its neighbour or the one after.
    A photograph is cropped to its central square, resized and softly blurred, like a shallow focus.

    Raises:
        UserError: a photo background without a photograph.
    """
    if background.kind == "photo":
        if photo is None:
            raise UserError(f"the background {background.phrase!r} needs the photograph that it shows: pass photo=")
        return soften(square(photo, size))
    colour = np.array(COLOURS[background.colour], dtype=np.float32)
    white = np.full(3, 255, dtype=np.float32)
    share = _colour_share(background.kind, size)[..., None]
    return np.rint(share * colour + (1 - share) * white).astype(np.uint8)


def _colour_share(kind: BackgroundKind, size: int) -> np.ndarray:
    """How much of the colour each pixel shows, the rest being white: float32 in [0, 1], `y x`."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    period = size / _PERIODS_ACROSS
    match kind:
        case "gradient":
            return 1 - rows / size
        case "stripes":
            return (columns % period < period / 2).astype(np.float32)
        case "checks":
            return ((rows % period < period / 2) == (columns % period < period / 2)).astype(np.float32)
        case "dots":
            distance = np.hypot(rows % period - period / 2, columns % period - period / 2)
            return np.clip(0.34 * period - distance + 0.5, 0, 1)
        case _:
            return np.ones((size, size), dtype=np.float32)


def square(
    image: UInt8[np.ndarray, "y x 3"] | Bool[np.ndarray, "y x"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"] | Bool[np.ndarray, "{size} {size}"]:
    """The central square of a picture or mask at `size` px; a mask is thresholded at half coverage."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    if image.dtype == np.bool_:
        grey = Image.fromarray(image.astype(np.uint8) * 255)
        return np.asarray(grey.resize((size, size), Image.Resampling.BOX, box=box)) >= _MASK_THRESHOLD
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS, box=box))


def soften(image: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """The picture out of focus: its shapes stay readable, its detail does not compete with the object."""
    radius = max(image.shape[:2]) / 48
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def fit(cutout: UInt8[np.ndarray, "y x 4"], side: int) -> UInt8[np.ndarray, "{side} {side} 4"]:
    """The cut-out in a transparent square of `side` px: its longer side fills the square, the other is centred."""
    height, width = cutout.shape[:2]
    scale = side / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    resized = Image.fromarray(cutout).resize((new_width, new_height), Image.Resampling.LANCZOS)
    box = np.zeros((side, side, 4), dtype=np.uint8)
    top, left = (side - new_height) // 2, (side - new_width) // 2
    box[top : top + new_height, left : left + new_width] = np.asarray(resized)
    return box


def crop_to_content(rgba: UInt8[np.ndarray, "y x 4"]) -> UInt8[np.ndarray, "h w 4"]:
    """The cut-out without its empty margin.

    Raises:
        UserError: nothing in it is opaque.
    """
    rows, columns = np.nonzero(rgba[..., 3] > 16)
    if not len(rows):
        raise UserError("a cut-out has no opaque pixel: give RGBA pictures whose alpha marks the object")
    return rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def compose(
    background: UInt8[np.ndarray, "y x 3"],
    cutouts: Sequence[tuple[UInt8[np.ndarray, "h w 4"], int, int, int]],
) -> tuple[UInt8[np.ndarray, "y x 3"], list[Bool[np.ndarray, "y x"]]]:
    """The picture, and for each cut-out the mask of the pixels on which it shows.

    Args:
        background: what is not covered stays as it is.
        cutouts: RGBA picture without margin, side of its box, left and top of the box in px; later ones cover
            earlier ones.

    Raises:
        UserError: a box reaches over the edge.
    """
    return compose_fitted(background, [(fit(rgba, side), left, top) for rgba, side, left, top in cutouts])


def compose_fitted(
    background: UInt8[np.ndarray, "y x 3"], boxes: Sequence[tuple[UInt8[np.ndarray, "side side 4"], int, int]]
) -> tuple[UInt8[np.ndarray, "y x 3"], list[Bool[np.ndarray, "y x"]]]:
    """`compose` for cut-outs that `fit` has already brought to the size of their boxes."""
    image = background.copy()
    height, width = image.shape[:2]
    masks: list[np.ndarray] = []
    for box, left, top in boxes:
        side = box.shape[0]
        if left < 0 or top < 0 or left + side > width or top + side > height:
            raise UserError(
                f"a box of {side} px at ({left}, {top}) reaches over the edge of a {width} x {height} picture"
            )
        place = (slice(top, top + side), slice(left, left + side))
        alpha = box[..., 3:].astype(np.uint16)
        mixed = box[..., :3] * alpha + image[place] * (255 - alpha)
        image[place] = ((mixed + 127) // 255).astype(np.uint8)
        mask = np.zeros((height, width), dtype=bool)
        mask[place] = box[..., 3] >= _MASK_THRESHOLD
        masks = [earlier & ~mask for earlier in masks]
        masks.append(mask)
    return image, masks


def box_side(size: str, canvas: int) -> int:
    """Side in px of the box of a "large" or "small" object."""
    return round(SIZES[size] * canvas)


def box_corner(place: str, side: int, canvas: int) -> tuple[int, int]:
    """Left and top in px of a box of `side` px at a named place."""
    across, down = PLACES[place]
    return round(across * (canvas - side)), round(down * (canvas - side))
