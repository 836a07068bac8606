"""Tars of others: what is a sample comes out with its exact bytes, what is none is counted by one reason each."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mentor.data.storage.decoding import BadSample, Limits
from mentor.data.storage.index import Place, checksum
from mentor.data.storage.tars import TarDamage
from mentor.data.storage.tarsets import (
    TarFields,
    TarIndex,
    count_repeated_keys,
    describe_tar_sample,
    index_tar,
    read_tar_sample,
    split_name,
)
from mentor.errors import UserError

pytestmark = [pytest.mark.fault(14)]

Entry = tuple[str, bytes] | tarfile.TarInfo


def jpeg(colour: int = 0, size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (colour, 128, 255 - colour)).save(file, "JPEG")
    return file.getvalue()


def tar(entries: Sequence[Entry], **settings: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **settings) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            archive.addfile(info, io.BytesIO(entry[1]))
    return file.getvalue()


def odd(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def index(content: bytes, limits: Limits | None = None, **fields: object) -> TarIndex:
    return index_tar(io.BytesIO(content), TarFields(**fields), limits or Limits(), lambda key: "train")


def found(content: bytes, limits: Limits | None = None, **fields: object) -> tuple[dict[str, Place], Mapping[str, int]]:
    """The samples by key, and what was dropped."""
    result = index(content, limits, **fields)
    train = result.indexes["train"]
    places = [train.place(0, position) for position in range(len(train))]
    assert len({place.key for place in places}) == len(places)
    return {place.key: place for place in places}, result.dropped


def parts(content: bytes, place: Place) -> dict[str, bytes]:
    members = {name: content[place.start + at :][:size] for name, (at, size) in place.fields.items()}
    assert checksum(members.values()) == place.checksum
    return members


def sample(key: str, caption: str = "a thing") -> list[Entry]:
    return [(f"{key}.jpg", jpeg()), (f"{key}.txt", caption.encode())]


def test_samples_are_found_where_they_lie_and_read_back() -> None:
    entries = [
        entry for n in range(5) for entry in [(f"{n}.cls", b"7"), (f"{n}.jpg", jpeg(n)), (f"{n}.txt", b" x%d\n" % n)]
    ]
    content = tar(entries)
    places, dropped = found(content)
    assert not dropped and list(places) == ["0", "1", "2", "3", "4"]
    for number, (key, place) in enumerate(places.items()):
        members = parts(content, place)
        assert members == {"image": jpeg(number), "words": b" x%d\n" % number}
        record = read_tar_sample(key, members, TarFields(), Limits())
        assert record.captions == (f"x{number}",) and record.image.shape == (8, 12, 3)
        assert describe_tar_sample(members["words"], TarFields(), Limits())["captions"] == [f"x{number}"]


def test_size_and_sha256_are_the_whole_files() -> None:
    import hashlib

    content = tar([*sample("a"), ("readme.md", bytes(100_000))])
    result = index(content)
    assert (result.bytes, result.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_each_sample_goes_to_the_split_of_its_key() -> None:
    content = tar([entry for n in range(6) for entry in sample(str(n))])
    result = index_tar(io.BytesIO(content), TarFields(), Limits(), lambda key: "heldout" if key in "14" else "train")
    assert result.indexes["heldout"].keys(0) == ["1", "4"]
    assert result.indexes["train"].keys(0) == ["0", "2", "3", "5"]


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("a.jpg", "a", "jpg"),
        ("folder/sub.folder/a.JPG", "folder/sub.folder/a", "jpg"),
        ("./a.seg.Png", "./a", "seg.png"),
        ("a", "", ""),
        ("a.", "", ""),
        (".jpg", "", ""),
        ("folder/._a.jpg", "", ""),
        ("__info__.json__", "", ""),
    ],
)
def test_names_are_cut_at_the_first_dot_of_the_last_part(name: str, key: str, extension: str) -> None:
    assert split_name(name) == (key, extension)


def test_keys_with_dots_and_folders_stay_apart() -> None:
    entries = [*sample("v1.0/a"), *sample("v1.0/b"), *sample("v2/a"), ("c.big.jpg", jpeg()), ("c.txt", b"c")]
    places, dropped = found(tar(entries))
    assert list(places) == ["v1.0/a", "v1.0/b", "v2/a"]
    assert dropped == {"no picture": 1}
    places, _ = found(tar(entries), image="jpg;big.jpg")
    assert list(places) == ["v1.0/a", "v1.0/b", "v2/a", "c"]


def test_extensions_may_be_in_upper_case() -> None:
    places, dropped = found(
        tar([("a.JPG", jpeg()), ("a.TXT", b"a"), ("b.Jpeg", jpeg()), ("b.txt", b"b")]), image=("JPG", "jpeg")
    )
    assert list(places) == ["a", "b"] and not dropped


def test_the_first_wanted_extension_is_the_picture() -> None:
    content = tar([("a.jpg", jpeg(1)), ("a.png", b"\x89PNG"), ("a.txt", b"a")])
    places, _ = found(content, image="jpg;png")
    assert parts(content, places["a"])["image"] == jpeg(1)
    assert found(content, image="png;jpg")[1] == {"not a picture": 1}


@pytest.mark.parametrize(
    ("entries", "kept", "dropped"),
    [
        # Keys that come twice: adjacent, apart, torn.
        ([*sample("a", "first"), *sample("a", "second"), *sample("b")], ["a", "b"], {"duplicate key": 1}),
        ([*sample("a", "first"), *sample("b"), *sample("a", "second")], ["a", "b"], {"duplicate key": 1}),
        ([("a.jpg", jpeg()), *sample("b"), ("a.txt", b"a")], ["b"], {"duplicate key": 1, "no caption": 1}),
        ([("a.jpg", jpeg()), ("a.JPG", jpeg()), ("a.txt", b"a")], [], {"duplicate key": 1, "no caption": 1}),
        # Something is missing.
        ([("a.jpg", jpeg()), *sample("b")], ["b"], {"no caption": 1}),
        ([("a.txt", b"a"), *sample("b")], ["b"], {"no picture": 1}),
        ([("a.json", b"{}"), *sample("b")], ["b"], {"no picture": 1}),
        ([("a.gif", b"GIF89a"), ("a.txt", b"a"), *sample("b")], ["b"], {"no picture": 1}),
        # Captions.
        ([*sample("a", ""), *sample("b", " \n\t "), *sample("c")], ["c"], {"empty caption": 2}),
        ([("a.jpg", jpeg()), ("a.txt", b"\xff\xfe\xfa"), *sample("b")], ["b"], {"text not UTF-8": 1}),
        ([("a.jpg", jpeg()), ("a.txt", b"x" * 10_000_000), *sample("b")], ["b"], {"caption too large": 1}),
        # Pictures.
        ([("a.jpg", jpeg()[:-10]), ("a.txt", b"a"), *sample("b")], ["b"], {"truncated picture": 1}),
        ([("a.jpg", b"<html>404</html>"), ("a.txt", b"a"), *sample("b")], ["b"], {"not a picture": 1}),
        ([("a.jpg", b""), ("a.txt", b"a"), *sample("b")], ["b"], {"not a picture": 1}),
        # Names.
        ([*sample("x" * 300), *sample("b")], ["b"], {"name too long": 1}),
        ([*sample("../../a"), *sample("x/../a"), *sample("b")], ["b"], {"name leads out of the folder": 2}),
        ([*sample("/etc/a"), *sample("b")], ["b"], {"name leads out of the folder": 1}),
        ([*sample("\udcff"), *sample("b")], ["b"], {"name not UTF-8": 1}),
        ([*sample("a"), *((f"a.x{n}", b"") for n in range(70)), *sample("b")], ["b"], {"too many members": 1}),
        # Members that are no plain files.
        ([odd("a.jpg", tarfile.SYMTYPE, "/etc/passwd"), ("a.txt", b"a")], [], {"picture is a symbolic link": 1}),
        ([("a.jpg", jpeg()), odd("a.txt", tarfile.LNKTYPE, "b.txt")], [], {"caption is a hard link": 1}),
        ([odd("a.jpg", tarfile.CHRTYPE), ("a.txt", b"a"), *sample("b")], ["b"], {"picture is a device": 1}),
        ([odd("a.jpg", tarfile.FIFOTYPE), ("a.txt", b"a"), *sample("b")], ["b"], {"picture is a pipe": 1}),
        ([*sample("a"), odd("a.sh", tarfile.SYMTYPE, "/bin/sh")], ["a"], {}),
        # What is passed over.
        ([odd("folder", tarfile.DIRTYPE), *sample("folder/a")], ["folder/a"], {}),
        ([("README", b"x"), (".hidden", b"x"), ("__meta__", b"x"), *sample("a")], ["a"], {}),
        ([], [], {}),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_counted_by_one_reason(
    entries: list[Entry], kept: list[str], dropped: dict[str, int]
) -> None:
    settings = {"errors": "surrogateescape", "encoding": "utf-8"}
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        if form == tarfile.USTAR_FORMAT and any("x" * 300 in entry[0] for entry in entries if isinstance(entry, tuple)):
            continue
        places, counted = found(tar(entries, format=form, **settings))
        assert (list(places), dict(counted)) == (kept, dropped)


def test_of_samples_with_one_key_the_first_is_read() -> None:
    content = tar([*sample("a", "first"), *sample("a", "second"), *sample("b"), *sample("a", "third")])
    places, _ = found(content)
    assert parts(content, places["a"])["words"] == b"first"


def test_pickles_and_packed_members_are_never_read(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    command = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    evil = [(f"a.{name}", command) for name in ("pkl", "pyd", "pickle", "txt.gz", "pth")]
    content = tar([*evil, *sample("a"), *evil[:1]])
    places, dropped = found(content)
    assert dropped == {"duplicate key": 1}
    assert parts(content, places["a"]) == {"image": jpeg(), "words": b"a thing"}
    assert not canary.exists()


def test_a_sparse_member_is_no_picture() -> None:
    content = bytearray(tar([("a.jpg", jpeg()), ("a.txt", b"a"), *sample("b")]))
    # An old GNU sparse file, as `tar --sparse` writes it.
    content[156:157] = b"S"
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    places, dropped = found(bytes(content))
    assert list(places) == ["b"] and dropped == {"picture is a sparse file": 1}


def test_captions_may_stand_in_json() -> None:
    def one(key: str, value: object) -> list[Entry]:
        return [(f"{key}.jpg", jpeg()), (f"{key}.json", json.dumps(value).encode())]

    entries = [
        *one("a", {"meta": {"caption": "one"}}),
        *one("b", {"meta": {"caption": ["one", " ", "two"]}}),
        *one("c", {"meta": {}}),
        *one("d", {"meta": "caption"}),
        *one("e", {"meta": {"caption": 5}}),
        *one("f", {"meta": {"caption": ["a", None]}}),
        *one("g", {"meta": {"caption": None}}),
        *one("h", ["caption"]),
        *one("i", {"meta": {"caption": []}}),
        ("j.jpg", jpeg()),
        ("j.json", b"{"),
    ]
    content = tar(entries)
    places, dropped = found(content, caption="json.meta.caption")
    fields = TarFields(caption="json.meta.caption")
    records = [read_tar_sample(key, parts(content, place), fields, Limits()) for key, place in places.items()]
    assert [record.captions for record in records] == [("one",), ("one", "two")]
    assert dropped == {"no caption": 4, "caption is no text": 2, "empty caption": 1, "damaged json": 1}
    assert index(content, caption="json.meta.caption").indexes["train"].contents.captions.tolist() == [1, 2]


def test_without_captions_pictures_alone_are_samples() -> None:
    content = tar([("a.jpg", jpeg()), ("b.jpg", jpeg()), ("b.txt", b"b"), ("c", b"c")])
    places, dropped = found(content, caption="")
    assert list(places) == ["a", "b"] and not dropped
    assert list(parts(content, places["b"])) == ["image"]
    assert read_tar_sample("b", parts(content, places["b"]), TarFields(caption=""), Limits()).captions == ()


def test_limits_are_kept() -> None:
    content = tar(sample("a"))
    assert found(content, Limits(pixels=95))[1] == {"picture too large": 1}
    assert found(content, Limits(picture_bytes=100))[1] == {"picture too large": 1}
    assert found(content, Limits(text_bytes=6))[1] == {"caption too large": 1}
    assert found(content, Limits(members=1))[1] == {"too many members": 1}
    assert found(content, Limits(name_length=4))[1] == {"name too long": 1}


def test_a_damaged_tar_is_refused() -> None:
    content = tar([entry for n in range(9) for entry in sample(str(n))])
    at = content.index(b"4.jpg")
    hole = content[:at] + bytes(1024) + content[at + 1024 :]
    flipped = content[:at] + b"5" + content[at + 1 :]
    for damaged in (content[: at - 100], content[:at], content[: at + 100], hole, flipped, content[100:], b""):
        with pytest.raises(TarDamage):
            index(damaged)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": ""},
        {"image": ".jpg"},
        {"image": "jpg;"},
        {"image": ()},
        {"image": "a/b"},
        {"caption": "json"},
        {"caption": "json."},
        {"caption": ".txt"},
        {"caption": "txt;json"},
        {"captions": "txt"},
    ],
)
def test_wrong_fields_are_refused(wrong: dict[str, object]) -> None:
    from mentor.config import validate

    with pytest.raises(UserError, match=next(iter(wrong))):
        validate(TarFields, wrong)


def test_captions_may_have_an_extension_with_dots() -> None:
    content = tar([("a.jpg", jpeg()), ("a.blip.txt", b"blip"), ("a.txt", b"alt")])
    places, _ = found(content, caption="blip.txt")
    assert parts(content, places["a"])["words"] == b"blip"


def test_a_bad_sample_is_told_when_it_is_read() -> None:
    with pytest.raises(BadSample, match="not a picture"):
        read_tar_sample("a", {"image": b"x", "words": b"a"}, TarFields(), Limits())


def test_repeated_keys_are_counted_over_all_tars() -> None:
    def one(*keys: str) -> TarIndex:
        return index(tar([entry for key in keys for entry in sample(key)]))

    def count(*tars: TarIndex) -> int:
        return count_repeated_keys([one.indexes["train"] for one in tars])

    assert count() == count(one(), one("a")) == count(one("a", "b"), one("c"), one("ab", "ba")) == 0
    assert count(one("a", "b"), one("b", "c"), one("b", "a")) == 3
    many = index(tar([("x.jpg", jpeg()), ("x.txt", b"x")]))
    assert count(*[many] * 10) == 9
    rng = np.random.default_rng(0)
    keys = sorted({"".join(map(chr, rng.integers(97, 99, rng.integers(1, 30)))) for _ in range(300)})
    assert count(one(*keys[::2]), one(*keys[1::2])) == 0
