"""Unknown tars in sequence: what is promised of order, completeness and memory, whatever is damaged."""

import gzip
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from streams import keys, notes, picture, sample, samples, stream, tar_of, write_tar

from mentor.config import validate
from mentor.data.records import Dropped, Record
from mentor.data.streaming import StreamConfig, TarStream
from mentor.errors import UserError

SHARDS, SAMPLES = 6, 11


@pytest.fixture
def tars(tmp_path) -> Path:
    for shard in range(SHARDS):
        write_tar(tmp_path / f"{shard:03d}.tar", samples(f"{shard}_{number}" for number in range(SAMPLES)))
    return tmp_path


def epoch_of(source: TarStream, epoch: int, world: int, workers: int) -> list[list[str]]:
    return [
        keys(source.records(epoch, rank, world, worker, workers))
        for rank in range(world)
        for worker in range(max(1, workers))
    ]


def expected() -> list[str]:
    return sorted(f"{shard:03d}-{shard}_{number}" for shard in range(SHARDS) for number in range(SAMPLES))


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
