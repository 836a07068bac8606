"""Decoders of text, JSON and arrays: what they read, what they refuse, and that a refusal travels."""

import io
import json
import struct
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from mentor.data.storage.decoding import BadSample, Limits, decode_array, decode_json, decode_text


def test_text_is_unicode_without_marks_and_controls() -> None:
    assert decode_text(b"\xef\xbb\xbfcafe\xcc\x81\r\nline\ttab\x00\x07\x7f\xc2\x85\rend") == "caf\u00e9\nline\ttab\nend"
    assert decode_text("👩‍🚀 שלום".encode()) == "👩‍🚀 שלום"
    with pytest.raises(BadSample, match="text not UTF-8: at byte 3"):
        decode_text(b"abc\xe9")
    assert decode_text(b"12345", Limits(text_bytes=5)) == "12345"
    with pytest.raises(BadSample, match="text too large"):
        decode_text(b"12345", Limits(text_bytes=4))


def test_json_is_read_within_limits() -> None:
    assert decode_json(b'\xef\xbb\xbf{"a": [1, NaN, -Infinity, "\\ud83d\\ude00"]}') == {"a": [1, None, None, "😀"]}
    for depth, fits in ((64, True), (65, False)):
        for start, end in (("[", "]"), ('{"a":', "}")):
            content = (start * depth + "0" + end * depth).encode()
            if fits:
                assert json.dumps(decode_json(content)).count(start[0]) == 64
            else:
                with pytest.raises(BadSample, match="damaged json: nested more than 64 deep"):
                    decode_json(content)
    beside = b"[[]," + b"[" * 63 + b"0" + b"]" * 64
    assert decode_json(beside)[0] == []
    assert len(decode_json(b"[" + b",".join([b"[]"] * 100) + b"]")) == 100
    for content in (b"[" * 100_000, b"1" * 5000, b"{", b"\xff", b"", b'"\\ud800"', b'{"a": "\\uDFFF"}'):
        with pytest.raises(BadSample, match="damaged json"):
            decode_json(content)
    with pytest.raises(BadSample, match="json too large"):
        decode_json(b"[1, 2]", Limits(text_bytes=5))


def npy(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "<i8", ">i4", "float16", "float64", "complex64"])
def test_arrays_of_numbers_come_back(dtype: str) -> None:
    for array in (
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(5),
        np.zeros((0, 4)),
    ):
        array = array.astype(dtype)
        for version in ((1, 0), (2, 0)):
            decoded = decode_array(npy(array, version=version))
            np.testing.assert_array_equal(decoded, array, strict=True)


def test_an_array_is_never_more_than_its_bytes() -> None:
    objects = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    fields = npy(np.zeros(2, [("a", "i4")]))
    whole = npy(np.arange(4, dtype="<i8"))
    for content in (objects, fields, npy(np.array(["text"])), whole[:-1], whole + b"\0", whole[:20], b""):
        with pytest.raises(BadSample, match="damaged array"):
            decode_array(content)
    head = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%s), }"
    for shape in (
        b"4000000000,",
        b"9223372036854775807, 9223372036854775807",
        b"-1, -4",
        b"0, 9223372036854775807",
        b"4.0,",
        b"4",
        b"(((",
        b"\0,",
    ):
        text = (head % shape).ljust(117) + b"\n"
        with pytest.raises(BadSample, match="damaged array"):
            decode_array(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + whole[-32:])
    with pytest.raises(BadSample, match="array too large"):
        decode_array(whole, Limits(array_bytes=len(whole) - 1))


def test_a_bad_sample_keeps_its_words_between_processes() -> None:
    error = BadSample("damaged picture", "at byte 7")
    copied = ForkingPickler.loads(ForkingPickler.dumps(error))
    assert (type(copied), copied.reason, copied.detail, str(copied)) == (
        BadSample,
        "damaged picture",
        "at byte 7",
        "damaged picture: at byte 7",
    )
    assert str(BadSample("not a picture")) == "not a picture"
