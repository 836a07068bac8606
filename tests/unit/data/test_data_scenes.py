"""Scenes: backgrounds that differ, cut-outs where they should be, masks that are exact; and procedural shapes."""

import itertools

import numpy as np
import pytest

from mentor.data.making.scenes import (
    COLOURS,
    OPPOSITE_PLACES,
    PLACES,
    SIZES,
    Background,
    all_backgrounds,
    box_corner,
    box_side,
    compose,
    crop_to_content,
    fit,
    render_background,
    square,
)
from mentor.data.making.synthetic import SHAPES, all_shapes, draw_shape, shape_name
from mentor.errors import UserError

CANVAS = 64


def block(height: int, width: int, colour: tuple[int, int, int] = (10, 20, 30)) -> np.ndarray:
    rgba = np.full((height, width, 4), 255, dtype=np.uint8)
    rgba[..., :3] = colour
    return rgba


def test_every_background_differs_from_every_other_and_from_its_own_phrase() -> None:
    backgrounds = all_backgrounds()
    pictures = [render_background(background, CANVAS) for background in backgrounds]
    assert len(backgrounds) == 10 + 4 * 8
    assert len({background.phrase for background in backgrounds}) == len(backgrounds)
    assert all(picture.shape == (CANVAS, CANVAS, 3) and picture.dtype == np.uint8 for picture in pictures)
    for first, second in itertools.combinations(pictures, 2):
        assert np.abs(first.astype(int) - second.astype(int)).mean() > 4


def test_backgrounds_keep_their_order_and_bytes() -> None:
    assert all_backgrounds() == all_backgrounds()
    assert all_backgrounds()[0] == Background("plain", "red")
    again = render_background(Background("dots", "blue"), CANVAS)
    assert np.array_equal(again, render_background(Background("dots", "blue"), CANVAS))


@pytest.mark.parametrize(
    ("background", "phrase"),
    [
        (Background("plain", "orange"), "an orange background"),
        (Background("plain", "blue"), "a blue background"),
        (Background("gradient", "red"), "a red gradient"),
        (Background("stripes", "red"), "red stripes"),
        (Background("checks", "gray"), "gray checks"),
        (Background("dots", "pink"), "pink dots"),
        (Background("photo", "daisies"), "a photo of daisies"),
    ],
)
def test_phrases(background: Background, phrase: str) -> None:
    assert background.phrase == phrase


def test_gradient_runs_from_the_colour_at_the_top_to_white_at_the_bottom() -> None:
    picture = render_background(Background("gradient", "blue"), CANVAS).astype(int)
    assert np.abs(picture[0, 0] - COLOURS["blue"]).max() < 4
    assert picture[-1].min() > 250
    assert (np.diff(picture[:, 5, 0]) >= 0).all()


@pytest.mark.parametrize("kind", ["stripes", "checks", "dots"])
def test_patterns_repeat_every_sixteen_pixels(kind: str) -> None:
    picture = render_background(Background(kind, "green"), CANVAS)  # pyright: ignore[reportArgumentType]
    assert np.array_equal(picture[:, :16], picture[:, 16:32])
    assert np.array_equal(picture[:16], picture[16:32])
    assert not np.array_equal(picture[:, :8], picture[:, 8:16])
    assert np.array_equal(picture[4, 4], COLOURS["green"]) or kind == "dots"


def test_photo_backgrounds_are_the_photograph_out_of_focus() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (90, 140, 3), dtype=np.uint8)
    soft = render_background(Background("photo", "noise"), CANVAS, photo)
    assert soft.shape == (CANVAS, CANVAS, 3)
    assert soft.std() < square(photo, CANVAS).std()
    with pytest.raises(UserError, match="a photo of noise"):
        render_background(Background("photo", "noise"), CANVAS)


def test_square_takes_the_middle() -> None:
    wide = np.zeros((40, 80, 3), dtype=np.uint8)
    wide[:, 20:60] = 200
    assert (square(wide, 32)[:, 3:-3] == 200).all()
    assert (square(wide, 32)[:, [0, -1]] > 150).all()
    mask = np.zeros((40, 80), dtype=bool)
    mask[:20] = True
    assert np.array_equal(square(mask, 32), np.arange(32)[:, None].repeat(32, 1) < 16)


def test_fit_fills_the_box_with_the_longer_side_and_centres_the_other() -> None:
    box = fit(block(20, 40), 48)
    opaque = box[..., 3] == 255
    assert opaque.any(0).all()
    assert opaque.any(1).sum() == 24
    assert opaque.any(1)[12:36].all()


def test_crop_to_content() -> None:
    rgba = np.zeros((30, 30, 4), dtype=np.uint8)
    rgba[5:10, 7:20] = 255
    assert crop_to_content(rgba).shape == (5, 13, 4)
    with pytest.raises(UserError, match="no opaque pixel"):
        crop_to_content(np.zeros((5, 5, 4), dtype=np.uint8))


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("place", list(PLACES))
def test_named_places_lie_on_the_token_lattice(size: str, place: str) -> None:
    side = box_side(size, CANVAS)
    left, top = box_corner(place, side, CANVAS)
    assert left % 8 == 0
    assert top % 8 == 0
    assert 0 <= left <= CANVAS - side
    assert 0 <= top <= CANVAS - side


@pytest.mark.parametrize(
    ("place", "axis", "sign"),
    [("at the left", 1, -1), ("at the right", 1, 1), ("at the top", 0, -1), ("at the bottom", 0, 1)],
)
def test_places_are_where_their_names_say(place: str, axis: int, sign: int) -> None:
    side = box_side("large", CANVAS)
    left, top = box_corner(place, side, CANVAS)
    (mask,) = compose(np.zeros((CANVAS, CANVAS, 3), np.uint8), [(block(48, 48), side, left, top)])[1]
    centre = np.argwhere(mask).mean(0) - (CANVAS - 1) / 2
    assert np.sign(centre[axis]) == sign
    assert centre[1 - axis] == 0


def test_masks_are_exactly_the_pixels_that_show_and_nothing_else_changes() -> None:
    background = render_background(Background("checks", "yellow"), CANVAS)
    image, (first, second) = compose(
        background, [(block(40, 40, (255, 0, 0)), 32, 0, 16), (block(40, 40, (0, 0, 255)), 32, 16, 16)]
    )
    assert np.array_equal(first, (image == (255, 0, 0)).all(-1))
    assert np.array_equal(second, (image == (0, 0, 255)).all(-1))
    assert not (first & second).any()
    assert second.sum() == 32 * 32
    assert first.sum() == 32 * 16
    untouched = ~(first | second)
    assert np.array_equal(image[untouched], background[untouched])


def test_half_transparent_pixels_mix() -> None:
    cutout = block(32, 32, (200, 100, 0))
    cutout[..., 3] = 128
    image, (mask,) = compose(np.zeros((CANVAS, CANVAS, 3), np.uint8), [(cutout, 32, 16, 16)])
    assert np.array_equal(image[32, 32], [100, 50, 0])
    assert mask.sum() == 32 * 32


@pytest.mark.parametrize("corner", [(-1, 0), (0, 33)])
def test_a_box_over_the_edge_is_refused(corner: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="over the edge"):
        compose(np.zeros((CANVAS, CANVAS, 3), np.uint8), [(block(4, 4), 32, *corner)])


def test_opposite_small_boxes_never_overlap() -> None:
    side = box_side("small", CANVAS)
    for places in OPPOSITE_PLACES:
        corners = [(*box_corner(place, side, CANVAS),) for place in places]
        _, masks = compose(
            np.zeros((CANVAS, CANVAS, 3), np.uint8), [(block(9, 9), side, *corner) for corner in corners]
        )
        assert [mask.sum() for mask in masks] == [side * side] * 2


def test_shapes_differ_and_touch_their_edges() -> None:
    pictures = {facts: draw_shape(*facts) for facts in all_shapes()}
    assert len(pictures) == len(SHAPES) * 8 * 3
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)
    for picture in pictures.values():
        assert crop_to_content(picture).shape == picture.shape == (96, 96, 4)


def test_shapes_show_the_colour_and_texture_that_their_name_says() -> None:
    plain = draw_shape("square", "red", "plain")
    striped = draw_shape("square", "red", "striped")
    checkered = draw_shape("square", "red", "checkered")
    assert (plain[2:-2, 2:-2, :3] == COLOURS["red"]).all()
    assert (striped[40, :, :3] == striped[40, 0, :3]).all()
    assert len(np.unique(striped[:, 40, 1])) == 2
    assert len(np.unique(checkered[40, :, 1])) == len(np.unique(checkered[:, 40, 1])) == 2
    assert shape_name("circle", "red", "striped") == "striped red circle"
    assert shape_name("ring", "blue", "plain") == "blue ring"


def test_a_ring_has_a_hole_and_a_circle_has_none() -> None:
    assert draw_shape("ring", "red", "plain")[48, 48, 3] == 0
    assert draw_shape("circle", "red", "plain")[48, 48, 3] == 255
