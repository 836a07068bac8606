"""The oracles are right on the ground truth, still so on degraded pictures, and at chance on other prompts."""

import time

import numpy as np
import pytest

from mentor.data.making.scenes import PLACES, all_backgrounds, render_background
from mentor.data.records import Record
from mentor.errors import UserError
from mentor.evaluation.metrics import intersection_over_union
from mentor.evaluation.oracles import SceneOracle, all_layouts, clean_mask, mask_on_black


@pytest.fixture(scope="module")
def oracle() -> SceneOracle:
    return SceneOracle(64)


def followed(oracle: SceneOracle, pictures: list[Record], prompts: list[Record]) -> np.ndarray:
    """For each picture whether background and places are as another record's (or its own) prompt says."""
    return np.array(
        [
            oracle.follows(
                picture.image,
                prompt.attributes["background"]["phrase"],
                [thing.attributes["place"] for thing in prompt.objects],
            )
            for picture, prompt in zip(pictures, prompts, strict=True)
        ]
    )


def test_ground_truth_is_read(oracle: SceneOracle, scenes: list[Record]) -> None:
    background, place = followed(oracle, scenes, scenes).T
    assert background.mean() >= 0.99
    assert (background & place).mean() >= 0.97


def test_degraded_pictures_are_read(oracle: SceneOracle, blurred: list[Record]) -> None:
    background, place = followed(oracle, blurred, blurred).T
    assert background.mean() >= 0.97
    assert (background & place).mean() >= 0.93


def test_other_prompts_are_at_chance(oracle: SceneOracle, scenes: list[Record]) -> None:
    background, place = followed(oracle, scenes, scenes[1:] + scenes[:1]).T
    assert (background & place).mean() <= 0.05
    assert background.mean() <= 0.12
    assert place.mean() <= 0.35


def test_every_background_is_told_from_all_others(oracle: SceneOracle) -> None:
    for background in all_backgrounds():
        reading = oracle.read(render_background(background, 64))
        assert reading.background == background
        assert reading.places == frozenset()


@pytest.mark.parametrize("tint", [(12, 12, 12), (-12, -12, -12), (10, -8, 4)])
def test_a_tint_of_the_whole_picture_is_forgiven(oracle: SceneOracle, tint: tuple[int, int, int]) -> None:
    for background in all_backgrounds():
        tinted = (render_background(background, 64).astype(int) + tint).clip(0, 255).astype(np.uint8)
        assert oracle.read(tinted).background == background


def test_other_sizes(oracle: SceneOracle) -> None:
    larger = SceneOracle(96)
    for background in all_backgrounds():
        picture = render_background(background, 96)
        picture[24:72, 0:48] = (0, 255, 255)
        reading = larger.read(picture)
        assert (reading.background, reading.places) == (background, frozenset({"at the left"}))
    with pytest.raises(UserError, match="64 px"):
        oracle.read(render_background(all_backgrounds()[0], 96))


def test_layouts_are_told_apart_by_squares(oracle: SceneOracle) -> None:
    assert {place for layout in all_layouts(64) for place in layout.places} == set(PLACES)
    for layout in all_layouts(64):
        mask = np.zeros((64, 64), bool)
        for left, top, side in layout.boxes:
            mask[top : top + side, left : left + side] = True
        assert oracle.read_layout(mask) == layout


def test_mask_covers_the_objects(oracle: SceneOracle, scenes: list[Record]) -> None:
    overlaps = []
    for record in scenes:
        true = np.logical_or.reduce([thing.mask for thing in record.objects])
        overlaps.append(intersection_over_union(oracle.read(record.image).mask, true))
    assert np.mean(overlaps) >= 0.75


def test_reading_is_fast(oracle: SceneOracle, scenes: list[Record]) -> None:
    started = time.process_time()
    for record in scenes[:50]:
        oracle.read(record.image)
    assert (time.process_time() - started) / 50 < 0.03


def test_mask_on_black(scenes: list[Record]) -> None:
    """But for things that are all but black themselves, which nothing can tell from the black around them."""
    own, other = [], []
    scenes = [record for record in scenes if "black" not in record.objects[0].name]
    for record, next_record in zip(scenes, scenes[1:] + scenes[:1], strict=True):
        mask = record.objects[0].mask
        found = mask_on_black(np.where(mask[..., None], record.image, 0).astype(np.uint8))
        own.append(intersection_over_union(found, mask))
        other.append(intersection_over_union(found, next_record.objects[0].mask))
    assert np.mean(own) >= 0.97
    assert np.mean(other) <= 0.45


def test_mask_on_black_of_nothing() -> None:
    assert not mask_on_black(np.zeros((64, 64, 3), np.uint8)).any()
    assert mask_on_black(np.full((64, 64, 3), 255, np.uint8)).all()


def test_mask_on_black_keeps_real_holes_and_drops_specks() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[10:50, 10:50] = 200
    picture[20:40, 20:40] = 0
    picture[12:14, 12:14] = 0
    picture[60, 60] = 255
    mask = mask_on_black(picture)
    assert not mask[20:40, 20:40].any()
    assert mask[12:14, 12:14].all()
    assert not mask[60, 60]


def test_clean_mask() -> None:
    mask = np.zeros((64, 64), bool)
    mask[8:40, 8:40] = True
    mask[20:24, 20:24] = False
    mask[60:62, 60:62] = True
    expected = np.zeros_like(mask)
    expected[8:40, 8:40] = True
    assert (clean_mask(mask) == expected).all()
    assert not clean_mask(mask, certain=np.zeros_like(mask)).any()
