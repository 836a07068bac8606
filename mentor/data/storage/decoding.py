"""Bytes of strangers as pixels, text, JSON and arrays, or `BadSample`: within limits, never anything executed.

Only JPEG, PNG and WEBP are pictures, by their first bytes; what a file is called plays no part. Pixels come upright by
EXIF (an orientation that cannot be read counts as upright), as 8-bit RGB: transparency is put on a colour, 16 bits
are scaled to 8 (never clipped), CMYK is taken with the polarity that Adobe writes, animations show their first frame,
colour profiles are ignored. A truncated picture is a bad sample, whatever Pillow was told elsewhere in the process.
"""

import codecs
import io
import json
import math
import struct
import tokenize
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mentor.config import Config
from mentor.data.storage.headers import BadSample, Picture, check_structure, read_header

__all__ = [
    "LIMITS",
    "BadSample",
    "Limits",
    "Picture",
    "check_structure",
    "decode_array",
    "decode_image",
    "decode_json",
    "decode_mask",
    "decode_text",
    "decode_with_alpha",
    "peek_image",
    "turn_upright",
]

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)

_OPENERS = {"jpg": JpegImageFile, "png": PngImageFile, "webp": WebPImageFile}
# What Pillow has been seen to raise for damaged files, warnings included where a process turns them into errors.
_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    MemoryError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


class Limits(Config):
    """How much a single sample may ask for; more is a bad sample.

    Attributes:
        pixels: of a picture as stored, width times height.
        picture_bytes: of a picture's file.
        text_bytes: of a text or JSON file.
        array_bytes: of an array's file.
        json_depth: lists and mappings within one another.
        members: files that belong to one sample.
        name_length: characters of a file's name.
    """

    pixels: int = 89_478_485 // 2
    picture_bytes: int = 64 << 20
    text_bytes: int = 1 << 20
    array_bytes: int = 64 << 20
    json_depth: int = 64
    members: int = 64
    name_length: int = 255


LIMITS = Limits()

# Made once: making one takes as long as decoding a small file.
_JSON = json.JSONDecoder(parse_constant=lambda name: None)


def peek_image(content: bytes, limits: Limits = LIMITS) -> Picture:
    """What a picture's header says; no pixel is decoded, and a picture cut after its header is not noticed.

    Raises:
        BadSample: "not a picture", "picture too large", "truncated picture" or "damaged picture".
    """
    if len(content) > limits.picture_bytes:
        raise BadSample("picture too large", f"{len(content)} bytes, at most {limits.picture_bytes} are allowed")
    picture = read_header(content)
    if picture.width * picture.height > limits.pixels:
        size = f"{picture.width} x {picture.height}"
        raise BadSample("picture too large", f"{size} pixels, at most {limits.pixels} are allowed")
    return picture


def decode_image(
    content: bytes, limits: Limits = LIMITS, fit: int | None = None, whole: bool = False
) -> UInt8[np.ndarray, "y x 3"]:
    """The picture, RGB, upright, transparency on white; the array may be read-only.

    Args:
        content: a JPEG, PNG or WEBP file.
        limits: what is allowed.
        fit: a JPEG whose shorter side is at least twice this many pixels is decoded at 1/2, 1/4 or 1/8 of its size,
            never below `fit` on the shorter side, which saves most of the time; other pictures come in full.
        whole: that the bytes are those of a whole picture is known, by a checksum of them all.

    Raises:
        BadSample: "not a picture", "picture too large", "truncated picture" or "damaged picture".
    """
    return decode_with_alpha(content, limits, WHITE, fit, whole)[0]


def decode_with_alpha(
    content: bytes,
    limits: Limits = LIMITS,
    background: Colour = WHITE,
    fit: int | None = None,
    whole: bool = False,
) -> tuple[UInt8[np.ndarray, "y x 3"], UInt8[np.ndarray, "y x"] | None]:
    """The picture with its transparency on `background`, and that transparency: 255 is opaque, None when it has none.

    Raises:
        BadSample: as `decode_image` does.
    """
    header = peek_image(content, limits)
    if not whole:
        check_structure(content, header)
    try:
        with _truncation_refused():
            image = _OPENERS[header.format](io.BytesIO(content))
            if fit is not None and header.format == "jpg":
                image.draft(None, (fit, fit))
            if image.width * image.height > limits.pixels:
                raise BadSample("picture too large", f"{image.width} x {image.height} pixels")
            pixels, alpha = _to_rgb(image, header.bits)
    except BadSample:
        raise
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample("picture too large", str(error) or "there is not enough memory for it") from None
    except _FAULTS as error:
        reason = "truncated picture" if "truncated" in str(error) else "damaged picture"
        raise BadSample(reason, str(error) or type(error).__name__) from None
    if alpha is not None:
        pixels = _compose(pixels, alpha, background)
        alpha = turn_upright(alpha, header.orientation)
    return turn_upright(pixels, header.orientation), alpha


def decode_mask(content: bytes, limits: Limits = LIMITS, whole: bool = False) -> Bool[np.ndarray, "y x"]:
    """A mask from its picture: True where its grey is at least 128; what is transparent counts as black.

    Raises:
        BadSample: as `decode_image` does.
    """
    pixels, _ = decode_with_alpha(content, limits, BLACK, whole=whole)
    return np.asarray(Image.fromarray(pixels).convert("L")) >= 128


def turn_upright(
    array: Shaped[np.ndarray, "y x *rest"], orientation: int
) -> Shaped[np.ndarray, "turned_y turned_x *rest"]:
    """The array turned and mirrored as EXIF's `orientation` (1 to 8) asks; itself for 1."""
    if orientation == 1:
        return array
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def decode_text(content: bytes, limits: Limits = LIMITS) -> str:
    """The text: UTF-8 without a byte order mark, in Unicode's NFC, lines ending in a single newline.

    Control characters other than newline and tab are removed.

    Raises:
        BadSample: "text too large" or "text not UTF-8".
    """
    if len(content) > limits.text_bytes:
        raise BadSample("text too large", f"{len(content)} bytes, at most {limits.text_bytes} are allowed")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample("text not UTF-8", f"at byte {error.start}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isprintable():
        text = "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")
    return unicodedata.normalize("NFC", text)


def decode_json(content: bytes, limits: Limits = LIMITS) -> Any:
    """The JSON value; NaN and infinity, which some programs write though JSON has no such words, become None.

    Raises:
        BadSample: "json too large" or "damaged json" (also: nested too deep, an integer of thousands of digits, half a
            surrogate pair, which no file could hold again).
    """
    if len(content) > limits.text_bytes:
        raise BadSample("json too large", f"{len(content)} bytes, at most {limits.text_bytes} are allowed")
    try:
        value = _JSON.decode(content.decode("utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8"))
        if b"\\ud" in content or b"\\uD" in content:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadSample("damaged json", str(error)) from None
    # So few brackets cannot nest deeper, which spares nearly all files the walk.
    if content.count(b"[") + content.count(b"{") > limits.json_depth:
        _check_depth(value, limits.json_depth)
    return value


def decode_array(content: bytes, limits: Limits = LIMITS) -> np.ndarray:
    """The array of a `.npy` file: numbers or truth values only; read-only, since it lies in `content` itself.

    Raises:
        BadSample: "array too large" or "damaged array" (also: objects, text or fields in place of numbers).
    """
    if len(content) > limits.array_bytes:
        raise BadSample("array too large", f"{len(content)} bytes, at most {limits.array_bytes} are allowed")
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(file)
    except KeyError:
        raise BadSample("damaged array", "its version is not 1.0 or 2.0") from None
    except (*_FAULTS, tokenize.TokenError) as error:
        raise BadSample("damaged array", str(error) or type(error).__name__) from None
    if dtype.kind not in "biufc":
        raise BadSample("damaged array", f"its values are of type {dtype}, not numbers")
    # Python's integers do not overflow, so that no claim of a shape can hide its size.
    stored = len(content) - file.tell()
    if math.prod(shape) * dtype.itemsize != stored:
        raise BadSample("damaged array", f"shape {shape} of {dtype} does not fit {stored} bytes")
    try:
        flat = np.frombuffer(content, dtype, offset=file.tell()) if stored else np.zeros(0, dtype)
        return flat.reshape(shape, order="F" if fortran_order else "C")
    except (ValueError, MemoryError) as error:
        raise BadSample("damaged array", str(error)) from None


@contextmanager
def _truncation_refused() -> Iterator[None]:
    """While this holds, Pillow does not fill up what is missing in a file, even where a library told it to."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    if not before:
        yield
        return
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _to_rgb(image: Image.Image, bits: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels `y x 3` as stored, and their transparency as stored."""
    key = image.info.get("transparency")
    match image.mode:
        case "RGB" if key is None:
            return np.asarray(image), None
        case "RGBA" | "LA" | "PA" | "P" if image.mode != "P" or key is not None:
            rgba = np.asarray(image.convert("RGBA"))
            return rgba[..., :3], rgba[..., 3]
        case "I;16" | "I":
            values = np.asarray(image).astype(np.uint32)
            grey = ((values + 128) // 257).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2), None if key is None else _opaque(values != key)
        case "1" | "L" | "RGB" if key is not None:
            stored = np.asarray(image.convert("L") if image.mode == "1" else image)
            clear = _same(stored, key, 8 if image.mode == "1" else bits)
            return np.asarray(image.convert("RGB")), _opaque(~clear)
    return np.asarray(image.convert("RGB")), None


def _same(stored: np.ndarray, key: int | Sequence[int], bits: int) -> np.ndarray:
    """Where a pixel has the colour that the file declares transparent; that is given at the file's own depth."""
    largest = (1 << bits) - 1
    scaled = np.asarray(key) >> 8 if bits == 16 else np.asarray(key) * 255 // largest
    same = stored == scaled
    return same.all(axis=2) if same.ndim == 3 else same


def _opaque(visible: np.ndarray) -> np.ndarray:
    return visible.astype(np.uint8) * 255


def _compose(pixels: np.ndarray, alpha: np.ndarray, background: Colour) -> np.ndarray:
    """The pixels over one colour, rounded to the nearest; every sum fits 16 bits."""
    share = alpha.astype(np.uint16)[..., None]
    mixed = pixels * share + np.asarray(background, np.uint16) * (255 - share)
    return ((mixed + 127) // 255).astype(np.uint8)


def _check_depth(value: Any, deepest: int) -> None:
    level = [value]
    for _ in range(deepest):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
        if not below:
            return
        level = below
    if any(isinstance(one, dict | list) for one in level):
        raise BadSample("damaged json", f"nested more than {deepest} deep")
