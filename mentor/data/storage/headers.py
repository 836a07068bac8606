"""What a picture file says of itself, read from its bytes alone: no pixel is decoded and no library trusted."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

PictureFormat = Literal["jpg", "png", "webp"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"
# Frame headers are C0 to CF but for tables of Huffman codes, extensions and arithmetic coding.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
# Each scan of a progressive JPEG goes over the whole picture, so that ten bytes can cost as much as a megabyte. Real
# files have about ten.
_MOST_SCANS = 500
_EXIF_PREFIX = b"Exif\0\0"
_ORIENTATION = 0x0112


class BadSample(ValueError):
    """Bytes that are not what they should be.

    Attributes:
        reason: few fixed words that are counted ("truncated picture"), without anything of the single case in them.
        detail: what the single case adds, for the log; may be empty.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        # Both are handed on as they are, since that is what travels between processes.
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Picture:
    """What a picture's header says.

    Attributes:
        format: by its bytes, whatever the file is called.
        mode: "L", "LA", "P", "RGB", "RGBA" or "CMYK", as stored.
        width: in pixels, as stored.
        height: likewise.
        orientation: EXIF's 1 to 8; 1 where nothing readable is said.
        has_alpha: whether some pixel may be transparent.
        animated: whether it moves; the first frame counts.
        bits: of one channel (1 to 16).
        body: the byte at which a JPEG's first scan begins; 0 for others.
        several: whether a JPEG may have more than one scan.
    """

    format: PictureFormat
    mode: str
    width: int
    height: int
    orientation: int = 1
    has_alpha: bool = False
    animated: bool = False
    bits: int = 8
    body: int = 0
    several: bool = False

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as one sees it, turned by its orientation."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(content: bytes) -> Picture:
    """What the header says; a picture that is cut after its header is not noticed here.

    Raises:
        BadSample: "not a picture" (none of JPEG, PNG and WEBP), "truncated picture" or "damaged picture" (no size).
    """
    try:
        picture = _READERS[_format_of(content)](content)
    except (struct.error, IndexError):
        raise BadSample("truncated picture", f"the header is cut after {len(content)} bytes") from None
    if picture.width < 1 or picture.height < 1:
        raise BadSample("damaged picture", f"its size is {picture.width} x {picture.height}")
    return picture


def check_structure(content: bytes, header: Picture | None = None) -> None:
    """Make sure that a picture file is whole, without decoding it.

    A JPEG must have an end after its first scan, a PNG all chunks up to its last with the right checksums (decoders
    leave those of the pixel data unread), a WEBP as many bytes as it claims. Bytes after the end are allowed. A JPEG
    whose pixel data are wrong between its markers is found by decoding alone.

    Raises:
        BadSample: "not a picture", "truncated picture" or "damaged picture".
    """
    match header.format if header else _format_of(content):
        case "jpg":
            _check_jpeg(content, header)
        case "png":
            _check_png(content)
        case "webp":
            claimed = 8 + int.from_bytes(content[4:8], "little")
            if claimed > len(content):
                raise BadSample("truncated picture", f"{len(content)} of {claimed} bytes")


def _format_of(content: bytes) -> PictureFormat:
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content.startswith(_PNG_SIGNATURE):
        return "png"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "webp"
    start = bytes(content[:8])
    raise BadSample("not a picture", f"it begins with {start!r}; known are JPEG, PNG and WEBP" if start else "0 bytes")


def _read_jpeg(content: bytes) -> Picture:
    orientation, frame, progressive, body = 1, None, False, 0
    for marker, start, length in _jpeg_segments(content):
        body = start
        if marker == 0xE1 and orientation == 1 and content.startswith(_EXIF_PREFIX, start):
            orientation = _orientation(content[start + len(_EXIF_PREFIX) : start + length])
        elif marker in _JPEG_FRAMES and frame is None:
            frame = struct.unpack_from(">BHHB", content, start)
            progressive = marker in _JPEG_PROGRESSIVE
    if frame is None:
        raise BadSample("damaged picture", "a JPEG without a frame")
    bits, height, width, channels = frame
    if channels not in _JPEG_MODES:
        raise BadSample("damaged picture", f"a JPEG of {channels} channels")
    several = progressive or content[body] < channels
    return Picture("jpg", _JPEG_MODES[channels], width, height, orientation, False, False, bits, body, several)


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, place of its content and length of that for all segments up to and with the first scan."""
    position = 2
    while True:
        position = content.find(b"\xff", position)
        if position < 0:
            raise BadSample("truncated picture", "a JPEG without pixels")
        marker = content[position + 1]
        if marker in (0x00, 0xFF) or marker in _JPEG_ALONE:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            raise BadSample("damaged picture", "a JPEG without pixels")
        length = content[position + 2] << 8 | content[position + 3]
        yield marker, position + 4, length - 2
        if marker == 0xDA:
            return
        position += 2 + max(length, 2)


def _check_jpeg(content: bytes, header: Picture | None) -> None:
    try:
        header = header or _read_jpeg(content)
    except (struct.error, IndexError):
        raise BadSample("truncated picture", f"cut within the header after {len(content)} bytes") from None
    # Within pixel data an FF is always followed by a zero, so that this can be nothing but the end.
    if not content.endswith(_JPEG_END) and content.find(_JPEG_END, header.body) < 0:
        raise BadSample("truncated picture", f"a JPEG of {len(content)} bytes without its end")
    if header.several and content.count(_JPEG_SCAN) > _MOST_SCANS:
        raise BadSample("damaged picture", f"a JPEG of more than {_MOST_SCANS} scans")


def _read_png(content: bytes) -> Picture:
    width, height, bits, colour = struct.unpack_from(">IIBB", content, 16)
    if content[12:16] != b"IHDR" or colour not in _PNG_MODES:
        raise BadSample("damaged picture", "a PNG without a header")
    mode = _PNG_MODES[colour]
    orientation, has_alpha, animated = 1, mode in ("LA", "RGBA"), False
    for kind, start, length in _png_chunks(content):
        match kind:
            case b"tRNS":
                has_alpha = True
            case b"acTL":
                animated = True
            case b"eXIf":
                orientation = _orientation(content[start : start + length])
    return Picture("png", mode, width, height, orientation, has_alpha, animated, bits)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place of its content and length of that for all chunks up to the last or the end of the bytes."""
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        yield kind, position + 8, length
        if kind == b"IEND":
            return
        position += 12 + length


def _check_png(content: bytes) -> None:
    view = memoryview(content)
    last = b""
    for kind, start, length in _png_chunks(content):
        last, end = kind, start + length
        if end + 4 > len(content):
            raise BadSample("truncated picture", f"a PNG cut after {len(content)} bytes")
        if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise BadSample("damaged picture", f"the checksum at byte {end} of a PNG differs")
    if last != b"IEND":
        raise BadSample("truncated picture", f"a PNG of {len(content)} bytes without its end")


def _read_webp(content: bytes) -> Picture:
    kind = content[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return Picture("webp", "RGB", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", content, 21)
        has_alpha = bool(packed >> 28 & 1)
        mode = "RGBA" if has_alpha else "RGB"
        return Picture("webp", mode, (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, has_alpha=has_alpha)
    if kind != b"VP8X":
        raise BadSample("damaged picture", f"a WEBP that begins with {bytes(kind)!r}")
    flags = content[20]
    width, height = (int.from_bytes(content[place : place + 3], "little") + 1 for place in (24, 27))
    has_alpha = bool(flags & 0x10)
    orientation = _webp_orientation(content) if flags & 0x08 else 1
    return Picture("webp", "RGBA" if has_alpha else "RGB", width, height, orientation, has_alpha, bool(flags & 0x02))


def _webp_orientation(content: bytes) -> int:
    position = 12
    while position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, position)
        if kind == b"EXIF":
            return _orientation(content[position + 8 : position + 8 + length].removeprefix(_EXIF_PREFIX))
        position += 8 + length + length % 2
    return 1


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or it cannot be read."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for place in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, place)
            if tag == _ORIENTATION and count == 1 and kind in (3, 4):
                (value,) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", exif, place + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


_READERS = {"jpg": _read_jpeg, "png": _read_png, "webp": _read_webp}
