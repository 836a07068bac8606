"""Conversions, square fitting, and the geometry of recovery: direction, alignment and exactness of the mask."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from mentor.data import transforms as tf
from mentor.data.tensors import to_pixels, to_tensor

SIZE = 64


def block_picture(left: int = 20, top: int = 24, right: int = 44, bottom: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A red block on green noise, and its mask."""
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[..., 0] = 0
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:bottom, left:right] = True
    pixels[mask] = (250, 10, 10)
    return pixels, mask


def extent(mask: np.ndarray) -> tuple[int, int]:
    box = tf.box_of(mask)
    assert box is not None
    return box[2] - box[0], box[3] - box[1]


def warp(pixels: np.ndarray, mask: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The warped object and the pixels of which it covers at least half."""
    warped, coverage = tf.warp_cutout(pixels, mask, matrix, SIZE)
    return warped, coverage >= 0.5


def centred(matrix: np.ndarray) -> np.ndarray:
    return tf.about(matrix, SIZE / 2, SIZE / 2)


def test_tensor_and_back_is_the_identity_for_every_value():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor(pixels)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor.min() == -1
    assert tensor.max() == 1
    assert np.array_equal(to_pixels(tensor), pixels)


def test_to_tensor_puts_channels_first_without_mixing_axes():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[1, 5, 2] = 255
    tensor = to_tensor(pixels)
    assert tensor[2, 1, 5] == 1
    assert (tensor == 1).sum() == 1


def test_to_pixels_clamps():
    assert to_pixels(torch.full((3, 1, 1), 3.0)).tolist() == [[[255, 255, 255]]]
    assert to_pixels(torch.full((3, 1, 1), -3.0)).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (64, 64)])
def test_a_circle_stays_a_circle_when_fitted(shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    disc = (rows - (shape[0] - 1) / 2) ** 2 + (columns - (shape[1] - 1) / 2) ** 2 < 15**2
    pixels = np.repeat(disc[..., None], 3, axis=2).astype(np.uint8) * 255
    fitted, mask = tf.fit_pixels(pixels, 80), tf.fit_mask(disc, 80)
    width, height = extent(mask)
    assert abs(width - height) <= 1
    assert ((fitted[..., 0] > 127) != mask).mean() < 0.01, "picture and mask are cropped and resized alike"


def test_fitting_at_the_same_size_changes_nothing():
    pixels, mask = block_picture()
    assert np.array_equal(tf.fit_pixels(pixels, SIZE), pixels)
    assert np.array_equal(tf.fit_mask(mask, SIZE), mask)


def test_coverage_is_the_share_of_area():
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = mask[2:, 2:] = True
    mask[0:2, 2] = True
    assert tf.fit_coverage(mask, 2).tolist() == [[0.25, 0.5], [0.0, 1.0]]
    assert tf.fit_mask(mask, 2).tolist() == [[False, True], [False, True]]


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(tf.fit_pixels(stripes, 16).astype(int) - 127).max() < 20


def test_box_of_nothing_is_none():
    assert tf.box_of(np.zeros((3, 3), bool)) is None


def test_identity_is_exact():
    pixels, mask = block_picture()
    warped, coverage = tf.warp_cutout(pixels, mask, np.eye(3), SIZE)
    assert np.array_equal(coverage, mask)
    assert np.array_equal(warped[mask], pixels[mask])


def test_translate_moves_right_and_down():
    pixels, mask = block_picture()
    warped, coverage = tf.warp_cutout(pixels, mask, tf.translate(7, 3), SIZE)
    assert np.array_equal(coverage, np.roll(mask, (3, 7), axis=(0, 1)))
    assert np.array_equal(warped[coverage == 1], pixels[mask])


@pytest.mark.parametrize(
    ("factor_x", "factor_y", "width", "height"), [(1.5, 1, 36, 16), (1, 1.5, 24, 24), (0.5, 1, 12, 16)]
)
def test_stretch_above_one_makes_wider_or_taller(factor_x, factor_y, width, height):
    pixels, mask = block_picture()
    _, warped = warp(pixels, mask, centred(tf.stretch(factor_x, factor_y)))
    assert extent(warped) == (width, height)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.5])
def test_scale_enlarges_above_one_and_shrinks_below(factor):
    pixels, mask = block_picture()
    _, warped = warp(pixels, mask, centred(tf.scale(factor)))
    assert extent(warped) == (24 * factor, 16 * factor)
    assert abs(warped.sum() - mask.sum() * factor**2) <= 2


def test_shear_along_x_pushes_lower_rows_to_the_right():
    pixels, mask = block_picture()
    _, warped = warp(pixels, mask, centred(tf.shear(0.5)))
    starts = warped.argmax(axis=1)[24:40]
    assert starts[-1] - starts[0] == pytest.approx(0.5 * 15, abs=1)
    assert extent(warped)[1] == 16, "rows stay rows"


def test_shear_along_y_pushes_right_columns_down():
    pixels, mask = block_picture()
    _, warped = warp(pixels, mask, centred(tf.shear(0.0, 0.5)))
    starts = warped.argmax(axis=0)[20:44]
    assert starts[-1] - starts[0] == pytest.approx(0.5 * 23, abs=1)


def test_positive_rotation_is_counter_clockwise():
    assert tf.map_points(tf.rotate(90), [(1.0, 0.0)])[0] == pytest.approx((0.0, -1.0)), "from the right to above"
    pixels, mask = block_picture(left=34, right=60, top=30, bottom=34)
    _, warped = warp(pixels, mask, centred(tf.rotate(90)))
    assert tf.box_of(warped) == (30, 4, 34, 30)


def test_rotation_agrees_with_pillow():
    pixels, mask = block_picture()
    _, warped = warp(pixels, mask, centred(tf.rotate(15)))
    theirs = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).rotate(15, Image.Resampling.BICUBIC)) >= 128
    assert (warped != theirs).sum() <= 4


def test_perspective_takes_corners_to_corners():
    corners = tf.corners_of((20, 24, 44, 40))
    moved = [(10.0, 10.0), (50.0, 20.0), (48.0, 50.0), (14.0, 44.0)]
    matrix = tf.perspective(corners, moved)
    assert tf.map_points(matrix, corners) == pytest.approx(np.array(moved))
    pixels, mask = block_picture()
    _, warped = warp(pixels, mask, matrix)
    assert tf.box_of(warped) == pytest.approx((10, 10, 50, 50), abs=1)


def test_perspective_narrowing_the_top_narrows_the_top():
    pixels, mask = block_picture()
    matrix = tf.perspective(tf.corners_of((20, 24, 44, 40)), [(26, 24), (38, 24), (44, 40), (20, 40)])
    _, warped = warp(pixels, mask, matrix)
    widths = warped.sum(axis=1)[24:40]
    assert widths[0] < 15
    assert widths[-1] > 22
    assert (np.diff(widths) >= 0).all()


def test_colour_and_mask_stay_aligned_and_bring_no_background():
    pixels, mask = block_picture()
    rng = random.Random(3)
    for _ in range(200):
        matrix = tf.recovery_distortion((20, 24, 44, 40), SIZE, rng, distort=1.0)
        warped, warped_mask = warp(pixels, mask, matrix)
        assert warped_mask.any()
        assert np.abs(warped[warped_mask].astype(int) - (250, 10, 10)).max() <= 6, "only the object's own colour"


def test_a_mark_inside_the_object_goes_where_the_matrix_says():
    rng = random.Random(5)
    for _ in range(50):
        pixels, mask = block_picture()
        pixels[28:32, 24:28] = (10, 10, 250)
        matrix = tf.recovery_distortion((20, 24, 44, 40), SIZE, rng, min_scale=0.7, distort=1.0)
        warped, warped_mask = warp(pixels, mask, matrix)
        blue = warped_mask & (warped[..., 2] > 128)
        y, x = np.argwhere(blue).mean(axis=0) + 0.5
        assert (x, y) == pytest.approx(tuple(tf.map_points(matrix, [(26, 30)])[0]), abs=0.6)


def test_paste_is_exact_outside_and_inside_and_blends_the_edge():
    pixels, mask = block_picture()
    background = np.random.default_rng(1).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    rng = random.Random(0)
    for _ in range(50):
        matrix = tf.recovery_distortion((20, 24, 44, 40), SIZE, rng)
        warped, coverage = tf.warp_cutout(pixels, mask, matrix, SIZE)
        pasted = tf.paste(background, warped, coverage)
        assert np.array_equal(pasted[coverage == 0], background[coverage == 0])
        assert np.array_equal(pasted[coverage == 1], warped[coverage == 1])
        share = coverage[..., None]
        assert np.abs(pasted - (warped * share + background * (1 - share))).max() <= 0.51


def test_paste_by_a_plain_mask_takes_each_pixel_whole():
    pixels, mask = block_picture()
    background = np.full_like(pixels, 77)
    pasted = tf.paste(background, pixels, mask)
    assert np.array_equal(pasted[mask], pixels[mask])
    assert (pasted[~mask] == 77).all()


def test_coverage_keeps_the_area_of_objects_too_thin_to_fill_a_pixel():
    pixels = np.full((SIZE, SIZE, 3), 200, np.uint8)
    lines = np.zeros((SIZE, SIZE), bool)
    lines[8:56:8, 8:56] = True
    _, coverage = tf.warp_cutout(pixels, lines, tf.about(tf.scale(0.25), 32, 32), SIZE)
    assert coverage.sum() == pytest.approx(lines.sum() / 16, rel=0.1)
    assert coverage.max() < 0.5


@pytest.mark.parametrize("distort", [0.0, 1.0])
def test_distorted_objects_lie_wholly_on_the_canvas(distort):
    rng = random.Random(1)
    box = (4.0, 2.0, 62.0, 60.0)
    for _ in range(500):
        left, top, right, bottom = tf.bounds(tf.recovery_distortion(box, SIZE, rng, distort=distort), box)
        assert min(left, top) >= -1e-6
        assert max(right, bottom) <= SIZE + 1e-6


def test_without_distortion_only_size_and_place_change_and_sizes_fill_the_range():
    rng = random.Random(2)
    box = (10.0, 20.0, 50.0, 40.0)
    sizes = []
    for _ in range(500):
        matrix = tf.recovery_distortion(box, SIZE, rng, min_scale=0.4, distort=0.0)
        assert matrix[0, 0] == matrix[1, 1]
        assert matrix[[0, 1, 2, 2], [1, 0, 0, 1]].tolist() == [0, 0, 0, 0]
        sizes.append(matrix[0, 0])
    assert 0.4 <= min(sizes) < 0.43
    assert 0.97 < max(sizes) <= 1


def test_half_of_the_objects_are_distorted():
    rng = random.Random(4)
    matrices = [tf.recovery_distortion((10.0, 20.0, 50.0, 40.0), SIZE, rng) for _ in range(1000)]
    assert np.mean([matrix[0, 1] != 0 for matrix in matrices]) == pytest.approx(0.5, abs=0.05)


def test_an_empty_mask_gives_an_empty_mask():
    pixels, mask = block_picture()
    assert not warp(pixels, mask & False, np.eye(3))[1].any()
