"""The index: what was put in comes out, from memory and from a mapped file; a damaged file is never believed."""

import json
import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from mentor.data.storage.index import (
    ABSENT,
    Counted,
    Index,
    Place,
    build_index,
    checksum,
    index_bytes,
    join_indexes,
    load_index,
)
from mentor.errors import UserError

FIELDS = ("jpg", "json", "txt")


def rows(first: int, count: int, tasks: tuple[str, ...] = ()) -> list[tuple[Place, Counted]]:
    found = []
    for number in range(first, first + count):
        fields = {"jpg": (0, 100 + number), "json": (1024, number)}
        if number % 2:
            fields["txt"] = (2048, 7)
        place = Place(f"schlüssel-{number}" if number % 3 else f"{number}", number * 10_000_000_000, fields, number * 7)
        found.append((place, Counted(number % 5, 2, 1, 0, tasks if number % 2 else ())))
    return found


def places(index: Index, shard: int) -> list[Place]:
    return [index.place(shard, position) for position in range(int(index.counts[shard]))]


def joined() -> Index:
    parts = [rows(0, 3, ("text",)), rows(3, 0), rows(3, 4, ("recover", "edit")), rows(7, 2, ("edit",))]
    return join_indexes([build_index(FIELDS, part) for part in parts])


def write(index: Index, path: Path) -> Path:
    path.write_bytes(index_bytes(index))
    return path


def assert_equal(first: Index, second: Index) -> None:
    assert (first.fields, first.task_names) == (second.fields, second.task_names)
    assert np.array_equal(first.counts, second.counts)
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        assert array.dtype == second.arrays[name].dtype and np.array_equal(array, second.arrays[name]), name


def test_every_place_comes_back_from_memory_and_from_a_file(tmp_path: Path) -> None:
    index = joined()
    loaded, more = load_index(write(index, tmp_path / "train.index"))
    assert more == {"version": "1"}
    assert_equal(index, loaded)
    for one in (index, loaded):
        assert one.counts.tolist() == [3, 0, 4, 2] and len(one) == 9
        assert places(one, 0) == [place for place, _ in rows(0, 3)]
        assert places(one, 2) == [place for place, _ in rows(3, 4)]
        assert one.keys(3) == ["schlüssel-7", "schlüssel-8"]
        assert one.contents.captions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    with pytest.raises(IndexError):
        index.place(1, 0)


def test_mapped_arrays_are_plain_and_read_only(tmp_path: Path) -> None:
    loaded, _ = load_index(write(joined(), tmp_path / "train.index"))
    for array in loaded.arrays.values():
        assert type(array) is np.ndarray and not array.flags.writeable


def test_what_is_kept_with_an_index_comes_back(tmp_path: Path) -> None:
    more = {"sha256": "00ff", "dropped": {"no caption": 3}}
    (tmp_path / "note").write_bytes(index_bytes(joined(), more))
    assert load_index(tmp_path / "note")[1] == {"version": "1", **more}


def test_the_same_index_gives_the_same_bytes() -> None:
    assert index_bytes(joined()) == index_bytes(joined())
    parts = [joined().only(shard) for shard in range(4)]
    assert index_bytes(join_indexes(parts)) == index_bytes(joined())


def test_one_shard_alone_and_all_but_some() -> None:
    index = joined()
    assert places(index.only(2), 0) == places(index, 2)
    assert len(index.only(1)) == 0
    rest = index.without([0, 1])
    assert rest.counts.tolist() == [4, 2]
    assert [places(rest, 0), places(rest, 1)] == [places(index, 2), places(index, 3)]
    contents = rest.contents
    assert contents.meant_for("edit").tolist() == [True] * 6
    assert contents.meant_for("recover").tolist() == [True, True, True, True, False, True]


def test_task_bits_follow_their_names_when_parts_have_other_names() -> None:
    contents = joined().contents
    assert contents.task_names == ("edit", "recover", "text")
    odd = np.array([number % 2 == 1 for number in range(9)])
    own = {"text": range(3), "recover": range(3, 7), "edit": range(3, 9)}
    for task, numbers in own.items():
        assert contents.meant_for(task).tolist() == [not odd[n] or n in numbers for n in range(9)], task
    assert contents.meant_for("segment").tolist() == (~odd).tolist()


def test_more_tasks_than_bits_are_refused() -> None:
    many = [build_index(FIELDS, rows(n, 2, tuple(f"task {n} {k}" for k in range(17)))) for n in (0, 2)]
    with pytest.raises(ValueError, match="34 tasks, 32 are possible"):
        join_indexes(many)
    with pytest.raises(ValueError, match="33 tasks"):
        build_index(FIELDS, rows(0, 2, tuple(f"task {k}" for k in range(33))))


def test_other_fields_are_not_joined() -> None:
    with pytest.raises(ValueError, match="different fields"):
        join_indexes([build_index(FIELDS, rows(0, 1)), build_index((*FIELDS, "png"), rows(0, 1))])


def test_an_index_of_nothing_is_an_index(tmp_path: Path) -> None:
    loaded, _ = load_index(write(build_index(FIELDS, []), tmp_path / "empty.index"))
    assert len(loaded) == 0 and loaded.counts.tolist() == [0]
    assert loaded.arrays["places"].shape == (0, 3, 2)


def test_counts_above_255_stay_255_and_names_that_are_not_utf8_come_back() -> None:
    place = Place(b"\xff\xfe".decode(errors="surrogateescape"), 512, {"jpg": (0, 3)}, 1)
    index = build_index(FIELDS, [(place, Counted(captions=1000))])
    assert index.contents.captions.tolist() == [255]
    assert index.place(0, 0) == place


def test_a_checksum_depends_on_bytes_and_order_but_not_on_borders() -> None:
    assert checksum([b"ab", b"c"]) == checksum([b"a", b"bc"]) != checksum([b"c", b"ab"])


def test_a_missing_index_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.index cannot be read"):
        load_index(tmp_path / "gone.index")
    with pytest.raises(UserError, match=r"cannot be read|damaged"):
        load_index(tmp_path)


def test_a_cut_index_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    content = index_bytes(joined())
    path = tmp_path / "train.index"
    for length in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"train\.index is damaged"):
            load_index(path)


def test_random_bytes_and_flipped_bits_never_crash_the_reader(tmp_path: Path) -> None:
    content = index_bytes(joined())
    path = tmp_path / "train.index"
    rng = random.Random(0)
    (header,) = struct.unpack("<Q", content[:8])
    refused = 0
    for attempt in range(400):
        damaged = bytearray(content)
        if attempt % 4 == 0:
            damaged = bytearray(rng.randbytes(rng.randrange(200)))
        for _ in range(rng.randrange(1, 4) if damaged else 0):
            # Mostly in the header, where the sense is.
            place = rng.randrange(min(len(damaged), 8 + header)) if attempt % 4 < 3 else rng.randrange(len(damaged))
            damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded, _ = load_index(path)
        except UserError as error:
            refused += str(path) in str(error)
        else:
            for shard in range(len(loaded.counts)):
                places(loaded, shard)
    assert refused > 150


def described(**changes: object) -> dict[str, str]:
    return {"mentor": json.dumps({"version": "1", "fields": list(FIELDS), "task_names": ["a", "b", "c"], **changes})}


@pytest.mark.parametrize(
    ("arrays", "metadata"),
    [
        ({}, None),
        ({}, {"mentor": "[]"}),
        ({}, {"mentor": "[" * 100_000}),
        ({}, {"mentor": '"text"'}),
        ({}, {"other": "{}"}),
        ({}, described(fields=["jpg", "json"])),
        ({}, described(fields=5)),
        ({}, described(fields=[1, 2, 3])),
        ({}, described(task_names=None)),
        ({}, described(version="2")),
        ({"keys": np.zeros(3, np.uint8)}, described()),
        ({"counts": np.array([3, 0, 4, 1])}, described()),
        ({"counts": np.array([9, 0, 1, -1])}, described()),
        ({"counts": np.array([[9]])}, described()),
        ({"starts": np.zeros(8, np.int64)}, described()),
        ({"starts": np.zeros(9, np.uint32)}, described()),
        ({"places": np.zeros((9, 3), np.uint32)}, described()),
        ({"places": np.zeros((9, 3, 2), np.int64)}, described()),
        ({"checksums": np.zeros(9, np.float32)}, described()),
        ({"extra": np.zeros(9, np.uint8)}, described()),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(
    arrays: dict[str, np.ndarray], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    index = joined()
    path = tmp_path / "train.index"
    path.write_bytes(save({**index.arrays, "counts": index.counts, **arrays}, metadata))
    with pytest.raises(UserError, match=r"train\.index is damaged"):
        load_index(path)


def test_an_index_without_an_array_is_refused(tmp_path: Path) -> None:
    index = joined()
    path = tmp_path / "train.index"
    for name in [*index.arrays, "counts"]:
        arrays = {**index.arrays, "counts": index.counts}
        del arrays[name]
        path.write_bytes(save(arrays, described()))
        with pytest.raises(UserError, match=r"train\.index is damaged"):
            load_index(path)


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.index"
    content = index_bytes(joined())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["starts"]["shape"] = [10**12]
    header["starts"]["data_offsets"] = [0, 8 * 10**12]
    claimed = json.dumps(header).encode()
    for damaged in (
        struct.pack("<Q", len(claimed)) + claimed + content[8 + length :],
        struct.pack("<Q", 2**62) + content[8:],
        struct.pack("<Q", 2**33) + content[8:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_index(path)


def test_a_million_samples_load_in_no_time_and_take_little_memory(tmp_path: Path) -> None:
    count = 1_000_000
    arrays = {
        "keys": np.tile(np.frombuffer(b"000000000", np.uint8), count),
        "key_ends": np.arange(9, 9 * count + 1, 9, dtype=np.int64),
        "starts": np.arange(count, dtype=np.int64) * 30_000,
        "places": np.full((count, 2, 2), ABSENT, np.uint32),
        "checksums": np.zeros(count, np.uint32),
        "tasks": np.zeros(count, np.uint32),
        **{name: np.ones(count, np.uint8) for name in ("captions", "objects", "masks", "views")},
    }
    path = write(Index(("image", "words"), [10_000] * 100, (), arrays), tmp_path / "train.index")
    start = time.perf_counter()
    loaded, _ = load_index(path)
    assert loaded.place(99, 9_999).start == (count - 1) * 30_000
    # 10 ms where it was measured; the goal is well under a second.
    assert time.perf_counter() - start < 0.5
    assert loaded.bytes / count == 53
