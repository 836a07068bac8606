"""What happens to an item before it is stored: each step is a config, chosen in a recipe's YAML, and a plain function.

Whenever a picture is decoded it comes upright, as 8-bit RGB, transparency put on a colour: no step asks for that.
Reasons why something is left out are few fixed words, so that they can be counted.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, assert_never

import numpy as np
from PIL import Image
from pydantic import Field, model_validator
from scipy import ndimage

from mentor.config import Config
from mentor.data.making.captions import Caption, CleanCaptions, clean_captions, filter_captions
from mentor.data.making.drafts import Draft, Opened, Prepared, finish_draft, open_draft, start_draft
from mentor.data.making.duplicates import Duplicates
from mentor.data.records import Dropped, RecordObject
from mentor.data.sources.items import Item
from mentor.data.storage.decoding import BLACK, LIMITS, WHITE, BadSample, Colour, Limits
from mentor.data.storage.encoding import Layout
from mentor.data.transforms import fit_mask, fit_pixels
from mentor.errors import UserError

# Masks are compared at this size: what differs by less than a thirty-second of the picture is the same.
_THUMBNAIL = 32


class Size(Config):
    """Drops pictures that are "too small" or "too large", at the size that they have at this place among the steps.

    Attributes:
        min_side: of the shorter side, in pixels.
        max_side: of the longer side.
        min_pixels: width times height.
        max_pixels: likewise.
    """

    step: Literal["size"] = "size"
    min_side: int = Field(default=1, ge=1)
    max_side: int | None = Field(default=None, ge=1)
    min_pixels: int = Field(default=1, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)


class Ratio(Config):
    """Drops pictures that are "too elongated".

    Attributes:
        max: longer side over shorter side.
    """

    step: Literal["ratio"] = "ratio"
    max: float = Field(ge=1)


class Resize(Config):
    """Pictures, masks and views at one size. Shrunk ones are antialiased; masks keep what is covered by half at least.

    Attributes:
        size: of the shorter side, in pixels.
        crop: whether the centred square is cut out; else the ratio of the sides stays.
        upscale: whether smaller pictures are enlarged; else they keep their size (as squares, with `crop`), since
            enlarging adds bytes and nothing to see.
    """

    step: Literal["resize"] = "resize"
    size: int = Field(ge=1, le=16384)
    crop: bool = True
    upscale: bool = False


class Alpha(Config):
    """What becomes of transparency. The colour holds for the whole recipe, wherever this step stands.

    Attributes:
        background: "white", "black" or [red, green, blue], what shows through.
        min_opaque: share of the picture, 0 to 1; with less of it opaque it is "too transparent".
    """

    step: Literal["alpha"] = "alpha"
    background: (
        Literal["white", "black"]
        | tuple[
            Annotated[int, Field(ge=0, le=255)],
            Annotated[int, Field(ge=0, le=255)],
            Annotated[int, Field(ge=0, le=255)],
        ]
    ) = "white"
    min_opaque: float = Field(default=0.0, ge=0, le=1)

    @property
    def colour(self) -> Colour:
        """Red, green and blue."""
        match self.background:
            case "white":
                return WHITE
            case "black":
                return BLACK
            case _:
                return self.background


class Masks(Config):
    """Objects whose masks are of no use lose them, or are left out.

    The reasons are "mask too small" (an empty one always), "mask too large", "mask scattered" and "mask twin". Masks
    are judged at the size that they have at this place among the steps.

    Attributes:
        min_area: share of the picture, 0 to 1.
        max_area: likewise.
        max_components: separate pieces (pixels that touch at their sides belong together).
        twins: two masks of a picture are near-identical when they agree on this share of the area that either of them
            covers, at 32 x 32 pixels; the first stays. None: not looked for.
        failing: what goes: the "mask" alone, or the whole "object".
    """

    step: Literal["masks"] = "masks"
    min_area: float = Field(default=0.0, ge=0, le=1)
    max_area: float = Field(default=1.0, ge=0, le=1)
    max_components: int | None = Field(default=None, ge=1)
    twins: float | None = Field(default=None, gt=0, le=1)
    failing: Literal["mask", "object"] = "mask"

    @model_validator(mode="after")
    def _leaves_something(self) -> "Masks":
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area} is above max_area {self.max_area}")
        return self


class Decode(Config):
    """Decodes pictures that would be stored as they came, so that damage within their pixels is found now."""

    step: Literal["decode"] = "decode"


StepConfig = Annotated[
    Size | Ratio | Caption | CleanCaptions | Resize | Alpha | Masks | Decode | Duplicates, Field(discriminator="step")
]


def duplicates_step(steps: Sequence[StepConfig]) -> Duplicates | None:
    """The step that looks for duplicates, if the recipe has one.

    Raises:
        UserError: there are several.
    """
    found = [step for step in steps if isinstance(step, Duplicates)]
    if len(found) > 1:
        raise UserError("steps: several look for duplicates; one can do it by exact and perceptual at once")
    return found[0] if found else None


def prepare(item: Item, steps: Sequence[StepConfig], layout: Layout, limits: Limits = LIMITS) -> Prepared | Dropped:
    """The item as it is stored, or why it is not.

    Steps run in order. An item that ends without caption, object and view is dropped as "no caption", unless its source
    says which tasks it is meant for. `duplicates` does nothing here: it needs all items.
    """
    colours = [step.colour for step in steps if isinstance(step, Alpha)]
    with_masks = layout.masks or any(isinstance(step, Masks) for step in steps)
    try:
        draft = start_draft(item, colours[-1] if colours else WHITE, limits, with_masks, layout.views)
        for step in steps:
            outcome = apply_step(draft, step)
            if isinstance(outcome, Dropped):
                return outcome
            draft = outcome
        if not (draft.captions or draft.has_objects or draft.has_views or item.tasks):
            return draft.drop("no caption", ", ".join(draft.notes))
        return finish_draft(draft, layout)
    except BadSample as error:
        return Dropped(item.origin, error.reason, error.detail)


def apply_step(draft: Draft, step: StepConfig) -> Draft | Dropped:
    """The draft after one step, or why it ends there.

    Raises:
        BadSample: the step needed the pixels or masks, and they are damaged.
    """
    match step:
        case Size():
            return check_size(draft, step)
        case Ratio():
            return check_ratio(draft, step)
        case Caption():
            return filter_captions(draft, step)
        case CleanCaptions():
            return clean_captions(draft, step)
        case Resize():
            return resize(draft, step)
        case Alpha():
            return check_alpha(draft, step)
        case Masks():
            return check_masks(draft, step)
        case Decode():
            return open_draft(draft)[0]
        case Duplicates():
            return draft
        case _:
            assert_never(step)


def check_size(draft: Draft, config: Size) -> Draft | Dropped:
    """The draft if its picture has the size."""
    width, height = draft.size
    if min(width, height) < config.min_side or width * height < config.min_pixels:
        return draft.drop("too small", f"{width} x {height}")
    too_long = config.max_side is not None and max(width, height) > config.max_side
    if too_long or (config.max_pixels is not None and width * height > config.max_pixels):
        return draft.drop("too large", f"{width} x {height}")
    return draft


def check_ratio(draft: Draft, config: Ratio) -> Draft | Dropped:
    """The draft if its picture is not too elongated."""
    width, height = draft.size
    if max(width, height) > config.max * min(width, height):
        return draft.drop("too elongated", f"{width} x {height}")
    return draft


def resize(draft: Draft, config: Resize) -> Draft | Dropped:
    """The draft with its picture, masks and views resized; a picture that has the size already is not touched."""
    found = draft.size
    wanted = _resized(found, config)
    if wanted[0] * wanted[1] > draft.limits.pixels:
        return draft.drop("too elongated", f"{found[0]} x {found[1]} would become {wanted[0]} x {wanted[1]}")
    if wanted == found and not draft.has_views:
        return draft
    # From four times the size on, what a JPEG's own reduction loses is at most 2 of 255 in the end.
    draft, opened = open_draft(draft, fit=4 * config.size)
    objects = tuple(replace(thing, mask=_resize_mask(thing.mask, wanted, config.crop)) for thing in opened.objects)
    views = []
    for view in opened.views:
        size = _resized((view.image.shape[1], view.image.shape[0]), config)
        if size[0] * size[1] > draft.limits.pixels:
            draft = replace(draft, notes=(*draft.notes, "view: too elongated"))
            continue
        image, mask = _resize_pixels(view.image, size, config.crop), _resize_mask(view.mask, size, config.crop)
        views.append(replace(view, image=image, mask=mask))
    pixels = _resize_pixels(opened.pixels, wanted, config.crop)
    opened = replace(opened, pixels=pixels, objects=objects, views=tuple(views))
    return replace(draft, opened=opened, changed=draft.changed or wanted != found)


def check_alpha(draft: Draft, config: Alpha) -> Draft | Dropped:
    """The draft if enough of its picture is opaque."""
    if not draft.header.has_alpha or not config.min_opaque:
        return draft
    draft, opened = open_draft(draft)
    if opened.opaque < config.min_opaque:
        return draft.drop("too transparent", f"{opened.opaque:.1%} is opaque")
    return draft


def check_masks(draft: Draft, config: Masks) -> Draft:
    """The draft without the masks that are of no use."""
    if not draft.has_masks:
        return draft
    draft, opened = open_draft(draft)
    kept: list[RecordObject] = []
    thumbnails: list[np.ndarray] = []
    notes = []
    for thing in opened.objects:
        fault = "" if thing.mask is None else _mask_fault(thing.mask, thumbnails, config)
        if fault:
            notes.append(fault)
            if config.failing == "object":
                continue
            thing = replace(thing, mask=None)
        kept.append(thing)
    opened = Opened(opened.pixels, tuple(kept), opened.views, opened.opaque)
    return replace(draft, opened=opened, notes=(*draft.notes, *notes))


def _mask_fault(mask: np.ndarray, thumbnails: list[np.ndarray], config: Masks) -> str:
    """What is wrong with a mask; one that is right joins the thumbnails, with which later ones are compared."""
    area = float(mask.mean())
    if area == 0 or area < config.min_area:
        return "mask too small"
    if area > config.max_area:
        return "mask too large"
    if config.max_components is not None and _components(mask) > config.max_components:
        return "mask scattered"
    if config.twins is None:
        return ""
    # The share of each cell that is covered, so that small masks count too.
    cells = _shrink(mask, (_THUMBNAIL, _THUMBNAIL))
    for other in thumbnails:
        if np.minimum(cells, other).sum() >= config.twins * np.maximum(cells, other).sum():
            return "mask twin"
    thumbnails.append(cells)
    return ""


def _components(mask: np.ndarray) -> int:
    numbered = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=numbered)
    return int(numbered.max())


def _resized(size: tuple[int, int], config: Resize) -> tuple[int, int]:
    """Width and height after the step."""
    short = min(size)
    side = config.size if config.upscale else min(config.size, short)
    if config.crop:
        return side, side
    width, height = (side if length == short else max(1, round(length * side / short)) for length in size)
    return width, height


def _resize_pixels(pixels: np.ndarray, size: tuple[int, int], crop: bool) -> np.ndarray:
    if crop:
        return fit_pixels(pixels, size[0])
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _resize_mask(mask: np.ndarray | None, size: tuple[int, int], crop: bool) -> np.ndarray | None:
    if mask is None:
        return None
    if crop:
        return fit_mask(mask, size[0])
    return mask if mask.shape[::-1] == size else _shrink(mask, size) >= 0.5


def _shrink(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The share of each new pixel's area that the mask covers."""
    return np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX))
