"""Pictures in the formats that people keep, and PNG files put together by hand."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def natural(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, which every format keeps well."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def saved(image: Image.Image | np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    """The file that Pillow writes; `kind` is an ending or Pillow's own name of the format."""
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, FORMATS.get(kind, kind), **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, pixels: bytes, *extra: bytes) -> bytes:
    """A PNG chunk by chunk; `pixels` holds whole rows without their filter bytes."""
    rows = len(pixels) // height
    filtered = b"".join(b"\0" + pixels[at : at + rows] for at in range(0, len(pixels), rows))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(filtered))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")
