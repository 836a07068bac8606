"""The source of existing tars: img2dataset's layout, field maps, halves and doubles, damage."""

import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from layouts import captions, outcomes, picture_bytes, source, write_tar

from mentor.data.sources import describe_inputs
from mentor.data.sources.tar_files import TarBlob, split_name
from mentor.errors import UserError

RED = picture_bytes()


def sample(key: str, text: str = "words", **json_fields: Any) -> list[tuple[str, bytes]]:
    words = {"caption": f"json of {key}", "url": f"http://example.org/{key}", **json_fields}
    return [(f"{key}.jpg", RED), (f"{key}.json", json.dumps(words).encode()), (f"{key}.txt", text.encode())]


def read(folder: Path, **settings: Any) -> tuple[dict, dict]:
    return outcomes(folder, kind="tars", **{"paths": "*.tar", **settings})


def test_img2datasets_shards_as_they_are(tmp_path: Path) -> None:
    write_tar(tmp_path / "out/00001.tar", sample("000010001", " two "))
    write_tar(tmp_path / "out/00000.tar", [*sample("000000007", "one"), *sample("000000003", "")])
    (tmp_path / "out/00000_stats.json").write_text("{}")
    (tmp_path / "out/00001_stats.json").write_text("{}")
    write_tar(tmp_path / "out/00002.tar", sample("000020000"))
    items, dropped = read(tmp_path, paths="out", keep=["url", "absent"])
    assert captions(items) == {
        "00000.tar/000000007": ["one"],
        "00000.tar/000000003": [],
        "00001.tar/000010001": ["two"],
    }
    assert dropped == {"00002.tar": "unfinished shard"}
    item = items["00001.tar/000010001"]
    assert item.picture.read() == RED
    assert item.attributes == {"shard": "00001.tar", "key": "000010001", "url": "http://example.org/000010001"}


def test_fields_are_mapped(tmp_path: Path) -> None:
    tar = [("a/x.v1.PNG", b"png"), ("a/x.caption", b"\xef\xbb\xbfby ending"), *sample("b", "", more=["p", " q"])]
    write_tar(tmp_path / "x.tar", tar)
    items, _ = read(tmp_path, image="v1.png;jpg", caption="caption;json.more")
    assert captions(items) == {"x.tar/a/x": ["by ending"], "x.tar/b": ["p", "q"]}
    assert items["x.tar/a/x"].picture.read() == b"png"
    assert captions(read(tmp_path, caption="")[0]) == {"x.tar/b": []}
    with pytest.raises(UserError, match="endings without their dots"):
        read(tmp_path, image=".jpg; png")


def test_keys_are_split_as_webdataset_does() -> None:
    names = {"a.jpg": ("a", "jpg"), "d.x/a.b.JPG": ("d.x/a", "b.jpg"), "noending": ("", ""), "d/.hidden": ("", "")}
    assert {name: split_name(name) for name in names} == names


def test_double_keys_and_halves_never_become_samples(tmp_path: Path) -> None:
    halves = [("a.jpg", RED), ("b.jpg", RED), ("a.txt", b"x"), ("b.txt", b"y")]
    double = [*sample("c", "first"), *sample("d"), *sample("c", "again"), *sample("e"), *sample("e")]
    write_tar(tmp_path / "x.tar", [*halves, *double, ("f.txt", b"alone"), ("img.v1.jpg", RED), ("img.v2.jpg", RED)])
    items, dropped = read(tmp_path)
    assert captions(items) == {"x.tar/c": ["first"], "x.tar/d": ["words"], "x.tar/e": ["words"]}
    assert dropped == {
        "x.tar/a (1)": "members of a sample are apart",
        "x.tar/b (1)": "members of a sample are apart",
        "x.tar/a (2)": "members of a sample are apart",
        "x.tar/b (2)": "members of a sample are apart",
        "x.tar/c (2)": "duplicate key",
        "x.tar/e (2)": "duplicate key",
        "x.tar/f": "no picture",
        "x.tar/img": "no picture",
    }


def test_texts_that_cannot_be_read_cost_their_sample_alone(tmp_path: Path) -> None:
    broken = [("j.jpg", RED), ("j.json", b"[" * 100_000), ("n.jpg", RED), ("n.json", b'{"caption": 3}')]
    latin = [("u.jpg", RED), ("u.txt", b"caf\xe9"), ("l.jpg", RED), ("l.txt", b"x" * (2 << 20))]
    write_tar(tmp_path / "x.tar", [*latin, *broken, *sample("good", "")])
    items, dropped = read(tmp_path, caption="txt;json.caption")
    assert captions(items) == {"x.tar/good": ["json of good"]}
    assert dropped == {
        "x.tar/u": "caption is not UTF-8",
        "x.tar/l": "text too large",
        "x.tar/j": "damaged json",
        "x.tar/n": "damaged json",
    }


def test_a_text_that_is_too_large_is_never_in_memory(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("l.jpg", RED), ("l.txt", bytes(32 << 20))])
    tracemalloc.start()
    try:
        assert read(tmp_path)[1] == {"x.tar/l": "text too large"}
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_links_in_a_tar_are_reported_and_never_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert read(tmp_path) == ({}, {"x.tar/a.jpg": "not a plain file"})


def test_a_damaged_tar_is_named_or_left_out_when_asked(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", sample("a"))
    whole = write_tar(tmp_path / "b.tar", [*sample("b"), *sample("c")]).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:3000])
    with pytest.raises(UserError, match=r"b\.tar is damaged: cut within.*skip_damaged"):
        read(tmp_path)
    items, dropped = read(tmp_path, skip_damaged=True)
    assert list(items) == ["a.tar/a"]
    assert dropped == {"b.tar": "damaged tar"}


def test_only_local_tars_that_exist(tmp_path: Path) -> None:
    for path in ("pipe:cat x", "http://example.org/x.tar", "s3://b/x.tar", "a.tar::pipe:cat", "PIPE:x"):
        with pytest.raises(UserError, match="no local path"):
            read(tmp_path, paths=path)
    with pytest.raises(UserError, match=r"no tar matches gone/\*\.tar: looked for"):
        read(tmp_path, paths="gone/*.tar")


def test_several_places_each_sorted_and_each_tar_once(tmp_path: Path) -> None:
    for name in ("a/1.tar", "a/0.tar", "b/0.tar", "odd [1].tar"):
        write_tar(tmp_path / name, sample("k"))
    items, _ = read(tmp_path, paths=["b/*.tar", "a", "a/0.tar", "odd [1].tar"])
    assert list(items) == ["b/0.tar/k", "a/0.tar/k", "a/1.tar/k", "odd [1].tar/k"]
    described = describe_inputs(source(kind="tars", paths=["a", "b"]), tmp_path)
    assert described == {f"{name}.tar": "10240 bytes" for name in ("a/0", "a/1", "b/0")}


def test_a_tar_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"1234")
    assert TarBlob(tmp_path / "x.tar", 1, 3).read() == b"234"
    with pytest.raises(OSError, match="ends within"):
        TarBlob(tmp_path / "x.tar", 2, 3).read()
