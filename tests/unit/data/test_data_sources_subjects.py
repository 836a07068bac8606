"""The source of subjects' folders: views, classes and masks as DreamBench's layout gives them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import outcomes, picture_bytes, source, write_cutout, write_picture

from mentor.data.sources import describe_inputs
from mentor.data.sources.masks import FileMask
from mentor.data.sources.subjects import clean_name, read_classes
from mentor.errors import UserError

CLASSES = """Classes

subject_name,class
backpack_dog,backpack
dog6,dog
teapot, brown teapot

Prompts

'a {0} {1} in the jungle'.format(unique_token, class_token),
"""


class Bytes:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self) -> bytes:
        return self.content


def read(folder: Path, **settings: Any) -> tuple[dict, dict]:
    return outcomes(folder, kind="subjects", path="dataset", **settings)


@pytest.fixture
def dreambench(tmp_path: Path) -> Path:
    for name in ("dog6/00.jpg", "dog6/01.jpg", "dog6/02.jpg", "dog6/04.jpg", "backpack_dog/00.jpg", "vase/00.JPG"):
        write_picture(tmp_path / "dataset" / name)
    (tmp_path / "dataset/references_and_licenses.txt").write_text("x")
    return tmp_path


def test_each_picture_has_the_next_ones_of_its_subject_as_views(dreambench: Path) -> None:
    items, dropped = read(dreambench)
    assert not dropped
    assert list(items) == ["backpack_dog/00.jpg", *(f"dog6/0{n}.jpg" for n in (0, 1, 2, 4)), "vase/00.JPG"]
    views = {origin: [view.picture.path.rpartition("/")[2] for view in item.views] for origin, item in items.items()}
    assert views["dog6/00.jpg"] == ["01.jpg", "02.jpg"]
    assert views["dog6/04.jpg"] == ["00.jpg", "01.jpg"]
    assert views["backpack_dog/00.jpg"] == []
    assert all(len(item.views) == 3 for item in read(dreambench, views=9)[0].values() if item.subject == "dog6")
    assert not any(item.views for item in read(dreambench, views=0)[0].values())


def test_names_come_from_the_folder_the_class_table_or_the_recipe(dreambench: Path) -> None:
    def names(**settings: Any) -> list[str]:
        items, _ = read(dreambench, **settings)
        assert all(item.captions == (f"a {item.objects[0].name}",) for item in items.values())
        assert all(item.objects[0].mask is None for item in items.values())
        return sorted({f"{item.subject}: {item.objects[0].name}" for item in items.values()})

    assert names() == ["backpack_dog: backpack dog", "dog6: dog", "vase: vase"]
    (dreambench / "dataset/prompts_and_classes.txt").write_text(CLASSES)
    assert names() == ["backpack_dog: backpack", "dog6: dog", "vase: vase"]
    assert names(classes={"dog6": "corgi"}) == ["backpack_dog: backpack", "dog6: corgi", "vase: vase"]
    with pytest.raises(UserError, match="no folder dog7: there are backpack_dog, dog6, vase"):
        read(dreambench, classes={"dog7": "dog"})


def test_the_class_table_ends_where_the_prompts_begin() -> None:
    assert read_classes(CLASSES) == {"backpack_dog": "backpack", "dog6": "dog", "teapot": "brown teapot"}
    assert read_classes("no table, here") == {}


def test_folders_become_words() -> None:
    assert [clean_name(name) for name in ("dog6", "backpack_dog", "red-cartoon_2", "001")] == [
        "dog",
        "backpack dog",
        "red cartoon",
        "001",
    ]


def test_a_text_beside_a_picture_is_its_caption(dreambench: Path) -> None:
    (dreambench / "dataset/dog6/00.txt").write_text("a dog on grass\n")
    (dreambench / "dataset/dog6/01.txt").write_bytes(b"caf\xe9")
    items, dropped = read(dreambench, template="the {name}")
    assert items["dog6/00.jpg"].captions == ("a dog on grass",)
    assert items["dog6/02.jpg"].captions == ("the dog",)
    assert dropped == {"dog6/01.jpg": "caption is not UTF-8"}


def test_transparency_is_the_mask_where_there_is_some(tmp_path: Path) -> None:
    write_cutout(tmp_path / "dataset/cup/0.png")
    write_picture(tmp_path / "dataset/cup/1.png", (255, 0, 0, 255), mode="RGBA")
    write_picture(tmp_path / "dataset/cup/2.png")
    (tmp_path / "dataset/cup/3.png").write_bytes(b"\x89PNG no")
    items, _ = read(tmp_path)
    masks = [item.objects[0].mask for item in items.values()]
    assert [mask is not None for mask in masks] == [True, False, False, False]
    alpha = np.zeros((6, 8), np.uint8)
    alpha[2:4, 2:6] = 128
    assert (masks[0].read(np.zeros((6, 8, 3), np.uint8), alpha) == (alpha > 0)).all()
    assert [view.mask is not None for view in items["cup/2.png"].views] == [False, True]
    for bad in (None, alpha * 0):
        with pytest.raises(ValueError, match=r"no transparency|empty"):
            masks[0].read(np.zeros((6, 8, 3), np.uint8), bad)


def test_masks_in_a_folder_of_their_own(dreambench: Path) -> None:
    write_picture(dreambench / "dataset/masks/dog6/00.png", 255, mode="L")
    write_picture(dreambench / "elsewhere/dog6/01.jpg", "white")
    items, _ = read(dreambench, masks="masks")
    assert [origin for origin, item in items.items() if item.objects[0].mask] == ["dog6/00.jpg"]
    assert not any("masks" in origin for origin in items)
    assert items["dog6/04.jpg"].views[0].mask.read(np.zeros((6, 8, 3), np.uint8), None).all()
    items, _ = read(dreambench, masks="elsewhere")
    assert [origin for origin, item in items.items() if item.objects[0].mask and "masks" not in origin] == [
        "dog6/01.jpg"
    ]


def test_a_mask_is_white_of_the_pictures_size_and_a_picture() -> None:
    picture = np.zeros((6, 8, 3), np.uint8)
    assert FileMask(Bytes(picture_bytes((128,) * 3, format="PNG"))).read(picture, None).all()
    bad = {
        "mask is empty": picture_bytes((127,) * 3, format="PNG"),
        "another size": picture_bytes("white", (6, 8), "PNG"),
        "not a picture": b"<html>",
        "truncated|damaged": picture_bytes("white")[:-20],
    }
    for message, content in bad.items():
        with pytest.raises(ValueError, match=message):
            FileMask(Bytes(content)).read(picture, None)


def test_pictures_without_a_subject_and_folders_without_any_are_named(dreambench: Path) -> None:
    write_picture(dreambench / "dataset/loose.jpg")
    write_picture(dreambench / "dataset/dog6/x.gif")
    assert read(dreambench)[1] == {
        "loose.jpg": "not in a subject's folder",
        "dog6/x.gif": "unknown kind of picture",
    }
    with pytest.raises(UserError, match="dog6 holds no folders of pictures"):
        outcomes(dreambench, kind="subjects", path="dataset/dog6")


def test_the_identity_has_pictures_masks_and_classes(dreambench: Path) -> None:
    config = source(kind="subjects", path="dataset", masks="masks")
    write_picture(dreambench / "dataset/masks/dog6/00.png")
    (dreambench / "dataset/prompts_and_classes.txt").write_text(CLASSES)
    described = describe_inputs(config, dreambench)
    assert list(described) == ["dataset", "dataset: masks masks", "dataset: prompts_and_classes.txt"]
    (dreambench / "dataset/prompts_and_classes.txt").write_text(CLASSES + " ")
    assert describe_inputs(config, dreambench)["dataset: prompts_and_classes.txt"] != described.popitem()[1]
