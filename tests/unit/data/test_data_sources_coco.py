"""The COCO source: captions and objects as the annotation files have them, masks against pycocotools, bad files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import captions, change_json, outcomes, write_coco, write_picture
from pycocotools import mask as coco_masks

from mentor.data.sources import describe_inputs
from mentor.data.sources.coco import CocoMask, CocoSource, decode_segmentation
from mentor.errors import UserError

BLANK = np.zeros((80, 100, 3), np.uint8)


def read(folder: Path, **settings: Any) -> tuple[dict, dict]:
    given = {"images": "photos", "instances": "instances.json", "captions": "captions.json", **settings}
    return outcomes(folder, kind="coco", **{key: value for key, value in given.items() if value is not None})


def names(items: dict) -> dict[str, list[str]]:
    return {origin: [thing.name for thing in item.objects] for origin, item in items.items()}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path)


def test_captions_by_their_id_and_the_largest_objects_first(coco: Path) -> None:
    items, dropped = read(coco)
    assert captions(items) == {"000.jpg": ["Two animals", "A dog and a cat."], "001.jpg": ["Two cats"]}
    # The person is too small, the cats are two, the crowd is one.
    assert names(items) == {"000.jpg": ["cat", "dog"], "001.jpg": []}
    assert dropped == {"002.jpg": "no caption and no object"}
    assert items["000.jpg"].picture.read() == (coco / "photos/000.jpg").read_bytes()


def test_licence_and_source_are_kept(coco: Path) -> None:
    attributes = read(coco)[0]["000.jpg"].attributes
    assert attributes["image_id"] == 7
    assert attributes["credits"] == [
        {
            "id": "7",
            "licence": "Attribution License",
            "licence_url": "http://example.org/by",
            "source_url": "http://example.org/000.jpg",
        }
    ]


def test_masks_are_the_polygon_and_the_runs(coco: Path) -> None:
    cat, dog = read(coco)[0]["000.jpg"].objects
    found = cat.mask.read(BLANK, None)
    assert found.dtype == np.bool_ and found.shape == (80, 100)
    assert found[:, 60:80].all() and found.sum() == 80 * 20
    found = dog.mask.read(BLANK, None)
    assert found[11:49, 11:49].all() and abs(found.sum() - 1600) < 90
    with pytest.raises(ValueError, match="another size"):
        cat.mask.read(BLANK[:, :-1], None)


def test_choices(coco: Path) -> None:
    assert names(read(coco, unique=False)[0])["001.jpg"] == ["cat"]
    assert names(read(coco, unique=False, min_area=0)[0])["001.jpg"] == ["cat", "cat"]
    assert names(read(coco, max_objects=1)[0])["000.jpg"] == ["cat"]
    assert names(read(coco, crowd=True)[0])["002.jpg"] == ["person"]
    assert names(read(coco, min_area=0.0095)[0])["000.jpg"] == ["cat", "dog", "person"]
    assert names(read(coco, min_area=0.2001)[0])["000.jpg"] == ["cat"]


def test_a_crowd_and_a_small_one_make_a_name_ambiguous(coco: Path) -> None:
    def change(content: Any) -> None:
        content["annotations"] += [{**content["annotations"][0], "id": 90, "area": 1, "iscrowd": 1}]

    change_json(coco / "instances.json", change)
    assert names(read(coco)[0])["000.jpg"] == ["cat"]


def test_captions_alone_and_instances_alone(coco: Path) -> None:
    assert not any(item.objects for item in read(coco, instances=None)[0].values())
    items, dropped = read(coco, captions=None)
    assert names(items) == {"000.jpg": ["cat", "dog"]}
    assert dropped == {"001.jpg": "no caption and no object", "002.jpg": "no caption and no object"}
    with pytest.raises(UserError, match="give instances, captions or both"):
        read(coco, captions=None, instances=None)


def test_missing_pictures_are_dropped_and_refused_when_it_is_all(coco: Path) -> None:
    (coco / "photos/001.jpg").unlink()
    assert read(coco)[1]["001.jpg"] == "missing file"
    (coco / "others").mkdir()
    with pytest.raises(UserError, match=r"none of the 3 pictures that .*instances\.json.*others, for example 000\.jpg"):
        read(coco, images="others")
    with pytest.raises(UserError, match="gone does not exist"):
        read(coco, images="gone")


def test_pictures_outside_the_folder_are_not_read(coco: Path) -> None:
    write_picture(coco / "secret.jpg")
    change_json(coco / "instances.json", lambda content: content["images"][0].update(file_name="../secret.jpg"))
    change_json(coco / "captions.json", lambda content: content["images"][0].update(file_name="../secret.jpg"))
    assert read(coco)[1]["../secret.jpg"] == "path outside the folder"


def test_an_id_of_two_pictures_stands_for_neither(coco: Path) -> None:
    write_picture(coco / "photos/003.jpg")
    row = {"id": 7, "file_name": "003.jpg", "width": 100, "height": 80}
    change_json(coco / "instances.json", lambda content: content["images"].append(row))
    items, dropped = read(coco)
    assert list(items) == ["001.jpg"]
    assert [origin for origin, reason in dropped.items() if reason == "duplicate image id"] == [
        "000.jpg (image 7)",
        "instances.json: image 3",
    ]


def test_the_same_picture_twice_comes_once(coco: Path) -> None:
    def change(content: Any) -> None:
        content["images"] += [content["images"][0], {**content["images"][1], "id": 99}]
        content["annotations"] += [{**content["annotations"][1], "id": 91, "image_id": 99}]

    change_json(coco / "instances.json", change)
    items, dropped = read(coco)
    assert list(items) == ["000.jpg", "001.jpg"]
    assert dropped["instances.json: image 3"] == "duplicate image id"
    assert dropped["001.jpg (image 99)"] == "duplicate picture"


def test_bad_entries_are_dropped_one_by_one(coco: Path) -> None:
    def change(content: Any) -> None:
        content["images"] += ["x", {"id": 70}]
        good = content["annotations"][0]
        content["annotations"] += [
            {**good, "image_id": 12345},
            {**good, "category_id": 77},
            "x",
            {"image_id": []},
            {**good, "bbox": "wide"},
        ]

    change_json(coco / "instances.json", change)
    change_json(coco / "captions.json", lambda content: content["annotations"].append({"id": 1, "image_id": 7}))
    items, dropped = read(coco)
    assert list(items) == ["000.jpg", "001.jpg"]
    assert dropped["instances.json: annotation 6"] == "annotation of no image"
    bad = [f"instances.json: annotation {number}" for number in range(7, 11)]
    bad += ["instances.json: image 3", "instances.json: image 4", "captions.json: annotation 4"]
    assert all(dropped[origin] == "unreadable entry" for origin in bad)


def test_files_that_are_no_annotations_are_named(coco: Path) -> None:
    for content in ("{", "[" * 100_000, "[1, 2]", '{"images": 3}', '{"images": [], "annotations": []}'):
        (coco / "instances.json").write_text(content)
        with pytest.raises(UserError, match=r"instances\.json"):
            read(coco)
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        read(coco, instances="gone.json")


def test_compressed_runs_are_what_pycocotools_says() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (80, 100), (333, 257)):
        for share in (0.0, 0.03, 0.5, 1.0):
            mask = np.asfortranarray(rng.random((height, width)) < share)
            # Rows of equal pixels make long runs, whose lengths need several characters.
            mask[: height // 2] = share > 0.2
            packed = coco_masks.encode(mask.astype(np.uint8))
            runs = {"size": [height, width], "counts": packed["counts"].decode()}
            assert (decode_segmentation(runs, height, width) == mask).all()


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 4], "counts": [3, 2]},
        {"size": [4, 4], "counts": [10**12]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4, 4], "counts": "zzzzzzzzzzzzzzzzzz"},
        {"size": [4, 4], "counts": "\n"},
        {"size": [4, 4], "counts": None},
        {"size": [4, 5], "counts": [20]},
        {"counts": [16]},
        [],
        "x",
        3,
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, "5", 6]],
        [[0, 0, 1e12, 0, 1e12, 1e12]],
        [[0, 0, float("nan"), 0, 1, 1]],
        [1, 2, 3, 4, 5, 6],
    ],
)
def test_segmentations_that_cannot_be_are_refused(segmentation: Any) -> None:
    with pytest.raises(ValueError, match=r"unreadable segmentation|another size"):
        decode_segmentation(segmentation, 4, 4)


def test_an_empty_mask_is_none() -> None:
    runs = json.dumps({"size": [80, 100], "counts": [8000]})
    with pytest.raises(ValueError, match="mask is empty"):
        CocoMask(runs, 80, 100).read(BLANK, None)


def test_the_identity_has_the_files_and_the_pictures(coco: Path) -> None:
    config = CocoSource(kind="coco", images="photos", instances="instances.json", captions="captions.json")
    described = describe_inputs(config, coco)
    assert list(described) == ["instances.json", "captions.json", "photos"]
    change_json(coco / "captions.json", lambda content: content.update(info={"x": 1}))
    (coco / "photos/001.jpg").unlink()
    changed = describe_inputs(config, coco)
    assert [changed[key] == described[key] for key in described] == [True, False, False]
