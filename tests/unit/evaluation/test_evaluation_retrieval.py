"""The reference's own subject is found among sixteen: on ground truth and degraded pictures; on others it is chance."""

import dataclasses
import random

import numpy as np
import pytest

from mentor.data.making.scenes import all_backgrounds, render_background
from mentor.data.records import Record
from mentor.evaluation.oracles import SceneOracle
from mentor.evaluation.retrieval import CANVAS, Cutout, SubjectOracle, averages, cut_out, oklab, resize

CANDIDATES = 16


@pytest.fixture(scope="module")
def oracle() -> SubjectOracle:
    return SubjectOracle(SceneOracle(64))


@pytest.fixture(scope="module")
def cutouts(scenes: list[Record]) -> list[Cutout]:
    """A view of each record's subject: other background, place and size than the record's picture."""
    views = [record.views[index % len(record.views)] for index, record in enumerate(scenes)]
    return [cut_out(view.image, view.mask) for view in views]


def found(oracle: SubjectOracle, pictures: list[Record], asked: list[Record], cutouts: list[Cutout]) -> float:
    """Share of pictures in which the asked record's subject is found among sixteen different ones."""
    hits = []
    for index, (picture, own) in enumerate(zip(pictures, asked, strict=True)):
        rng = random.Random(index)
        subjects, chosen = {own.subject}, [index]
        for other in rng.sample(range(len(asked)), len(asked)):
            if len(chosen) < CANDIDATES and asked[other].subject not in subjects:
                subjects.add(asked[other].subject)
                chosen.append(other)
        assert len(chosen) == CANDIDATES
        rng.shuffle(chosen)
        place = picture.objects[0].attributes["place"]
        hits.append(chosen[oracle.find(picture.image, [cutouts[i] for i in chosen], place)] == index)
    return float(np.mean(hits))


def test_ground_truth_is_found(oracle: SubjectOracle, scenes: list[Record], cutouts: list[Cutout]) -> None:
    assert found(oracle, scenes, scenes, cutouts) >= 0.95


def test_degraded_pictures_are_found(
    oracle: SubjectOracle, scenes: list[Record], blurred: list[Record], cutouts: list[Cutout]
) -> None:
    assert found(oracle, blurred, scenes, cutouts) >= 0.9


def test_other_pictures_are_at_chance(oracle: SubjectOracle, scenes: list[Record], cutouts: list[Cutout]) -> None:
    assert found(oracle, scenes[1:] + scenes[:1], scenes, cutouts) <= 0.2


def test_pictures_without_an_object_are_at_chance(
    oracle: SubjectOracle, scenes: list[Record], cutouts: list[Cutout]
) -> None:
    backgrounds = all_backgrounds()
    empty = [
        dataclasses.replace(record, image=render_background(backgrounds[index % len(backgrounds)], 64))
        for index, record in enumerate(scenes)
    ]
    assert found(oracle, empty, scenes, cutouts) <= 0.25


def test_the_place_says_which_object_is_meant(oracle: SubjectOracle) -> None:
    picture = np.full((64, 64, 3), 252, np.uint8)
    picture[16:48, 0:32], picture[16:48, 32:64] = (214, 40, 40), (44, 96, 212)
    red, blue = (
        Cutout(np.full((CANVAS, CANVAS, 3), c, np.float32), np.ones((CANVAS, CANVAS), np.float32))
        for c in ((214, 40, 40), (44, 96, 212))
    )
    assert oracle.find(picture, [blue, red], "at the left") == 1
    assert oracle.find(picture, [blue, red], "at the right") == 0


def test_cut_out_fills_the_canvas_and_knows_no_background() -> None:
    mask = np.zeros((64, 64), bool)
    mask[10:20, 30:50] = True
    picture = np.where(mask[..., None], np.array([200, 100, 50]), np.array([0, 255, 0])).astype(np.uint8)
    cutout = cut_out(picture, mask)
    assert cutout.cover.shape == (CANVAS, CANVAS)
    rows = np.flatnonzero(cutout.cover.max(axis=1) > 0.5)
    assert (rows[0], rows[-1]) == (CANVAS // 4, 3 * CANVAS // 4 - 1)
    solid = cutout.cover > 0.99
    assert np.abs(cutout.colour[solid] - [200, 100, 50]).max() < 1


def test_averages_are_those_of_a_plain_loop() -> None:
    planes = np.random.default_rng(0).random((3, 12, 12, 3)).astype(np.float32)
    pooled = averages(planes, 4)
    assert pooled.shape == (3, 3, 3, 3)
    assert pooled[1, 2, 0] == pytest.approx(planes[1, 8:12, 0:4].mean(axis=(0, 1)), abs=1e-6)


def test_resize_repeats_the_edge_outside() -> None:
    planes = np.zeros((64, 64, 1), np.float32)
    planes[:, 0] = 7
    assert resize(planes, (-32, 0, 0, 32)) == pytest.approx(np.full((CANVAS, CANVAS, 1), 7), abs=1e-4)


def test_oklab_of_published_colours() -> None:
    """White, and pure red, green and blue as in the author's table (bottosson.github.io/posts/oklab)."""
    colours = np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.float32)
    expected = [[1, 0, 0], [0.628, 0.225, 0.126], [0.866, -0.234, 0.179], [0.452, -0.032, -0.312]]
    assert oklab(colours) == pytest.approx(np.array(expected), abs=2e-3)
