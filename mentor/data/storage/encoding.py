"""A record as the members of one shard sample, and back. Knows bytes, knows no folder."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from mentor.config import Config
from mentor.data.records import Record, RecordObject, View
from mentor.data.storage.decoding import LIMITS, BadSample, Limits, decode_image, decode_json, decode_mask

FIELDS = frozenset({"captions", "objects", "views", "subject", "attributes"})
PICTURES = ("jpg", "png", "webp")
VIEWS = ("views.jpg", "views.png")
# What a JPEG can hold.
_TALLEST = 65_535
_JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


class Layout(Config):
    """Which members every sample of a data set has: the same in all, as other readers of tars expect.

    Attributes:
        picture: format of the pictures. Views have it too, but for webp, which cannot hold a tall stack: then jpg.
        quality: of jpg and webp, 1 to 100.
        masks: whether objects may have masks.
        views: whether there may be views.
    """

    picture: Literal["png", "jpg", "webp"] = "png"
    quality: int = Field(default=95, ge=1, le=100)
    masks: bool = True
    views: bool = True

    @property
    def members(self) -> tuple[str, ...]:
        """The members' extensions in the order in which a shard stores them."""
        names = ["json", self.picture, "txt"]
        names += ["masks.png"] if self.masks else []
        names += ["viewmasks.png", self.views_member] if self.views else []
        return tuple(sorted(names))

    @property
    def views_member(self) -> str:
        """The extension of the stacked views."""
        return "views.png" if self.picture == "png" else "views.jpg"


def encode_record(record: Record, layout: Layout) -> dict[str, bytes]:
    """The members of a record by extension, the same bytes for the same record on every machine.

    Raises:
        ValueError: the record breaks the schema: see `check_record`, and what the layout has no room for.
    """
    check_record(record)
    return encode_members(record, encode_picture(record.image, layout), layout)


def encode_members(words: Record, picture: bytes, layout: Layout) -> dict[str, bytes]:
    """The members of a record whose picture is encoded already; `words.image` is not looked at.

    Raises:
        ValueError: it has masks or views and the layout has no room for them.
    """
    masks = [thing.mask for thing in words.objects if thing.mask is not None]
    if (masks and not layout.masks) or (words.views and not layout.views):
        raise ValueError(f"record {words.key} has masks or views, for which the layout has no members")
    described = {
        "captions": list(words.captions),
        "objects": [
            {
                "name": thing.name,
                "phrase": thing.phrase,
                "masked": thing.mask is not None,
                "attributes": dict(thing.attributes),
            }
            for thing in words.objects
        ],
        "views": [{"masked": view.mask is not None, "attributes": dict(view.attributes)} for view in words.views],
        "subject": words.subject,
        "attributes": dict(words.attributes),
        "tasks": list(words.tasks),
    }
    members = {
        "json": _JSON.encode(described).encode(),
        layout.picture: picture,
        "txt": (words.captions[0] if words.captions else "").encode(),
    }
    if layout.masks:
        members["masks.png"] = _stack_masks(masks)
    if layout.views:
        views = [view.image for view in words.views]
        stacked = np.concatenate(views) if views else np.zeros((1, 1, 3), np.uint8)
        if len(stacked) > _TALLEST:
            raise ValueError(f"the views of record {words.key} are {len(stacked)} px together, {_TALLEST} is the most")
        members["viewmasks.png"] = _stack_masks([view.mask for view in words.views if view.mask is not None])
        members[layout.views_member] = _encode(stacked, layout.views_member.partition(".")[2], layout.quality)
    return {name: members[name] for name in sorted(members)}


def encode_picture(pixels: np.ndarray, layout: Layout) -> bytes:
    """The picture, uint8 `y x 3`, in the layout's format."""
    return _encode(pixels, layout.picture, layout.quality)


def decode_record(
    key: str, members: Mapping[str, bytes], limits: Limits = LIMITS, fit: int | None = None, whole: bool = False
) -> Record:
    """The record that `encode_record` was given (its pictures exactly so in a layout of png).

    Args:
        key: the record's.
        members: extension -> content.
        limits: of a picture.
        fit: the picture will be shrunk to this side, so that a large JPEG may be decoded at a part of its size; only
            without masks, which go with the whole one.
        whole: that the bytes are those which were written is known, by a checksum.

    Raises:
        BadSample: a member is damaged or does not fit the others; the message says which.
    """
    described = decode_description(members["json"])
    masked = [thing for thing in described["objects"] if thing["masked"]]
    image = _image(members, PICTURES, limits, None if masked else fit, whole)
    masks = _unstack(members, "masks.png", len(masked), limits, whole)
    if any(mask.shape != image.shape[:2] for mask in masks):
        raise BadSample("damaged sample", "masks.png does not fit the picture")
    views = _unstack(members, "views", len(described["views"]), limits, whole)
    shown = [facts for facts in described["views"] if facts["masked"]]
    view_masks = _unstack(members, "viewmasks.png", len(shown), limits, whole)
    if any(mask.shape != views[0].shape[:2] for mask in view_masks):
        raise BadSample("damaged sample", "viewmasks.png does not fit the views")
    drawn, seen = iter(masks), iter(view_masks)
    return Record(
        key=key,
        image=image,
        captions=tuple(described["captions"]),
        objects=tuple(
            RecordObject(thing["name"], next(drawn) if thing["masked"] else None, thing["phrase"], thing["attributes"])
            for thing in described["objects"]
        ),
        views=tuple(
            View(view, next(seen) if facts["masked"] else None, facts["attributes"])
            for facts, view in zip(described["views"], views, strict=True)
        ),
        subject=described["subject"],
        attributes=described["attributes"],
        tasks=tuple(described.get("tasks", ())),
    )


def decode_description(member: bytes) -> dict[str, Any]:
    """The words of a record, without its pictures: captions, objects, views, subject, attributes, tasks.

    Raises:
        BadSample: the member is no such JSON.
    """
    described = decode_json(member)
    try:
        complete = (
            described.keys() >= FIELDS
            and all("name" in thing and "masked" in thing for thing in described["objects"])
            and all("masked" in view for view in described["views"])
            and all(isinstance(caption, str) for caption in described["captions"])
        )
    except (AttributeError, TypeError):
        complete = False
    if not complete:
        raise BadSample("damaged sample", "json lacks a field of the schema")
    return described


def check_record(record: Record) -> None:
    """Make sure that a record keeps the schema.

    Raises:
        ValueError: a key with a dot or a slash, or pictures and masks whose sizes differ.
    """
    if not record.key or "." in record.key or "/" in record.key:
        raise ValueError(f"the key {record.key!r} must be a name without dots and slashes: dots separate the members")
    if record.image.dtype != np.uint8 or record.image.ndim != 3 or record.image.shape[2] != 3:
        raise ValueError(f"record {record.key}: the image must be uint8 of shape y x 3, got {record.image.shape}")
    shape = record.image.shape[:2]
    masks = [thing.mask for thing in record.objects if thing.mask is not None]
    if any(mask.shape != shape or mask.dtype != np.bool_ for mask in masks):
        raise ValueError(f"record {record.key}: every mask must be bool and as large as the image, {shape}")
    views = {view.image.shape for view in record.views}
    views |= {(*view.mask.shape, 3) for view in record.views if view.mask is not None}
    if len(views) > 1:
        raise ValueError(f"record {record.key}: its views and their masks must all have one size, got {sorted(views)}")


def _stack_masks(masks: Sequence[np.ndarray]) -> bytes:
    stacked = np.concatenate(masks).astype(np.uint8) * 255 if masks else np.zeros((1, 1), np.uint8)
    return _encode(stacked, "png", 0)


def _encode(pixels: np.ndarray, kind: str, quality: int) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    match kind:
        case "png":
            # Level 1 costs a tenth of the default's time; these pictures gain little from more.
            picture.save(file, "PNG", compress_level=1)
        case "jpg":
            # Full colour resolution: the codes of a small picture would notice the difference.
            picture.save(file, "JPEG", quality=quality, subsampling=0)
        case "webp":
            picture.save(file, "WEBP", quality=quality)
    return file.getvalue()


def _image(
    members: Mapping[str, bytes], names: Sequence[str], limits: Limits, fit: int | None, whole: bool
) -> np.ndarray:
    name = next(name for name in names if name in members)
    try:
        return decode_image(members[name], limits, fit, whole)
    except BadSample as error:
        raise BadSample(error.reason, f"{name}: {error.detail}") from None


def _unstack(members: Mapping[str, bytes], name: str, count: int, limits: Limits, whole: bool) -> list[np.ndarray]:
    """The `count` pictures or masks that a member holds from top to bottom, each within the limits."""
    if not count:
        return []
    limits = limits.model_copy(update={"pixels": limits.pixels * count})
    try:
        if name == "views":
            pixels = _image(members, VIEWS, limits, None, whole)
        else:
            pixels = decode_mask(members[name], limits, whole)
    except BadSample as error:
        raise BadSample(error.reason, error.detail if name in error.detail else f"{name}: {error.detail}") from None
    if pixels.shape[0] % count:
        raise BadSample("damaged sample", f"{name} does not hold {count} pictures of one size")
    return np.split(pixels, count)
