"""Unknown tars in sequence: what is promised of order and completeness, and what hostile tars cannot do."""

import gzip
import io
import json
import random
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from mentor.config import validate
from mentor.data.records import Dropped, Record
from mentor.data.storage.remote import Patience
from mentor.data.streaming import StreamConfig, TarStream
from mentor.errors import UserError

HASTY = Patience(attempts=2, pause=0.01)
SHARDS, SAMPLES = 6, 11


def picture(colour: int = 0, form: str = "PNG", side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), colour % 256, np.uint8)).save(file, form)
    return file.getvalue()


def tar_of(entries: Iterable[tuple[str, bytes] | tuple[tarfile.TarInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write_tar(path: Path, entries: Iterable[tuple[str, bytes]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(entries))
    return str(path)


def sample(key: str, colour: int = 0, caption: str = "") -> list[tuple[str, bytes]]:
    return [(f"{key}.png", picture(colour)), (f"{key}.txt", (caption or f"this is {key}").encode())]


def samples(keys: Iterable[str]) -> list[tuple[str, bytes]]:
    return [entry for key in keys for entry in sample(key)]


@pytest.fixture
def tars(tmp_path) -> Path:
    for shard in range(SHARDS):
        write_tar(tmp_path / f"{shard:03d}.tar", samples(f"{shard}_{number}" for number in range(SAMPLES)))
    return tmp_path


def stream(urls: Any, seed: int = 1, **settings: Any) -> TarStream:
    return TarStream(validate(StreamConfig, {"urls": urls, "shuffle": 20} | settings), seed, HASTY)


def keys(results: Iterable[Record | Dropped]) -> list[str]:
    found = []
    for result in results:
        assert isinstance(result, Record), result
        found.append(result.key)
    return found


def notes(results: Iterable[Record | Dropped]) -> list[Dropped]:
    return [result for result in results if isinstance(result, Dropped)]


def epoch_of(source: TarStream, epoch: int, world: int, workers: int) -> list[list[str]]:
    return [
        keys(source.records(epoch, rank, world, worker, workers))
        for rank in range(world)
        for worker in range(max(1, workers))
    ]


def expected() -> list[str]:
    return sorted(f"{shard:03d}-{shard}_{number}" for shard in range(SHARDS) for number in range(SAMPLES))


def test_a_record_is_the_picture_and_its_caption(tmp_path):
    url = write_tar(tmp_path / "00.tar", sample("a", 77, "  a grey square \n"))
    record = next(stream(url).records(0))
    assert isinstance(record, Record)
    assert (record.key, record.captions) == ("00-a", ("a grey square",))
    assert record.image.shape == (8, 8, 3) and (record.image == 77).all()
    assert record.attributes == {"shard": url, "shard_number": 0}


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("shuffle", [0, 20])
def test_every_sample_comes_once_an_epoch_over_all_ranks_and_workers(tars, world, workers, shuffle):
    parts = epoch_of(stream(f"{tars}/*.tar", shuffle=shuffle), 0, world, workers)
    assert sorted(key for part in parts for key in part) == expected()
    assert all(parts), "nobody starves"


@pytest.mark.parametrize(("shards", "consumers"), [(1, 3), (2, 5), (3, 4), (5, 5)])
def test_few_shards_are_shared_evenly(tmp_path, shards, consumers):
    for shard in range(shards):
        write_tar(tmp_path / f"{shard}.tar", samples(str(number) for number in range(60)))
    parts = epoch_of(stream(f"{tmp_path}/*.tar"), 3, 1, consumers)
    assert len({key for part in parts for key in part}) == sum(map(len, parts)) == 60 * shards
    assert min(map(len, parts)) >= 60 // -(-consumers // shards)


def test_the_order_follows_from_seed_epoch_and_layout_alone(tars):
    order = epoch_of(stream(f"{tars}/*.tar"), 2, 2, 2)
    assert epoch_of(stream(f"{tars}/*.tar"), 2, 2, 2) == order
    again = stream([f"{tars}/00{{5,1,3}}.tar", f"{tars}/*.tar"])
    epoch_of(again, 0, 1, 1)
    assert epoch_of(again, 2, 2, 2) == order
    assert epoch_of(again, 3, 2, 2) != order
    assert epoch_of(stream(f"{tars}/*.tar", seed=2), 2, 2, 2) != order


@pytest.mark.parametrize("shuffle", [0, 5])
def test_epochs_differ_in_the_order_of_shards_and_with_a_buffer_within_them(tars, shuffle):
    source = stream(f"{tars}/*.tar", shuffle=shuffle)
    orders = [keys(source.records(epoch)) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert len({tuple(dict.fromkeys(key[:3] for key in order)) for order in orders}) > 2
    within = [[key for key in order if key.startswith("003")] for order in orders]
    assert (len({tuple(order) for order in within}) == 1) == (shuffle == 0)


def test_held_out_samples_never_come_in_training_and_always_as_held_out(tars):
    source = stream(f"{tars}/*.tar", heldout_share=0.3)
    held, bad = source.heldout(1000)
    training = {key for epoch in range(2) for part in epoch_of(source, epoch, 2, 4) for key in part}
    assert not bad
    assert sorted([*keys(held), *training]) == expected()
    assert 5 < len(held) < 40
    assert keys(source.heldout(4)[0]) == keys(held)[:4] == sorted(keys(held))[:4] or len(held) < 4
    assert stream(f"{tars}/*.tar", seed=99, heldout_share=0.3).heldout(4)[0][0].key == held[0].key
    assert stream(f"{tars}/*.tar").heldout(5) == ([], [])
    assert source.heldout(0) == ([], [])


def test_who_is_held_out_depends_on_neither_place_nor_company(tars, tmp_path):
    before = set(keys(stream(f"{tars}/*.tar", heldout_share=0.3).heldout(1000)[0]))
    moved = tmp_path / "elsewhere"
    write_tar(moved / "003.tar", samples(f"3_{number}" for number in reversed(range(SAMPLES))))
    alone = set(keys(stream(f"{moved}/003.tar", heldout_share=0.3).heldout(1000)[0]))
    assert alone == {key for key in before if key.startswith("003-")} and alone


def test_the_content_of_held_out_samples_is_not_even_read(tmp_path):
    url = write_tar(tmp_path / "a.tar", [*((f"{number}.png", b"no picture") for number in range(40)), *sample("z")])
    source = stream(url, heldout_share=0.5, max_bad=1, caption="")
    held = {note.origin for note in source.heldout(1000)[1]}
    trained = {note.origin for note in notes(source.records(0))}
    assert held and trained and not held & trained
    assert len(held | trained) == 40


def test_resuming_leaves_out_whole_shards(tars):
    source = stream(f"{tars}/*.tar", shuffle=0)
    whole = [result for result in source.records(1, 0, 2) if isinstance(result, Record)]
    number = whole[15].attributes["shard_number"]
    assert number == 1
    resumed = keys(source.records(1, 0, 2, start_shard=number))
    assert resumed == [record.key for record in whole if record.attributes["shard_number"] >= 1]
    assert keys(source.records(1, 0, 2, start_shard=3)) == []


def test_remote_tars_read_like_local_ones(tars):
    system = fsspec.filesystem("memory")
    for path in tars.glob("*.tar"):
        system.pipe(f"/streaming/{path.name}", path.read_bytes())
    source = stream("memory://streaming/{000..005}.tar", heldout_share=0.2)
    local = stream(f"{tars}/*.tar", heldout_share=0.2)
    assert epoch_of(source, 1, 2, 2) == epoch_of(local, 1, 2, 2)
    assert keys(source.heldout(3)[0]) == keys(local.heldout(3)[0])


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
        "key twice",
    ]
    assert results[0].image[0, 0, 0] == 1


def test_a_picture_and_its_text_that_stand_apart_are_two_bad_samples(tmp_path):
    url = write_tar(tmp_path / "a.tar", [("a.png", picture()), ("b.png", picture()), ("a.txt", b"x"), *sample("c")])
    assert [note.reason for note in notes(stream(url, shuffle=0).records(0))] == [
        "no caption",
        "no caption",
        "key twice",
    ]


def test_dotted_names_are_grouped_at_the_first_dot(tmp_path):
    entries = [("img.v1.png", picture()), ("img.v2.png", picture()), ("img.txt", b"x"), *sample("b")]
    assert [note.reason for note in notes(stream(write_tar(tmp_path / "a.tar", entries)).records(0))] == ["no picture"]


DAMAGE = {
    "cut at a member": lambda content: content[: 8 * 512],
    "cut within a header": lambda content: content[: 8 * 512 + 99],
    "cut within content": lambda content: content[: 9 * 512 + 20],
    "flipped bit": lambda content: content[: 8 * 512] + bytes([content[8 * 512] ^ 1]) + content[8 * 512 + 1 :],
    "hole": lambda content: content[: 8 * 512] + bytes(1024) + content[8 * 512 + 1024 :],
    "nothing": lambda content: b"",
    "zeros": lambda content: bytes(len(content) + 20_000),
    "noise": lambda content: random.Random(3).randbytes(9000),
    "compressed": lambda content: gzip.compress(content),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("workers", [1, 9])
def test_a_damaged_tar_is_noted_once_and_the_others_are_read(tars, kind, workers):
    broken = tars / "003.tar"
    broken.write_bytes(DAMAGE[kind](broken.read_bytes()))
    source = stream(f"{tars}/*.tar")
    results = [result for worker in range(workers) for result in source.records(0, worker=worker, workers=workers)]
    assert [(note.reason, note.origin) for note in notes(results)] == [("damaged tar", str(broken))]
    assert notes(results)[0].detail
    found = [result.key for result in results if isinstance(result, Record)]
    intact = [key for key in expected() if not key.startswith("003")]
    assert [key for key in sorted(found) if not key.startswith("003")] == intact
    assert len(found) - len(intact) in (0, 1, 2)


def test_unreachable_tars_are_noted_and_the_others_are_read(tars):
    urls = [f"{tars}/*.tar", f"{tars}/none.tar", "memory://nowhere/a.tar", "http://127.0.0.1:9/a.tar"]
    found = notes(stream(urls).records(0))
    assert sorted((note.reason, note.origin) for note in found) == [
        ("unreadable tar", url)
        for url in sorted([f"{tars}/none.tar", "memory://nowhere/a.tar", "http://127.0.0.1:9/a.tar"])
    ]


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


def test_nothing_usable_at_all_is_an_error_not_an_endless_wait(tmp_path):
    empty = write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(UserError, match=r"no usable sample in 1 tar\(s\) such as .*empty.tar \(they hold none\)"):
        list(stream(empty).records(0))
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(b"rubbish")
    source = stream(f"{tmp_path}/[0-9].tar")
    for epoch in range(2):
        assert [note.reason for note in notes(source.records(epoch, worker=1, workers=3))] == ["damaged tar"]
    with pytest.raises(UserError, match=r"3 tar\(s\).*1 x damaged tar"):
        list(source.records(2, worker=1, workers=3))


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
    entries += [sparse("a.jpg"), ("../../etc/b.png", picture()), ("../../etc/b.txt", b"path"), *sample("/root/c")]
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
        "this is /root/c",
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


def test_memory_is_bounded_by_the_buffer():
    noise = random.Random(1)
    entries = [
        entry
        for number in range(150)
        for entry in (
            (f"{number}.webp", noise.randbytes(200_000)),
            (f"{number}.png", picture()),
            (f"{number}.txt", b"x"),
        )
    ]
    fsspec.filesystem("memory").pipe(
        "/memory/a.tar", tar_of([*entries, ("z.webp", picture(form="WEBP")), ("z.txt", b"x")])
    )
    order = [
        int(key[2:])
        for key in keys(stream("memory://memory/a.tar", image="png;webp", shuffle=30).records(0))
        if key != "a-z"
    ]
    assert order != sorted(order)
    source = stream("memory://memory/a.tar", image="webp", shuffle=10_000, shuffle_mib=2, max_bad=1)
    tracemalloc.start()
    found = Counter(type(result) for result in source.records(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {Dropped: 150, Record: 1}
    assert peak < 12 << 20


def test_the_bound_in_mib_still_shuffles(tmp_path):
    noise = random.Random(1)
    entries = [(f"{number:03d}.webp", noise.randbytes(50_000)) for number in range(80)]
    source = stream(write_tar(tmp_path / "a.tar", entries), caption="", shuffle=1000, shuffle_mib=1, max_bad=1)
    reading = source.records(0)
    order = [int(next(reading).origin[-3:]) for _ in range(80)]
    assert sorted(order) == list(range(80)) != order
    assert max(place - number for place, number in enumerate(order)) < 80
    assert all(number - place <= 21 for place, number in enumerate(order))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"urls": "pipe:x"}, "allowed are local paths"),
        ({"urls": ["a.tar", "b.tar::pipe:x"]}, "allowed are local paths"),
        ({"urls": "{a,pipe:x}"}, "allowed are local paths"),
        ({"urls": []}, "at least 1"),
        ({"urls": "a.tar", "image": "jpg;pkl"}, "'pkl' is no ending of a picture"),
        ({"urls": "a.tar", "image": ""}, "is no ending of a picture"),
        ({"urls": "a.tar", "caption": "pkl"}, "use txt, json.FIELD or nothing"),
        ({"urls": "a.tar", "caption": "json"}, "use txt, json.FIELD or nothing"),
        ({"urls": "a.tar", "heldout_share": 0.6}, "less than or equal to 0.5"),
        ({"urls": "a.tar", "shuffel": 3}, "did you mean shuffle"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        validate(StreamConfig, settings)


def test_wildcards_that_match_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file matches"):
        stream(f"{tmp_path}/*.tar")
