"""Small copies of the layouts in which people keep pictures, written by Pillow."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mentor.config import validate
from mentor.data.records import Dropped
from mentor.data.sources import SourceConfig, read_items
from mentor.data.sources.items import Item


def picture_bytes(
    colour: Any = "red", size: tuple[int, int] = (8, 6), format: str = "JPEG", mode: str = "RGB"
) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, format)
    return file.getvalue()


def write_picture(path: Path, colour: Any = "red", size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"}
    path.write_bytes(picture_bytes(colour, size, kinds.get(path.suffix.lower(), "JPEG"), mode))
    return path


def write_cutout(path: Path, colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (8, 6)) -> Path:
    """An object of 4 x 2 px in the middle, all else transparent."""
    rgba = np.zeros((size[1], size[0], 4), np.uint8)
    rgba[2:4, 2:6] = (*colour, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgba).save(path)
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_coco(folder: Path) -> Path:
    """`photos/`, `instances.json` and `captions.json`: photographs of a dog and a cat, two cats, a crowd."""
    images = []
    for number, name in enumerate(("000.jpg", "001.jpg", "002.jpg"), 7):
        write_picture(folder / "photos" / name, size=(100, 80))
        url = f"http://example.org/{name}"
        images.append({"id": number, "file_name": name, "width": 100, "height": 80, "license": 4, "flickr_url": url})
    licences = [{"id": 4, "name": "Attribution License", "url": "http://example.org/by"}]
    square = [[10, 10, 50, 10, 50, 50, 10, 50]]
    runs = {"size": [80, 100], "counts": [80 * 60, 80 * 20, 80 * 20]}
    things = [
        {"id": 1, "image_id": 7, "category_id": 18, "area": 1600, "bbox": [10, 10, 40, 40], "segmentation": square},
        {"id": 2, "image_id": 7, "category_id": 17, "area": 1601, "bbox": [60, 0, 20, 80], "segmentation": runs},
        {"id": 3, "image_id": 7, "category_id": 1, "area": 79, "bbox": [0, 0, 8, 9], "segmentation": square},
        {"id": 4, "image_id": 8, "category_id": 17, "area": 900, "bbox": [0, 0, 30, 30], "segmentation": square},
        {"id": 5, "image_id": 8, "category_id": 17, "area": 10, "bbox": [0, 0, 3, 3], "segmentation": square},
        {"id": 6, "image_id": 9, "category_id": 1, "area": 4000, "iscrowd": 1, "segmentation": runs},
    ]
    things = [{"iscrowd": 0, **thing} for thing in things]
    categories = [{"id": 1, "name": "person"}, {"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    texts = [(22, 7, "A dog and a cat. "), (21, 7, "Two animals"), (23, 8, "Two cats"), (24, 9, "  ")]
    captions = [{"id": key, "image_id": image, "caption": text} for key, image, text in texts]
    shared = {"info": {}, "licenses": licences, "images": images}
    (folder / "instances.json").write_text(json.dumps({**shared, "annotations": things, "categories": categories}))
    (folder / "captions.json").write_text(json.dumps({**shared, "annotations": captions}))
    return folder


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def outcomes(folder: Path, **settings: Any) -> tuple[dict[str, Item], dict[str, str]]:
    """What a source in a recipe in `folder` yields: items by origin, and reasons of what was dropped by origin."""
    items: dict[str, Item] = {}
    dropped: dict[str, str] = {}
    for outcome in read_items(source(**settings), folder):
        assert outcome.origin not in items.keys() | dropped.keys(), f"{outcome.origin} twice"
        if isinstance(outcome, Dropped):
            dropped[outcome.origin] = outcome.reason
        else:
            items[outcome.origin] = outcome
    return items, dropped


def source(**settings: Any) -> Any:
    return validate(SourceConfig, settings)


def captions(items: Mapping[str, Item]) -> dict[str, list[str]]:
    return {origin: list(item.captions) for origin, item in items.items()}
