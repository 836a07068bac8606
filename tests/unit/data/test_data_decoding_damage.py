"""Pictures of strangers: every damage, every bomb and every surprise is a `BadSample`."""

import io
import struct
import time
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import FORMATS, chunk, natural, png, saved
from PIL import Image, ImageFile

from mentor.data.storage.decoding import (
    BadSample,
    Limits,
    check_structure,
    decode_array,
    decode_image,
    decode_json,
    decode_mask,
    decode_text,
    decode_with_alpha,
    peek_image,
)

pytestmark = [pytest.mark.fault(13)]
REASONS = {"not a picture", "truncated picture", "picture too large", "damaged picture"}


def reason(content: bytes, **options: object) -> str:
    with pytest.raises(BadSample) as caught:
        decode_image(content, **options)
    assert caught.value.reason in REASONS
    return caught.value.reason


def fault_of(decode: Callable[[], object]) -> str | None:
    """Why it is a bad sample; None where it is none. Any other error is the test's failure."""
    try:
        decode()
    except BadSample as error:
        return error.reason
    return None


def test_a_bomb_is_refused_by_its_header() -> None:
    claims = {
        "png": png(13_000, 13_000, 1, 0, bytes(1625 * 13_000)),
        "jpg": saved(natural(8, 8), "jpg"),
        "webp": b"RIFF"
        + struct.pack("<I", 40)
        + b"WEBPVP8X"
        + struct.pack("<II", 10, 0)
        + b"\xff\x3f\0\xff\x3f\0"
        + bytes(10),
    }
    frame = claims["jpg"].index(b"\xff\xc0")
    claims["jpg"] = claims["jpg"][: frame + 5] + b"\xff\xff\xff\xff" + claims["jpg"][frame + 9 :]
    for content in claims.values():
        assert len(content) < 30_000
        before = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert reason(content) == "picture too large"
        assert time.perf_counter() - before < 1


@pytest.mark.parametrize("kind", FORMATS)
def test_the_limits_hold_to_the_pixel_and_to_the_byte(kind: str) -> None:
    content = saved(natural(10, 12), kind)
    assert decode_image(content, Limits(pixels=120, picture_bytes=len(content))).shape == (10, 12, 3)
    assert reason(content, limits=Limits(pixels=119)) == "picture too large"
    assert reason(content, limits=Limits(picture_bytes=len(content) - 1)) == "picture too large"
    with pytest.raises(BadSample, match=r"picture too large: 12 x 10 pixels, at most 119"):
        peek_image(content, Limits(pixels=119))


def test_other_formats_are_no_pictures_whatever_their_name() -> None:
    picture = Image.fromarray(natural(8, 8))
    strangers = [
        b"",
        b"\xff\xd8",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<html><body>404</body></html>",
    ]
    for name in ("GIF", "PPM", "BMP", "TIFF", "ICO", "TGA", "PCX"):
        file = io.BytesIO()
        picture.save(file, name)
        strangers.append(file.getvalue())
    for content in strangers:
        assert reason(content) == "not a picture"


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_pictures_are_refused_whatever_pillow_was_told(
    kind: str, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    content = saved(natural(64, 64), kind)
    for share in (0.5, 0.9, 0.99):
        assert reason(content[: int(len(content) * share)]) == "truncated picture"
    assert reason(content[:-1]) == "truncated picture"
    if kind == "png":
        assert reason(content[:-12]) == "truncated picture"
    assert reason(content[:14]) in ("truncated picture", "damaged picture")
    assert lenient == ImageFile.LOAD_TRUNCATED_IMAGES


def test_damaged_pixels_are_refused_whatever_pillow_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = png(4, 4, 8, 0, bytes(16))
    broken = png(4, 4, 8, 0, bytes(8) + b"\0" * 8).replace(
        zlib.compress(b"\0" * 20), b"x" * len(zlib.compress(b"\0" * 20))
    )
    at = broken.index(b"IDAT")
    length = struct.unpack(">I", broken[at - 4 : at])[0]
    fixed = struct.pack(">I", zlib.crc32(broken[at : at + 4 + length]))
    broken = broken[: at + 4 + length] + fixed + broken[at + 8 + length :]
    assert decode_image(whole).shape == (4, 4, 3)
    check_structure(broken)
    assert reason(broken) == "damaged picture"


def test_a_cut_is_seen_behind_an_embedded_preview() -> None:
    preview = saved(natural(16, 16), "jpg")
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0" + preview
    content = saved(natural(64, 64), "jpg", exif=exif)
    check_structure(content)
    assert content.index(b"\xff\xd9") < content.rindex(b"\xff\xda")
    for end in (len(content) - 9, content.index(b"\xff\xd9") + 2, 30):
        with pytest.raises(BadSample, match="truncated"):
            check_structure(content[:end])


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_after_the_end_are_allowed(kind: str) -> None:
    content = saved(natural(16, 16), kind)
    check_structure(content + b"\0\0\0trailing")
    np.testing.assert_array_equal(decode_image(content + b"\0\0\0trailing"), decode_image(content))


def test_a_flipped_bit_in_a_png_is_found_by_its_checksum() -> None:
    content = saved(natural(32, 32), "png")
    at = content.index(b"IDAT") + 40
    with pytest.raises(BadSample, match="damaged picture: the checksum"):
        check_structure(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    content = saved(natural(16, 16), "jpg", progressive=True)
    at = content.rindex(b"\xff\xda")
    assert reason(content[:at] + content[at:-2] * 1000 + content[-2:]) == "damaged picture"
    # A single-scan JPEG never has a second one decoded, so that what follows its end may look like anything.
    check_structure(saved(natural(16, 16), "jpg") + b"\xff\xda" * 1000)


def corpus() -> list[bytes]:
    pictures = [saved(natural(24, 32), kind) for kind in FORMATS]
    pictures.append(saved(natural(24, 32), "jpg", progressive=True))
    pictures.append(saved(Image.new("CMYK", (9, 9), 3), "jpg"))
    pictures.append(saved(Image.fromarray(natural(9, 9)).convert("P"), "png", transparency=bytes(range(99))))
    pictures.append(saved(Image.fromarray(natural(9, 9)).convert("RGBA"), "webp", lossless=True, exif=b"Exif\0\0II*\0"))
    pictures.append(png(5, 5, 16, 0, bytes(50), chunk(b"tRNS", b"\0\0"), chunk(b"eXIf", b"MM\0*\0\0\0\x08")))
    frames = [Image.fromarray(natural(8, 8, seed)) for seed in (1, 2)]
    pictures.append(saved(frames[0], "webp", save_all=True, append_images=frames[1:]))
    pictures.append(saved(frames[0], "png", save_all=True, append_images=frames[1:]))
    return pictures


CORPUS = corpus()
EDIT = st.tuples(
    st.floats(0, 1), st.sampled_from(["byte", "cut", "insert", "delete"]), st.binary(min_size=1, max_size=6)
)


def mutated(content: bytes, edits: list[tuple[float, str, bytes]], repair: bool) -> bytes:
    for place, kind, new in edits:
        at = int(place * len(content))
        match kind:
            case "byte":
                content = content[:at] + new + content[at + len(new) :]
            case "insert":
                content = content[:at] + new + content[at:]
            case "delete":
                content = content[:at] + content[at + len(new) :]
            case "cut":
                content = content[: max(at, len(content) // 2)]
    return checksummed(content) if repair else content


def checksummed(content: bytes) -> bytes:
    """A PNG with right checksums, so that what lies behind them is tried too."""
    if not content.startswith(b"\x89PNG"):
        return content
    position, out = 8, content[:8]
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        if position + 12 + length > len(content):
            break
        out += chunk(content[position + 4 : position + 8], content[position + 8 : position + 8 + length])
        position += 12 + length
    return out + content[position:]


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.sampled_from(CORPUS), st.lists(EDIT, max_size=4), st.booleans())
def test_mutated_pictures_are_decoded_or_bad_samples(content: bytes, edits: list, repair: bool) -> None:
    content = mutated(content, edits, repair)
    limits = Limits(pixels=1 << 20)
    fault = fault_of(lambda: decode_with_alpha(content, limits))
    assert fault in (*REASONS, None)
    if fault is not None:
        return
    header = peek_image(content, limits)
    pixels, alpha = decode_with_alpha(content, limits)
    assert pixels.dtype == np.uint8 and pixels.shape[1::-1] == header.upright
    assert alpha is None or (header.has_alpha and alpha.shape == pixels.shape[:2])


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x20\0\0\0WEBPVP8X", b"\x93NUMPY\x01\0"]),
    st.binary(),
)
def test_random_bytes_are_bad_samples(start: bytes, rest: bytes) -> None:
    for decode in (decode_image, decode_mask, peek_image, decode_array, decode_json, decode_text):
        assert fault_of(lambda decode=decode: decode(start + rest)) != ""
