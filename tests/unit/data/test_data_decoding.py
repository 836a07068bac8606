"""Decoders of strangers' pictures: every mode, depth and orientation right to the pixel."""

import io
import struct

import numpy as np
import pytest
from pictures import FORMATS, chunk, natural, png, saved
from PIL import Image, ImageOps

from mentor.data.storage.decoding import decode_image, decode_mask, decode_with_alpha, peek_image

pytestmark = [pytest.mark.fault(13)]


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_lossless_pictures_keep_every_pixel(kind: str) -> None:
    pixels = natural(13, 17)
    np.testing.assert_array_equal(decode_image(saved(pixels, kind, lossless=True)), pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_rows": 1}])
def test_a_jpeg_is_decoded_as_pillow_does(options: dict) -> None:
    content = saved(natural(40, 56), "jpg", quality=90, **options)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(content), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 60_000)])
def test_extreme_shapes_are_pictures_too(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 77, np.uint8)
    np.testing.assert_array_equal(decode_image(saved(pixels, "png")), pixels)


def test_grey_pictures_have_three_equal_channels() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    for kind in ("png", "jpg"):
        decoded = decode_image(saved(grey, kind, quality=100))
        assert (decoded == decoded[..., :1]).all()
        assert np.abs(decoded[..., 0].astype(int) - grey).max() <= (2 if kind == "jpg" else 0)


def test_one_bit_is_black_and_white() -> None:
    decoded = decode_image(png(8, 1, 1, 0, bytes([0b10110000])))
    assert decoded[0, :, 0].tolist() == [255, 0, 255, 255, 0, 0, 0, 0]


def test_two_bit_grey_reaches_from_black_to_white() -> None:
    assert decode_image(png(4, 1, 2, 0, bytes([0b00011011])))[0, :, 0].tolist() == [0, 85, 170, 255]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([0, 128, 129, 257, 32768, 65407, 65535], ">u2")
    assert decode_image(png(7, 1, 16, 0, values.tobytes()))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_sixteen_bit_colour_is_scaled_not_clipped() -> None:
    values = np.array([65535, 32768, 0, 257 * 9, 257 * 200, 255], ">u2")
    assert decode_image(png(2, 1, 16, 2, values.tobytes()))[0].tolist() == [[255, 128, 0], [9, 200, 0]]


def test_sixteen_bit_transparency_is_composed() -> None:
    values = np.array([65535, 0, 0, 65535, 65535, 0, 0, 0], ">u2")
    assert decode_image(png(2, 1, 16, 6, values.tobytes()))[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    grey = np.array([0, 65535, 0, 0], ">u2")
    assert decode_image(png(2, 1, 16, 4, grey.tobytes()))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_cmyk_is_shown_in_its_colours() -> None:
    inks = {
        (255, 0, 0, 0): (0, 255, 255),
        (0, 255, 255, 0): (255, 0, 0),
        (0, 0, 0, 255): (0, 0, 0),
        (0,) * 4: (255,) * 3,
    }
    for ink, colour in inks.items():
        content = saved(Image.new("CMYK", (16, 16), ink), "jpg", quality=100)
        # What Pillow writes is inverted and says so, as Adobe's programs do.
        assert b"Adobe" in content and peek_image(content).mode == "CMYK"
        assert np.abs(decode_image(content).astype(int) - colour).max() <= 2


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_transparency_is_put_on_white(kind: str) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 128], [100, 100, 100, 130]]], np.uint8)
    content = saved(rgba, kind, lossless=True, exact=True)
    assert decode_image(content)[0].tolist() == [[255, 0, 0], [255, 255, 255], [255, 127, 127], [176, 176, 176]]
    pixels, alpha = decode_with_alpha(content, background=(0, 0, 255))
    assert pixels[0].tolist() == [[255, 0, 0], [0, 0, 255], [128, 0, 127], [51, 51, 176]]
    assert alpha[0].tolist() == [255, 0, 128, 130]


def test_opaque_pictures_have_no_transparency() -> None:
    for kind in FORMATS:
        assert decode_with_alpha(saved(natural(4, 4), kind))[1] is None


def test_grey_with_transparency_is_put_on_white() -> None:
    content = saved(np.array([[[40, 255], [40, 0]]], np.uint8), "png")
    assert decode_image(content)[0].tolist() == [[40, 40, 40], [255, 255, 255]]


@pytest.mark.parametrize("clear", [1, bytes([255, 0, 128])])
def test_palettes_with_transparency_are_put_on_white(clear: int | bytes) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    picture.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 200])
    third = [0, 0, 200] if clear == 1 else [127, 127, 227]
    decoded = decode_image(saved(picture, "png", transparency=clear))
    assert decoded[0].tolist() == [[10, 20, 30], [255, 255, 255], third]
    assert decode_image(saved(picture, "png"))[0].tolist() == [[10, 20, 30], [200, 0, 0], [0, 0, 200]]


@pytest.mark.parametrize(
    ("bits", "colour", "pixels", "key", "alpha"),
    [
        (8, 0, bytes([0, 7, 8]), [7], [255, 0, 255]),
        (2, 0, bytes([0b00011000]), [1], [255, 0, 255]),
        (1, 0, bytes([0b01000000]), [1], [255, 0, 255]),
        (16, 0, struct.pack(">3H", 0, 300, 301), [300], [255, 0, 255]),
        (8, 2, bytes([1, 2, 3, 1, 2, 4, 9, 9, 9]), [1, 2, 4], [255, 0, 255]),
        (16, 2, struct.pack(">9H", 0, 0, 0, 65535, 0, 65535, 0, 65535, 0), [65535, 0, 65535], [255, 0, 255]),
    ],
)
def test_a_colour_declared_transparent_is(bits: int, colour: int, pixels: bytes, key: list, alpha: list) -> None:
    content = png(3, 1, bits, colour, pixels, chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
    decoded, found = decode_with_alpha(content)
    assert found[0].tolist() == alpha
    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert peek_image(content).has_alpha


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(natural(24, 40), kind, exif=exif, lossless=True)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(decode_image(content), np.asarray(expected))
    header = peek_image(content)
    assert (header.orientation, header.width, header.height) == (orientation, 40, 24)
    assert header.upright == expected.size


def test_transparency_is_turned_along() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0, 2, 3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, alpha = decode_with_alpha(saved(rgba, "png", exif=exif))
    assert alpha.shape == (3, 2) and alpha[2, 1] == 255 and alpha.sum() == 255
    assert pixels[2, 1].tolist() == [0, 0, 0] and pixels[0, 0].tolist() == [255, 255, 255]


def test_an_unreadable_orientation_counts_as_upright() -> None:
    pixels = natural(8, 12)
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12",
        b"nonsense",
    ):
        assert decode_image(saved(pixels, "jpg", exif=exif)).shape == pixels.shape
    exif = Image.Exif()
    exif[0x0112] = 9
    assert peek_image(saved(pixels, "jpg", exif=exif)).orientation == 1


def test_the_limit_is_ours_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("jpg", "png"):
        assert decode_image(saved(natural(30, 30), kind)).shape == (30, 30, 3)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_an_animation_shows_its_first_frame(kind: str) -> None:
    frames = [Image.fromarray(natural(8, 8, seed)) for seed in (1, 2)]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode_image(content), np.asarray(frames[0]))
    assert peek_image(content).animated and not peek_image(saved(frames[0], kind)).animated


def test_a_header_says_what_decoding_would() -> None:
    cases = [(kind, mode) for kind in ("png", "webp") for mode in ("RGB", "RGBA")]
    cases += [("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "L"), ("png", "LA"), ("png", "P")]
    for kind, mode in cases:
        for options in ({}, {"lossless": True}):
            picture = Image.fromarray(natural(9, 15)).convert(mode)
            if mode == "RGBA":
                picture.putalpha(100)
            header = peek_image(saved(picture, kind, **options))
            found = (header.format, header.mode, header.width, header.height, header.bits)
            assert found == (kind, mode, 15, 9, 8)
            assert header.has_alpha == (mode in ("RGBA", "LA"))
    assert peek_image(png(1, 1, 16, 2, bytes(6))).bits == 16


def test_fit_decodes_large_jpegs_smaller_and_changes_nothing_else() -> None:
    pixels = natural(400, 520)
    content = saved(pixels, "jpg", quality=95)
    full = decode_image(content)
    for fit, shape in (
        (401, (400, 520)),
        (201, (400, 520)),
        (200, (200, 260)),
        (64, (100, 130)),
        (50, (50, 65)),
        (1, (50, 65)),
    ):
        decoded = decode_image(content, fit=fit)
        assert decoded.shape == (*shape, 3)
        expected = np.asarray(Image.fromarray(full).resize(shape[::-1], Image.Resampling.BOX))
        assert np.abs(decoded.astype(int) - expected).mean() < 2
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(saved(pixels, "jpg", exif=exif), fit=100).shape == (130, 100, 3)
    np.testing.assert_array_equal(decode_image(saved(pixels, "png"), fit=10), pixels)


def test_masks_are_true_from_the_middle_grey_on() -> None:
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    assert decode_mask(saved(grey, "png")).tolist() == [[False, False, True, True]]
    colours = np.array([[[255, 255, 0], [0, 0, 255]]], np.uint8)
    assert decode_mask(saved(colours, "png")).tolist() == [[True, False]]


def test_what_is_transparent_is_outside_of_a_mask() -> None:
    assert decode_mask(saved(np.array([[[255] * 4, [255, 255, 255, 0]]], np.uint8), "png")).tolist() == [[True, False]]
