"""COCO's annotation files: captions, and labelled objects with their masks."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mentor.config import Config
from mentor.data.records import Dropped
from mentor.data.sources.items import FileBlob, Item, ItemObject
from mentor.data.sources.places import (
    PICTURES,
    UNKNOWN_KIND,
    digest_file,
    digest_listing,
    find_folder,
    find_path,
    open_tree,
)
from mentor.errors import UserError

UNREADABLE = "unreadable entry"
_DUPLICATE = "duplicate image id"


class CocoSource(Config):
    """Photographs with COCO's annotations.

    Attributes:
        kind: "coco".
        images: folder of the pictures.
        instances: JSON file of labelled objects.
        captions: JSON file of captions.
        min_area: objects that cover less than this share of the picture are left out.
        crowd: whether annotations of crowds are objects.
        unique: only names that occur once in a picture become objects, so that "the dog" means one thing; crowds and
            small ones count.
        max_objects: the largest so many are kept.
    """

    kind: Literal["coco"]
    images: str
    instances: str | None = None
    captions: str | None = None
    min_area: float = Field(default=0.01, ge=0, le=1)
    crowd: bool = False
    unique: bool = True
    max_objects: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _annotated(self) -> "CocoSource":
        if self.instances is None and self.captions is None:
            raise ValueError("give instances, captions or both: the paths of COCO's JSON files")
        return self


@dataclass(frozen=True)
class CocoMask:
    """COCO's segmentation as it stands in the file: polygons, or runs with or without compression.

    Attributes:
        segmentation: JSON text, which is small, and the same in all processes.
        height: of the picture in px, as the annotations have it. Likewise `width`.
        width: see `height`.
    """

    segmentation: str
    height: int
    width: int

    def read(self, picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
        """True on the object.

        Raises:
            ValueError: the picture has another size, or the segmentation cannot be read or covers nothing.
        """
        if picture.shape[:2] != (self.height, self.width):
            raise ValueError("mask of another size")
        mask = decode_segmentation(json.loads(self.segmentation), self.height, self.width)
        if not mask.any():
            raise ValueError("mask is empty")
        return mask


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """COCO's segmentation as bool `y x`.

    Raises:
        ValueError: it is neither polygons nor runs for this size.
    """
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if list(segmentation.get("size") or ()) != [height, width]:
            raise ValueError("mask of another size")
        runs = _expand(counts) if isinstance(counts, str) else counts
        return _from_runs(runs, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("unreadable segmentation")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("unreadable segmentation")
        if not all(isinstance(number, int | float) for number in polygon):
            raise ValueError("unreadable segmentation")
        # Memory for an outline grows with its length: far outside the picture nothing can be meant.
        if not all(-width <= x <= 2 * width for x in polygon[::2]):
            raise ValueError("unreadable segmentation")
        if not all(-height <= y <= 2 * height for y in polygon[1::2]):
            raise ValueError("unreadable segmentation")
    from pycocotools import mask as coco_masks

    outlines = [[float(number) for number in polygon] for polygon in segmentation]
    # Its stubs know one of the four kinds of objects that it takes.
    runs = coco_masks.merge(coco_masks.frPyObjects(outlines, height, width))  # pyright: ignore[reportArgumentType, reportCallIssue]
    return coco_masks.decode(runs).astype(bool)


def read_coco(config: CocoSource, folder: Path) -> Iterator[Item | Dropped]:
    """The pictures by their id, captions by theirs, objects from the largest.

    Raises:
        UserError: a file or the folder is missing, no JSON or no such JSON, all pictures are missing, or pycocotools.
    """
    if config.instances is not None and find_spec("pycocotools") is None:
        raise UserError("masks of COCO need pycocotools: pip install pycocotools")
    tree = open_tree(find_folder(config.images, folder, "the folder of pictures"))
    files = [
        _File(find_path(path, folder, "the annotation file")) for path in (config.instances, config.captions) if path
    ]
    images, dropped = _images(files)
    captions: dict[Any, list[tuple[Any, str]]] = {}
    things: dict[Any, list[dict[str, Any]]] = {}
    instances = files[0] if config.instances is not None else None
    names = instances.categories() if instances else {}
    if config.captions is not None:
        dropped += _group(files[-1], images, captions, _caption)
    if instances is not None:
        dropped += _group(instances, images, things, lambda row: _thing(row, names))
    licences = {key: value for file in reversed(files) for key, value in file.licences().items()}
    found = {key: tree.find(image["file_name"]) for key, image in images.items()}
    if found and all(entry.problem for entry in found.values()):
        example = next(iter(found.values()))
        raise UserError(
            f"none of the {len(found)} pictures that {files[0].path} names is in {tree.root}, for example "
            f"{example.path} ({example.problem}): check images"
        )
    yield from dropped
    seen: set[str] = set()
    for key in sorted(images, key=_order):
        image, entry = images[key], found[key]
        origin = image["file_name"]
        if entry.problem or entry.kind not in PICTURES or entry.path in seen:
            reason = entry.problem or ("duplicate picture" if entry.path in seen else UNKNOWN_KIND)
            yield Dropped(origin if entry.path not in seen else f"{origin} (image {key})", reason)
            continue
        seen.add(entry.path)
        texts = tuple(text for _, text in sorted(captions.get(key, ()), key=lambda row: _order(row[0])) if text)
        objects = _objects(config, image, things.get(key, []))
        if not texts and not objects:
            yield Dropped(origin, "no caption and no object")
            continue
        yield Item(
            origin, FileBlob(f"{tree.root}/{entry.path}"), texts, objects, attributes=_attributes(key, image, licences)
        )


def describe_coco(config: CocoSource, folder: Path) -> dict[str, str]:
    """The sha256 of the annotation files, and one of the pictures' paths and sizes."""
    described = {
        path: digest_file(find_path(path, folder, "the annotation file"))
        for path in (config.instances, config.captions)
        if path is not None
    }
    tree = open_tree(find_folder(config.images, folder, "the folder of pictures"))
    return {**described, config.images: digest_listing(tree, PICTURES)}


class _File:
    """An annotation file in memory.

    Raises:
        UserError: it cannot be read, is no JSON, or another kind of JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._content = json.loads(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is no readable JSON ({error}): get the annotation file again") from None
        if not isinstance(self._content, dict):
            self._refuse("images")
        self.images = self.rows("images")
        self.annotations = self.rows("annotations")

    def rows(self, key: str) -> list[Any]:
        rows = self._content.get(key)
        return rows if isinstance(rows, list) else self._refuse(key)

    def categories(self) -> dict[Any, str]:
        rows = [row for row in self.rows("categories") if isinstance(row, dict)]
        return {row.get("id"): row["name"] for row in rows if isinstance(row.get("name"), str)}

    def licences(self) -> dict[Any, dict[str, Any]]:
        rows = self._content.get("licenses")
        return {row.get("id"): row for row in rows if isinstance(row, dict)} if isinstance(rows, list) else {}

    def _refuse(self, key: str) -> Any:
        raise UserError(f"{self.path} has no list {key!r}: give a COCO file of instances or captions")


def _images(files: list[_File]) -> tuple[dict[Any, dict[str, Any]], list[Dropped]]:
    """Image id -> its entry, and the entries that cannot be used: an id of two pictures stands for neither."""
    images: dict[Any, dict[str, Any]] = {}
    dropped: list[Dropped] = []
    torn: set[Any] = set()
    for file in files:
        own: set[Any] = set()
        for number, row in enumerate(file.images):
            origin = f"{file.path.name}: image {number}"
            if not isinstance(row, dict) or not _is_id(row.get("id")) or not isinstance(row.get("file_name"), str):
                dropped.append(Dropped(origin, UNREADABLE, "no id or file_name"))
                continue
            key = row["id"]
            known = images.setdefault(key, row)
            if known["file_name"] != row["file_name"]:
                torn.add(key)
                dropped.append(Dropped(origin, _DUPLICATE, f"{key}: {known['file_name']} and {row['file_name']}"))
            elif key in own:
                dropped.append(Dropped(origin, _DUPLICATE, f"{key}: {row['file_name']} again"))
            elif known is not row:
                images[key] = {**row, **known}
            own.add(key)
    for key in torn:
        dropped.append(Dropped(f"{images.pop(key)['file_name']} (image {key})", _DUPLICATE, str(key)))
    return images, sorted(dropped, key=lambda drop: drop.origin)


def _group(
    file: _File, images: Mapping[Any, Any], groups: dict[Any, list[Any]], read: Callable[[dict[str, Any]], Any]
) -> list[Dropped]:
    """Put what the file's annotations say into the groups by image id; what cannot be read or placed comes back."""
    dropped = []
    for number, row in enumerate(file.annotations):
        origin = f"{file.path.name}: annotation {number}"
        try:
            if row["image_id"] not in images:
                dropped.append(Dropped(origin, "annotation of no image", str(row["image_id"])))
            else:
                groups.setdefault(row["image_id"], []).append(read(row))
        except (KeyError, TypeError, ValueError) as error:
            dropped.append(Dropped(origin, UNREADABLE, str(error)))
    return dropped


def _caption(row: dict[str, Any]) -> tuple[Any, str]:
    if not isinstance(row["caption"], str) or not _is_id(row["id"]):
        raise ValueError("no text or id")
    return row["id"], row["caption"].strip()


def _thing(row: dict[str, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    x, y, width, height = (float(number) for number in row["bbox"]) if "bbox" in row else (0.0, 0.0, 0.0, 0.0)
    return {
        "id": row["id"],
        "name": names[row["category_id"]],
        "area": float(row["area"]) if "area" in row else width * height,
        "box": [x, y, width, height],
        "crowd": bool(row.get("iscrowd", 0)),
        "segmentation": row.get("segmentation"),
    }


def _objects(config: CocoSource, image: Mapping[str, Any], things: list[dict[str, Any]]) -> tuple[ItemObject, ...]:
    height, width = image.get("height"), image.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or height < 1 or width < 1:
        return ()
    counts = Counter(thing["name"] for thing in things)
    chosen = [
        thing
        for thing in things
        if thing["area"] >= config.min_area * height * width
        and (config.crowd or not thing["crowd"])
        and (not config.unique or counts[thing["name"]] == 1)
    ]
    chosen.sort(key=lambda thing: (-thing["area"], _order(thing["id"])))
    return tuple(
        ItemObject(
            thing["name"],
            CocoMask(json.dumps(thing["segmentation"]), height, width) if thing["segmentation"] else None,
            attributes={"share": round(min(1, thing["area"] / (height * width)), 4), "id": thing["id"]},
        )
        for thing in chosen[: config.max_objects]
    )


def _attributes(key: Any, image: Mapping[str, Any], licences: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    licence = licences.get(image.get("license"), {}) if _is_id(image.get("license")) else {}
    credit = {
        "id": str(key),
        "licence": licence.get("name"),
        "licence_url": licence.get("url"),
        "source_url": image.get("flickr_url") or image.get("coco_url"),
        "coco_url": image.get("coco_url"),
    }
    return {"image_id": key, "credits": [{name: value for name, value in credit.items() if value}]}


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def _order(key: Any) -> tuple[bool, int, str]:
    """Numbers before words, each in their own order."""
    return (isinstance(key, str), 0 if isinstance(key, str) else int(key), str(key))


def _expand(text: str) -> list[int]:
    """Runs from COCO's compression: five bits a character, the sixth says that more follow; differences from the third.

    Raises:
        ValueError: it ends within a number or has characters that the compression does not write.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("unreadable segmentation")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("unreadable segmentation")
    return runs


def _from_runs(runs: Any, height: int, width: int) -> np.ndarray:
    """Runs of False and True in turn, down the columns."""
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("unreadable segmentation")
    if sum(runs) != height * width:
        raise ValueError("mask of another size")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, np.array(runs, dtype=np.int64))
    return np.ascontiguousarray(flat.reshape(width, height).T)
