"""Damage within a shard is named by sample, member and byte; whoever trains never gets wrong data."""

import random
import zlib
from pathlib import Path

import pytest
from damaging import Shard, assert_right, check, only, read_all

from mentor.data.storage.damage import find_flipped_bit
from mentor.data.storage.verifying import verify

pytestmark = [pytest.mark.fault(12)]


@pytest.mark.parametrize("sample", [0, 2, -1])
@pytest.mark.parametrize("extension", ["jpg", "txt"])
@pytest.mark.parametrize("where", ["begin", "middle", "end"])
def test_a_flipped_bit_is_named_by_sample_member_and_byte(
    root: Path, pristine: Path, sample: int, extension: str, where: str
) -> None:
    shard = Shard(root)
    offset = {"begin": 0, "middle": shard.size(sample, extension) // 2, "end": shard.size(sample, extension) - 1}[where]
    byte = shard.at(sample, extension) + offset
    shard.flip(byte, bit=offset % 8)
    shard.save()
    key = shard.keys[sample]
    first, second = verify(root)
    assert (first.file, first.kind, first.sample) == (str(shard.path), "changed content", "")
    assert f"1 of {len(shard.keys)} samples are damaged" in first.detail
    assert (second.file, second.kind, second.sample) == (str(shard.path), "changed content", key)
    assert second.member == extension
    assert second.detail == f"one flipped bit in byte {byte} of the file"
    good, bad = read_all(root)
    assert list(bad) == [key] and bad[key].reason == "checksum differs"
    assert len(good) == 20
    assert_right(pristine, good)


@pytest.mark.parametrize("sample", [0, 2, -1])
@pytest.mark.parametrize("extension", ["jpg", "txt"])
@pytest.mark.parametrize("byte", [0, 130, 150, 300])
def test_a_flipped_bit_in_a_header_is_named_and_harms_no_data(
    root: Path, pristine: Path, sample: int, extension: str, byte: int
) -> None:
    shard = Shard(root)
    shard.flip(shard.at(sample, extension) - 512 + byte)
    shard.save()
    first, second = verify(root)
    assert (first.kind, first.sample) == ("changed content", "")
    assert "no readable header at byte" in first.detail
    assert (second.kind, second.sample) == ("damaged header", shard.keys[sample])
    assert second.member == shard.field(extension)
    assert f"at byte {shard.at(sample, extension) - 512}" in second.detail
    good, bad = read_all(root)
    assert not bad and len(good) == 21
    assert_right(pristine, good)


def test_every_damaged_sample_of_several_shards_is_named(root: Path, pristine: Path) -> None:
    expected = []
    for path in ("train/000000.tar", "train/000002.tar"):
        shard = Shard(root, path)
        shard.flip(shard.at(1, "txt"))
        shard.flip(shard.at(2, "jpg") - 500)
        shard.fill(shard.at(0, "jpg") + 200, 300)
        shard.save()
        found = {(path, "changed content", shard.keys[1], "txt"), (path, "changed content", "", "")}
        found |= {(path, "changed content", shard.keys[0], "jpg")}
        found |= {(path, "damaged header", shard.keys[2], shard.field("jpg"))}
        expected.append(found)
    result = check(root)
    assert {one for one in result if one[0] == "train/000000.tar"} == expected[0]
    assert {one for one in result if one[0] == "train/000002.tar"} == expected[1]
    assert len(result) == 8
    good, bad = read_all(root)
    assert len(bad) == 4 and len(good) == 17
    assert_right(pristine, good)


def test_a_hole_of_zeros_is_named_with_its_place(root: Path, pristine: Path) -> None:
    shard = Shard(root)
    hole = shard.at(2, "jpg") + 150
    length = shard.size(2, "jpg") - 170
    assert length > 300
    shard.fill(hole, length)
    shard.save()
    fault = verify(root)[1]
    assert (fault.kind, fault.sample, fault.member) == ("changed content", shard.keys[2], "jpg")
    assert "a hole of " in fault.detail
    good, bad = read_all(root)
    assert list(bad) == [shard.keys[2]] and len(good) == 20
    assert_right(pristine, good)


def test_a_hole_of_a_kibibyte_is_named_wherever_it_is(root: Path, pristine: Path) -> None:
    content = Shard(root).content
    shard = Shard(root)
    for start in range(0, len(content) - 1024, 517):
        shard.content = bytearray(content)
        shard.fill(start, 1024)
        shard.save()
        faults = verify(root)
        if shard.content == content:
            assert faults == []
            continue
        assert faults[0].file == str(shard.path) and faults[0].sample == ""
        named = {fault.sample for fault in faults} - {""}
        good, bad = read_all(root)
        assert set(bad) <= named
        assert_right(pristine, good)
        hit = set()
        for place in shard.places:
            for at, size in place.fields.values():
                for first, last in (
                    (place.start + at - 512, place.start + at),
                    (place.start + at, place.start + at + size),
                ):
                    if content[max(first, start) : min(last, start + 1024)].strip(b"\0"):
                        hit.add(place.key)
        assert named == hit


def test_damage_that_spares_all_samples_is_named_by_file(root: Path, pristine: Path) -> None:
    shard = Shard(root)
    end = shard.at(1, "txt") + shard.size(1, "txt")
    shard.flip(end + 3)
    shard.save()
    fault = only(verify(root))
    assert (fault.file, fault.kind, fault.sample) == (str(shard.path), "changed content", "")
    assert f"all {len(shard.keys)} samples are whole" in fault.detail
    good, bad = read_all(root)
    assert not bad
    assert_right(pristine, good)


def test_several_changed_bytes_without_a_mark_name_the_sample(root: Path) -> None:
    shard = Shard(root)
    shard.content[shard.at(0, "txt") : shard.at(0, "txt") + 9] = b"A CAPTION"
    shard.save()
    fault = verify(root)[1]
    assert (fault.kind, fault.sample, fault.member) == ("changed content", shard.keys[0], "")
    assert "txt" in fault.detail and "jpg" in fault.detail


def test_a_flipped_bit_is_found_by_its_checksum_alone() -> None:
    rng = random.Random(0)
    for length in (1, 2, 100, 5_000):
        content = rng.randbytes(length)
        for _ in range(20):
            byte, bit = rng.randrange(length), rng.randrange(8)
            other = bytearray(content)
            other[byte] ^= 1 << bit
            assert find_flipped_bit(length, zlib.crc32(content) ^ zlib.crc32(other)) == byte
    content = rng.randbytes(1000)
    two = bytearray(content)
    two[10] ^= 1
    two[900] ^= 1
    assert find_flipped_bit(1000, zlib.crc32(content) ^ zlib.crc32(two)) is None
