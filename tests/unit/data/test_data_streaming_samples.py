"""Samples of unknown tars: what becomes of good and bad ones, and what hostile ones cannot do."""

import gzip
import io
import json
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image
from streams import keys, notes, picture, sample, samples, stream, tar_of, write_tar

from mentor.data.records import Dropped, Record
from mentor.errors import UserError


def test_a_record_is_the_picture_and_its_caption(tmp_path):
    url = write_tar(tmp_path / "00.tar", sample("a", 77, "  a grey square \n"))
    record = next(stream(url).records(0))
    assert isinstance(record, Record)
    assert (record.key, record.captions) == ("00-a", ("a grey square",))
    assert record.image.shape == (8, 8, 3) and (record.image == 77).all()
    assert record.attributes == {"shard": url, "shard_number": 0}


def test_keys_have_no_dots_or_slashes_and_stay_apart(tmp_path):
    odd = ["a/b", "a-b", "a", "ä", "x" * 150, "x" * 151, "a b"]
    urls = [
        write_tar(tmp_path / folder / name, samples(odd))
        for folder in ("one", "two")
        for name in ("t.tar", "t-a.v1.tar")
    ]
    found = keys(stream(urls).records(0))
    assert len(set(found)) == len(found) == len(odd) * 4
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(key) <= 100 for key in found)


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ({"text": "one"}, ("one",)),
        ({"text": ["one", " two ", ""]}, ("one", "two")),
        ({"text": 3}, "caption is no text"),
        ({"text": ["one", 2]}, "caption is no text"),
        ({"text": None}, "no caption"),
        ({"other": "one"}, "no caption"),
        (["text"], "no caption"),
        ({"text": ["  "]}, "empty caption"),
    ],
)
def test_captions_come_from_a_field_of_the_json(tmp_path, content, captions):
    members = [("a.jpg", picture(0, "JPEG")), ("a.json", json.dumps(content).encode()), *sample("b")]
    result = next(stream(write_tar(tmp_path / "a.tar", members), caption="json.text", shuffle=0).records(0))
    assert (result.captions if isinstance(result, Record) else result.reason) == captions


def test_the_preferred_picture_is_taken_wherever_it_stands(tmp_path):
    entries = [
        ("a.webp", picture(9, "WEBP")),
        ("a.PNG", picture(77)),
        ("a.jpeg", picture(200, "JPEG")),
        ("a.txt", b"x"),
    ]
    url = write_tar(tmp_path / "a.tar", entries)
    for image, colour in (("png;jpeg", 77), ("jpg;jpeg;png;webp", 200), ("webp;png", 9)):
        assert next(stream(url, image=image).records(0)).image[0, 0, 0] == pytest.approx(colour, abs=2)


def test_captions_may_be_left_out(tmp_path):
    url = write_tar(tmp_path / "a.tar", [("a.png", picture())])
    assert next(stream(url, caption="").records(0)).captions == ()


BAD = {
    "no picture": [("k.txt", b"x")],
    "no caption": [("k.png", picture())],
    "empty caption": [("k.png", picture()), ("k.txt", b" \n")],
    "text not UTF-8": [("k.png", picture()), ("k.txt", b"\xff\xfe\xfd")],
    "text too large": [("k.png", picture()), ("k.txt", b"x" * (1 << 20) + b"x")],
    "not a picture": [("k.jpg", b"<html>not found</html>"), ("k.txt", b"x")],
    "truncated picture": [("k.jpg", picture(5, "JPEG", 64)[:-40]), ("k.txt", b"x")],
    "member twice": [("k.png", picture()), ("k.png", picture()), ("k.txt", b"x")],
    "too many members": [("k.png", picture()), ("k.txt", b"x"), *((f"k.{number}", b"") for number in range(70))],
    "name too long": [(f"{'k' * 300}.png", picture()), (f"{'k' * 300}.txt", b"x")],
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_sample_is_noted_and_its_neighbours_come(tmp_path, reason):
    url = write_tar(tmp_path / "a.tar", [*sample("before"), *BAD[reason], *sample("zafter")])
    results = list(stream(url, shuffle=0).records(0))
    assert [type(result) for result in results] == [Record, Dropped, Record]
    assert results[1].reason == reason
    assert results[1].origin.startswith(f"{url}: k")


def test_of_two_samples_with_one_name_the_second_is_noted(tmp_path):
    url = write_tar(tmp_path / "a.tar", [*sample("a", 1), *sample("b"), *sample("a", 2)])
    results = list(stream(url, shuffle=0).records(0))
    assert [result.reason if isinstance(result, Dropped) else result.key for result in results] == [
        "a-a",
        "a-b",
        "duplicate key",
    ]
    assert results[0].image[0, 0, 0] == 1


def test_a_picture_and_its_text_that_stand_apart_are_two_bad_samples(tmp_path):
    url = write_tar(tmp_path / "a.tar", [("a.png", picture()), ("b.png", picture()), ("a.txt", b"x"), *sample("c")])
    assert [note.reason for note in notes(stream(url, shuffle=0).records(0))] == [
        "no caption",
        "no caption",
        "duplicate key",
    ]


def test_dotted_names_are_grouped_at_the_first_dot(tmp_path):
    entries = [("img.v1.png", picture()), ("img.v2.png", picture()), ("img.txt", b"x"), *sample("b")]
    assert [note.reason for note in notes(stream(write_tar(tmp_path / "a.tar", entries)).records(0))] == ["no picture"]


def test_above_the_rate_of_bad_samples_reading_stops_and_says_why(tmp_path):
    entries = [(f"{number}.{ending}", content) for number in range(300) for ending, content in sample("x")]
    entries = [
        (name.replace("x.", ""), b"rubbish" if name.endswith("png") and index % 20 == 0 else content)
        for index, (name, content) in enumerate(entries)
    ]
    url = write_tar(tmp_path / "a.tar", entries)
    found = Counter(type(result) for result in stream(url, shuffle=0, max_bad=0.12).records(0))
    assert found == {Record: 270, Dropped: 30}
    results = []
    with pytest.raises(
        UserError, match=r"of 1\d\d samples cannot be used \(\d+ x not a picture\), more than max_bad=0.09"
    ):
        results.extend(stream(url, shuffle=0, max_bad=0.09).records(0))
    assert len(results) == 100, "no rate is believed before"
    few = write_tar(tmp_path / "b.tar", [*sample("a"), *BAD["no caption"], *sample("z")])
    assert len(list(stream(few, max_bad=0.0).records(0))) == 3, "a rate of three samples says nothing"


def sparse(name: str) -> tuple[tarfile.TarInfo, bytes]:
    """A member of one block that claims 1 GiB."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 30)}
    return info, b"1\n0\n512\n".ljust(512, b"\0")


def link(name: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info, b""


def hostile(canary: Path) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    payload = f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()
    endings = [
        "pyd",
        "pkl",
        "pickle",
        "pth",
        "PKL",
        "pickle.gz",
        "jpg.pkl",
        "jpg.gz",
        "txt.gz",
        "json.gz",
        "npy",
        "npz",
    ]
    entries: list[Any] = [*sample("a")]
    entries += [(f"a.{ending}", gzip.compress(payload) if ending.endswith("gz") else payload) for ending in endings]
    entries += [link("a.jpg", tarfile.SYMTYPE), link("a.jpeg", tarfile.LNKTYPE), link("a.webp", tarfile.CHRTYPE)]
    entries += [
        sparse("a.jpg"),
        ("../../outside/b.png", picture()),
        ("../../outside/b.txt", b"path"),
        *sample("/outside/c"),
    ]
    return [*entries, (".jpg", payload), ("nothing", payload), ("d.jpg", payload), ("d.txt", b"pickle")]


@pytest.mark.parametrize("odd", [tarfile.SYMTYPE, tarfile.DIRTYPE])
def test_a_link_or_folder_between_the_members_of_a_sample_changes_nothing(tmp_path, odd):
    entries: list[Any] = sample("a", 77)
    url = write_tar(
        tmp_path / "a.tar", [entries[0], link("a.jpg", odd), link("b.txt", odd), entries[1], link("c", odd)]
    )
    assert [result.image[0, 0, 0] for result in stream(url).records(0)] == [77]


def test_hostile_members_are_never_read(tmp_path):
    canary = tmp_path / "canary"
    url = write_tar(tmp_path / "a.tar", hostile(canary))
    source = stream(url, shuffle=0)
    tracemalloc.start()
    results = list(source.records(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [result.reason if isinstance(result, Dropped) else result.captions[0] for result in results] == [
        "this is a",
        "path",
        "this is /outside/c",
        "not a picture",
    ]
    assert not canary.exists() and peak < 20 << 20
    assert all(set(result.key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for result in results[:3])


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("name", "reason"), [("k.jpg", "picture too large"), ("k.txt", "text too large")])
def test_a_claimed_gigabyte_is_refused_before_it_is_read(tmp_path, remote, name, reason):
    info = tarfile.TarInfo(name)
    info.size = 1 << 30
    content = tar_of(sample("a"))[: 4 * 512] + info.tobuf() + bytes(3 << 20)
    url = "memory://gigabyte/a.tar" if remote else str(tmp_path / "a.tar")
    if remote:
        fsspec.filesystem("memory").pipe("/gigabyte/a.tar", content)
    else:
        Path(url).write_bytes(content)
    source = stream(url, shuffle=0)
    list(stream(write_tar(tmp_path / "warm.tar", sample("a"))).records(0))
    tracemalloc.start()
    results = list(source.records(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [result.reason for result in notes(results)] == ["damaged tar"]
    assert peak < 12 << 20
    # With all its bytes there, it is the sample that is refused.
    limits = {"picture_bytes": 1000, "text_bytes": 100}
    entries = [*sample("a"), ("k.png", picture()), (name, b"x" * 2000), *sample("z")]
    noted = notes(stream(write_tar(tmp_path / "b.tar", entries), limits=limits).records(0))
    assert [note.reason for note in noted] == [reason]


def test_a_bomb_is_counted(tmp_path):
    file = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "PNG")
    entries = [*sample("a"), ("k.png", file.getvalue()), ("k.txt", b"x"), *sample("z")]
    assert [note.reason for note in notes(stream(write_tar(tmp_path / "a.tar", entries)).records(0))] == [
        "picture too large"
    ]
