"""Small sources of every kind for which there is a ready recipe, and the settings that name them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from layouts import picture_bytes, write_lines, write_picture, write_tar
from PIL import Image


def colour(number: int) -> tuple[int, int, int]:
    return number * 37 % 256, number * 91 % 256, number * 11 % 256


def write_album(folder: Path, count: int = 24) -> Path:
    for number in range(count):
        path = write_picture(folder / f"{number:03d}.jpg", colour(number), (48, 40))
        path.with_suffix(".txt").write_text(f"a thing of colour {number}")
    return folder


def write_mask(path: Path, size: tuple[int, int] = (48, 40)) -> Path:
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[10:30, 12:30] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def write_coco(folder: Path) -> list[str]:
    """Photographs with a dog each and a caption."""
    images, things, captions = [], [], []
    for number in range(24):
        write_picture(folder / "photos" / f"{number:012d}.jpg", colour(number), (100, 80))
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": 100, "height": 80, "license": 1})
        square = [[10, 10, 50, 10, 50, 50, 10, 50]]
        facts = {"area": 1600, "bbox": [10, 10, 40, 40], "segmentation": square, "iscrowd": 0}
        things.append({"id": number, "image_id": number, "category_id": 18, **facts})
        captions += [
            {"id": 10 * number + turn, "image_id": number, "caption": f"Dog {number}.{turn}"} for turn in (0, 1)
        ]
    shared = {"info": {}, "licenses": [{"id": 1, "name": "CC", "url": "http://example.org"}], "images": images}
    named = {**shared, "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}]}
    (folder / "instances.json").write_text(json.dumps({**named, "annotations": things}))
    (folder / "captions.json").write_text(json.dumps({**shared, "annotations": captions}))
    return [f"images={folder}/photos", f"captions={folder}/captions.json", f"instances={folder}/instances.json"]


def write_img2dataset(folder: Path) -> list[str]:
    """Two finished tars and one that is not."""
    for tar in range(3):
        members = []
        for number in range(12):
            key = f"{tar:05d}{number:04d}"
            words = f"caption {number} of tar {tar}"
            facts = {"caption": words, "url": "http://example.org", "key": key, "status": "success", "width": 40}
            picture = picture_bytes(colour(12 * tar + number), (40, 40))
            parts = (("jpg", picture), ("json", json.dumps(facts).encode()), ("txt", words.encode()))
            members += [(f"{key}.{ending}", content) for ending, content in parts]
        write_tar(folder / f"{tar:05d}.tar", members)
        (folder / f"{tar:05d}.parquet").write_bytes(b"PAR1")
        if tar < 2:
            (folder / f"{tar:05d}_stats.json").write_text("{}")
    return [f"paths={folder}/{{00000..00002}}.tar"]


def write_dreambench(folder: Path) -> list[str]:
    names = [f"dog{number}" for number in range(8)]
    for number, name in enumerate(names):
        for view in range(4):
            write_picture(folder / "dataset" / name / f"{view:02d}.jpg", colour(4 * number + view), (48, 40))
            write_mask(folder / "masks" / name / f"{view:02d}.png")
    table = "\n".join(["Classes", "", "subject_name,class", *(f"{name},dog" for name in names), "", "Prompts", ""])
    (folder / "dataset" / "prompts_and_classes.txt").write_text(table)
    return [f"path={folder}/dataset", f"masks={folder}/masks"]


def write_mentor_rows(folder: Path) -> list[str]:
    """Rows of every kind that MENTOR's files have, ten of each."""
    rows: list[dict[str, Any]] = []
    for number in range(60):
        target, other, mask = f"pictures/{number}.jpg", f"pictures/{number}.ref.jpg", f"masks/{number}.png"
        write_picture(folder / target, colour(number), (48, 40))
        write_picture(folder / other, colour(number + 99), (40, 40))
        write_mask(folder / mask)
        row: dict[str, Any] = {"source_image": target, "input_text": f"picture {number} <image>", "objects": None}
        match number % 6:
            case 0:
                row |= {"image_path": target, "generation_only": True}
            case 1:
                row |= {"image_path": target}
            case 2:
                row |= {"image_path": mask, "objects": "dog", "do_mask": True}
            case 3:
                row |= {"image_path": mask, "objects": "dog", "do_replace": True}
            case 4:
                row |= {"image_path": [mask], "objects": ["dog"]}
            case 5:
                row |= {"image_path": other, "objects": "dog", "task": "subject"}
        rows.append(row)
    write_lines(folder / "rows.jsonl", rows)
    return [f"path={folder}/rows.jsonl"]


def write_huggingface(folder: Path) -> list[str]:
    import datasets

    rows = {
        "image": [Image.new("RGB", (48, 40), colour(number)) for number in range(24)],
        "text": [f"a thing of colour {number}" for number in range(24)],
    }
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "saved"))
    return [f"path={folder}/saved"]
