"""A record as the members of one shard sample, and back. Knows bytes, knows no folder."""

import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mentor.data.records import Record, RecordObject, View

# In the order in which a shard stores them; every sample has all of them.
MEMBERS = ("json", "masks.png", "png", "txt", "viewmasks.png", "views.png")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode_record(record: Record) -> dict[str, bytes]:
    """The members of a record by extension, the same bytes for the same record on every machine.

    Raises:
        ValueError: no caption, a key with a dot or a slash, or pictures and masks whose sizes differ.
    """
    _check(record)
    described = {
        "captions": list(record.captions),
        "objects": [
            {"name": thing.name, "phrase": thing.phrase, "attributes": dict(thing.attributes)}
            for thing in record.objects
        ],
        "views": [{"attributes": dict(view.attributes)} for view in record.views],
        "subject": record.subject,
        "attributes": dict(record.attributes),
    }
    return {
        "json": json.dumps(described, ensure_ascii=False, sort_keys=True).encode(),
        "masks.png": _stack_masks([thing.mask for thing in record.objects]),
        "png": _png(record.image),
        "txt": record.captions[0].encode(),
        "viewmasks.png": _stack_masks([view.mask for view in record.views]),
        "views.png": _png(np.concatenate([view.image for view in record.views]) if record.views else _blank(3)),
    }


def decode_record(key: str, members: Mapping[str, bytes]) -> Record:
    """The record that `encode_record` was given.

    Raises:
        ValueError: a member is damaged or does not fit the others; the message says which.
    """
    described = decode_description(members["json"])
    image = _read_png(members["png"], "png", "RGB")
    masks = _unstack(_read_png(members["masks.png"], "masks.png", "L"), len(described["objects"]), "masks.png")
    view_masks = _unstack(
        _read_png(members["viewmasks.png"], "viewmasks.png", "L"), len(described["views"]), "viewmasks.png"
    )
    views = _unstack(_read_png(members["views.png"], "views.png", "RGB"), len(described["views"]), "views.png")
    if any(mask.shape != image.shape[:2] for mask in masks):
        raise ValueError("masks.png does not fit the picture")
    if any(mask.shape != view.shape[:2] for mask, view in zip(view_masks, views, strict=True)):
        raise ValueError("viewmasks.png does not fit views.png")
    return Record(
        key=key,
        image=image,
        captions=tuple(described["captions"]),
        objects=tuple(
            RecordObject(thing["name"], mask >= 128, thing["phrase"], thing["attributes"])
            for thing, mask in zip(described["objects"], masks, strict=True)
        ),
        views=tuple(
            View(view, mask >= 128, facts["attributes"])
            for facts, view, mask in zip(described["views"], views, view_masks, strict=True)
        ),
        subject=described["subject"],
        attributes=described["attributes"],
    )


def decode_description(member: bytes) -> dict[str, Any]:
    """The words of a record, without its pictures: captions, objects, views, subject, attributes.

    Raises:
        ValueError: the member is no such JSON.
    """
    try:
        described = json.loads(member)
        complete = described.keys() >= {"captions", "objects", "views", "subject", "attributes"}
    except (ValueError, AttributeError):
        raise ValueError("json is damaged") from None
    if not complete or not described["captions"]:
        raise ValueError("json lacks a field of the schema")
    return described


def _check(record: Record) -> None:
    if not record.key or "." in record.key or "/" in record.key:
        raise ValueError(f"the key {record.key!r} must be a name without dots and slashes: dots separate the members")
    if not record.captions:
        raise ValueError(f"record {record.key} has no caption: every record needs at least one")
    if record.image.dtype != np.uint8 or record.image.ndim != 3 or record.image.shape[2] != 3:
        raise ValueError(f"record {record.key}: the image must be uint8 of shape y x 3, got {record.image.shape}")
    shape = record.image.shape[:2]
    if any(thing.mask.shape != shape or thing.mask.dtype != np.bool_ for thing in record.objects):
        raise ValueError(f"record {record.key}: every mask must be bool and as large as the image, {shape}")
    views = {view.image.shape for view in record.views} | {(*view.mask.shape, 3) for view in record.views}
    if len(views) > 1:
        raise ValueError(f"record {record.key}: its views and their masks must all have one size, got {sorted(views)}")


def _blank(channels: int) -> np.ndarray:
    return np.zeros((1, 1, channels) if channels > 1 else (1, 1), dtype=np.uint8)


def _stack_masks(masks: Sequence[np.ndarray]) -> bytes:
    return _png(np.concatenate(masks).astype(np.uint8) * 255 if masks else _blank(1))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    # Level 1 costs a tenth of the default's time; these pictures gain little from more.
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _read_png(member: bytes, name: str, mode: str) -> np.ndarray:
    try:
        _check_png(member)
        with Image.open(io.BytesIO(member), formats=["PNG"]) as opened:
            return np.array(opened.convert(mode))
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        raise ValueError(f"{name} is not a readable PNG picture") from None


def _check_png(member: bytes) -> None:
    """Compare every chunk's checksum: Pillow leaves those of the pixel data unread, so a flipped bit would pass."""
    if member[:8] != _PNG_SIGNATURE:
        raise ValueError("no PNG signature")
    position = 8
    while position < len(member):
        (length,) = struct.unpack_from(">I", member, position)
        end = position + 8 + length
        (expected,) = struct.unpack_from(">I", member, end)
        if zlib.crc32(member[position + 4 : end]) != expected:
            raise ValueError("checksum differs")
        position = end + 4


def _unstack(pixels: np.ndarray, count: int, name: str) -> list[np.ndarray]:
    if not count:
        return []
    if pixels.shape[0] % count:
        raise ValueError(f"{name} does not hold {count} pictures of one size")
    return np.split(pixels, count)
