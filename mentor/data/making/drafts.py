"""An item on its way to a sample: its file's bytes, opened into pixels and masks only when something needs them.

A picture that no step changed is stored as it came, byte for byte, if it is one that every reader shows alike: the
layout's format, upright, 8-bit RGB, opaque, still. Its metadata and colour profile then stay in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mentor.data.records import Dropped, RecordObject, View
from mentor.data.sources.items import Blob, Item, ItemView, MaskPlace
from mentor.data.storage.decoding import (
    LIMITS,
    WHITE,
    BadSample,
    Colour,
    Limits,
    Picture,
    check_structure,
    decode_with_alpha,
    peek_image,
)
from mentor.data.storage.encoding import Layout, encode_picture
from mentor.data.transforms import fit_mask, fit_pixels


@dataclass(frozen=True)
class Prepared:
    """What a sample holds but for its key: the picture encoded, the rest as in a record.

    Attributes:
        picture: in the layout's format.
        captions: may be empty.
        objects: the subject first; masks are as large as the picture.
        views: all of one size.
        subject: as the item's.
        attributes: likewise.
        tasks: likewise.
        notes: reasons that are counted though the sample stays ("caption too short", "view: unreadable file").
    """

    picture: bytes
    captions: tuple[str, ...] = ()
    objects: tuple[RecordObject, ...] = ()
    views: tuple[View, ...] = ()
    subject: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """The decoded part of a draft.

    Attributes:
        pixels: uint8 `y x 3`, upright, transparency on the draft's background.
        objects: with masks as large as the pixels.
        views: of any sizes.
        opaque: share of the picture that is opaque as it came, 0 to 1.
    """

    pixels: np.ndarray
    objects: tuple[RecordObject, ...]
    views: tuple[View, ...]
    opaque: float = 1.0


@dataclass(frozen=True)
class Draft:
    """An item between two steps; steps return changed copies.

    Attributes:
        item: what the source said.
        content: the bytes of the picture's file.
        header: what they begin with.
        captions: as far as they are cleaned and kept.
        background: the colour under transparency.
        limits: what is allowed.
        with_masks: whether masks are read; else no object has one.
        with_views: whether views are read; else there are none.
        opened: None as long as nothing needed pixels.
        changed: whether the pixels are no longer those of the file.
        notes: see `Prepared`.
    """

    item: Item
    content: bytes
    header: Picture
    captions: tuple[str, ...]
    background: Colour = WHITE
    limits: Limits = LIMITS
    with_masks: bool = True
    with_views: bool = True
    opened: Opened | None = None
    changed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as one sees the picture now."""
        if self.opened is None:
            return self.header.upright
        return self.opened.pixels.shape[1], self.opened.pixels.shape[0]

    @property
    def has_masks(self) -> bool:
        """Whether some object has a mask."""
        if self.opened is None:
            return self.with_masks and any(thing.mask is not None for thing in self.item.objects)
        return any(thing.mask is not None for thing in self.opened.objects)

    @property
    def has_objects(self) -> bool:
        """Whether there are objects."""
        return bool(self.item.objects if self.opened is None else self.opened.objects)

    @property
    def has_views(self) -> bool:
        """Whether there are views."""
        return self.with_views and bool(self.item.views if self.opened is None else self.opened.views)

    def drop(self, reason: str, detail: str = "") -> Dropped:
        """The end of the way."""
        return Dropped(self.item.origin, reason, detail)


def start_draft(item: Item, background: Colour, limits: Limits, with_masks: bool, with_views: bool) -> Draft:
    """The item with its picture's bytes and header.

    Raises:
        BadSample: "unreadable file", or what `peek_image` says of the bytes.
    """
    content = _read(item.picture)
    header = peek_image(content, limits)
    # Half a surrogate pair can be written in JSON, but in no text file.
    captions = tuple(caption for caption in item.captions if _is_text(caption))
    notes = ("caption not Unicode",) * (len(item.captions) - len(captions))
    return Draft(item, content, header, captions, background, limits, with_masks, with_views, notes=notes)


def open_draft(draft: Draft, fit: int | None = None) -> tuple[Draft, Opened]:
    """The draft with its picture, masks and views decoded, and these; a view that cannot be read becomes a note.

    Args:
        draft: opened already or not.
        fit: the picture is about to be shrunk to this many pixels on the shorter side or more. A large JPEG without
            masks is then decoded at a part of its size, and the shape of the pixels is not the header's.

    Raises:
        BadSample: what `decode_image` says, or "damaged mask".
    """
    if draft.opened is not None:
        return draft, draft.opened
    fit = None if draft.has_masks else fit
    pixels, alpha = decode_with_alpha(draft.content, draft.limits, draft.background, fit)
    objects = _words(draft)
    if draft.with_masks:
        masks = [_read_mask(thing.mask, pixels, alpha) for thing in draft.item.objects]
        objects = tuple(replace(thing, mask=mask) for thing, mask in zip(objects, masks, strict=True))
    views, notes = [], []
    for view in draft.item.views if draft.with_views else ():
        try:
            views.append(_open_view(draft, view, fit))
        except BadSample as error:
            notes.append(f"view: {error.reason}")
    opaque = 1.0 if alpha is None else float(alpha.mean()) / 255
    opened = Opened(pixels, objects, tuple(views), opaque)
    return replace(draft, opened=opened, notes=(*draft.notes, *notes)), opened


def finish_draft(draft: Draft, layout: Layout) -> Prepared:
    """What is stored of the draft.

    Without a step that gave them one size, views become squares, as large as the shortest side among them.

    Raises:
        BadSample: what opening says, if only that shows it; "picture too large" for the layout's format.
    """
    as_found = _may_stay(draft, layout)
    if not as_found or draft.has_masks or draft.has_views:
        draft, _ = open_draft(draft)
    picture = draft.content if as_found else _encode(draft, layout)
    if as_found:
        check_structure(picture, draft.header)
    if draft.opened is None:
        objects, views = _words(draft), ()
    else:
        objects, views = draft.opened.objects, _alike(draft.opened.views)
    if not layout.masks:
        objects = tuple(replace(thing, mask=None) for thing in objects)
    item = draft.item
    return Prepared(
        picture, draft.captions, objects, views, item.subject, dict(item.attributes), item.tasks, draft.notes
    )


def _encode(draft: Draft, layout: Layout) -> bytes:
    _, opened = open_draft(draft)
    try:
        return encode_picture(opened.pixels, layout)
    except (ValueError, OSError) as error:
        width, height = draft.size
        raise BadSample("picture too large", f"{width} x {height} as {layout.picture}: {error}") from None


def _words(draft: Draft) -> tuple[RecordObject, ...]:
    """The objects without their masks."""
    return tuple(RecordObject(thing.name, None, thing.phrase, thing.attributes) for thing in draft.item.objects)


def _may_stay(draft: Draft, layout: Layout) -> bool:
    header = draft.header
    plain = header.orientation == 1 and not header.has_alpha and not header.animated
    return not draft.changed and plain and header.format == layout.picture and header.mode == "RGB" and header.bits == 8


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(blob: Blob) -> bytes:
    try:
        return blob.read()
    except OSError as error:
        raise BadSample("unreadable file", str(error)) from None


def _read_mask(place: MaskPlace | None, pixels: np.ndarray, alpha: np.ndarray | None) -> np.ndarray | None:
    if place is None:
        return None
    try:
        mask = place.read(pixels, alpha)
    except (OSError, ValueError) as error:
        raise BadSample("damaged mask", str(error)) from None
    if mask.dtype != np.bool_ or mask.shape != pixels.shape[:2]:
        found, wanted = " x ".join(map(str, mask.shape[::-1])), f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise BadSample("damaged mask", f"it is {found} {mask.dtype}, its picture {wanted}")
    return mask


def _open_view(draft: Draft, view: ItemView, fit: int | None) -> View:
    content = _read(view.picture)
    fit = fit if view.mask is None else None
    pixels, alpha = decode_with_alpha(content, draft.limits, draft.background, fit)
    mask = _read_mask(view.mask, pixels, alpha) if draft.with_masks else None
    return View(pixels, mask, view.attributes)


def _alike(views: tuple[View, ...]) -> tuple[View, ...]:
    """The views at one size."""
    if len({view.image.shape for view in views}) < 2:
        return views
    side = min(min(view.image.shape[:2]) for view in views)
    return tuple(
        View(
            fit_pixels(view.image, side),
            None if view.mask is None else fit_mask(view.mask, side),
            view.attributes,
        )
        for view in views
    )
