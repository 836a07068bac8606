"""Every kind of damage is named, with the file, the samples and the members; whoever trains never gets wrong data."""

import io
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
from layouts import picture_bytes, write_tar
from PIL import Image

from mentor.data.datamodule import DataModule
from mentor.data.making.building import write_dataset
from mentor.data.making.indexing import index_dataset
from mentor.data.making.recipes import HeldOutConfig
from mentor.data.records import Record, UnusableSample
from mentor.data.settings import DataConfig
from mentor.data.storage.damage import Fault, find_flipped_bit
from mentor.data.storage.encoding import Layout
from mentor.data.storage.files import CacheSettings
from mentor.data.storage.index import Counted
from mentor.data.storage.manifest import begin, fingerprint, finish, identity, lock
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.tarsets import TarFields
from mentor.data.storage.verifying import fault_lines, verdict, verify
from mentor.data.storage.writing import Sample, write_shard
from mentor.errors import UserError

pytestmark = [pytest.mark.fault(12)]

LAYOUT = Layout(picture="jpg", masks=False, views=False)
DAMAGED = "train/000001.tar"


def make_record(number: int) -> Record:
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize((72, 64), Image.Resampling.BICUBIC))
    return Record(f"record-{number:04d}", image, (f"a caption of some length, number {number}",))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine") / "data"
    splits = ["heldout" if number % 7 == 6 else "train" for number in range(21)]
    pairs = [(split, make_record(number)) for number, split in enumerate(splits)]
    write_dataset({"name": "test"}, pairs, root, 6, LAYOUT)
    return root


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine") / "tars"
    for tar in range(3):
        members = []
        for number in range(tar * 7, tar * 7 + 7):
            record = make_record(number)
            members.append((f"{record.key}.jpg", picture_bytes(tuple(range(number, number + 3)), (60, 50))))
            members.append((f"{record.key}.json", json.dumps({"of": "no interest", "number": number}).encode()))
            members.append((f"{record.key}.txt", record.captions[0].encode()))
        write_tar(root / f"train/{tar:06d}.tar", members)
    index_dataset([str(root / "train")], TarFields(), HeldOutConfig(share=0.3), root)
    return root


@pytest.fixture(params=["records", "tars"])
def pristine(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))


class Shard:
    """A shard that can be damaged in places one can name."""

    def __init__(self, root: Path, path: str = DAMAGED) -> None:
        self.root, self.path = root, root / path
        self.content = bytearray(self.path.read_bytes())
        manifest = json.loads((root / "manifest.json").read_text())
        self.own = manifest["kind"] == "records"
        self.rows = [row for row in manifest["files"] if row["path"] == path]
        self.places = []
        for row in self.rows:
            shards = ShardSet(root, row["split"])
            shard = [one["path"] for one in manifest["files"] if one["split"] == row["split"]].index(path)
            self.places += [shards.index.place(shard, position) for position in range(row["samples"])]
        self.places.sort(key=lambda place: place.start)

    @property
    def keys(self) -> list[str]:
        return [place.key for place in self.places]

    def field(self, extension: str) -> str:
        return extension if self.own else {"jpg": "image", "txt": "words"}[extension]

    def at(self, sample: int, extension: str) -> int:
        """Where a member's content begins."""
        place = self.places[sample]
        return place.start + place.fields[self.field(extension)][0]

    def size(self, sample: int, extension: str) -> int:
        return self.places[sample].fields[self.field(extension)][1]

    def flip(self, byte: int, bit: int = 3) -> None:
        self.content[byte] ^= 1 << bit

    def fill(self, start: int, length: int) -> None:
        self.content[start : start + length] = bytes(length)

    def save(self) -> None:
        self.path.write_bytes(self.content)


def check(root: Path, **settings: object) -> list[tuple[str, str, str, str]]:
    """The faults without their details."""
    faults = verify(root, **settings)
    return [(os.path.relpath(fault.file, root), fault.kind, fault.sample, fault.member) for fault in faults]


def read_all(root: Path, **settings: object) -> tuple[dict[str, Record], dict[str, UnusableSample]]:
    """What training gets of a data set, and what it is told it cannot get."""
    good: dict[str, Record] = {}
    bad: dict[str, UnusableSample] = {}
    for split in ("train", "heldout"):
        shards = ShardSet(root, split, **settings)
        for shard, count in enumerate(shards.counts):
            for position in range(count):
                try:
                    record = shards.record(shard, position)
                    good[record.key] = record
                except UnusableSample as error:
                    bad[shards.key(shard, position)] = error
                    named = (error.key, error.shard) == (shards.key(shard, position), shards.shard_name(shard))
                    if not named or error.key not in str(error) or error.shard not in str(error):
                        pytest.fail(f"{error} does not name its sample")
    return good, bad


def assert_right(pristine: Path, good: dict[str, Record]) -> None:
    truth, _ = read_all(pristine)
    for key, record in good.items():
        assert record.captions == truth[key].captions and np.array_equal(record.image, truth[key].image)


def only(lines: Sequence[Fault]) -> Fault:
    (fault,) = lines
    return fault


def test_an_undamaged_data_set_has_no_fault(pristine: Path) -> None:
    calls: list[tuple[int, int]] = []
    assert verify(pristine, report=lambda done, total: calls.append((done, total))) == []
    assert verify(pristine, deep=True) == []
    total = sum(path.stat().st_size for path in pristine.rglob("*.tar"))
    assert calls[0] == (0, total) and calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    counts = json.loads((pristine / "manifest.json").read_text())["samples"]
    line = verdict(pristine, [])
    assert f"{len(list(pristine.rglob('*.tar')))} shards are as they were written" in line
    assert f"({counts['train']} train, {counts['heldout']} heldout samples)" in line


# --- one sample ----------------------------------------------------------------------------------------------------


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


# --- the whole file ------------------------------------------------------------------------------------------------


def cut_at(shard: Shard, length: int) -> None:
    del shard.content[length:]


CUTS: dict[str, Callable[[Shard], int]] = {
    "member border": lambda shard: shard.at(3, "jpg") - 512,
    "header": lambda shard: shard.at(3, "jpg") - 200,
    "data": lambda shard: shard.at(3, "jpg") + 300,
    "caption": lambda shard: shard.at(3, "txt") + 5,
    "end marker": lambda shard: shard.at(-1, "txt") + 512,
}


@pytest.mark.parametrize("where", CUTS)
def test_a_cut_shard_is_named_with_the_samples_that_are_gone(root: Path, pristine: Path, where: str) -> None:
    shard = Shard(root)
    length = CUTS[where](shard)
    size = len(shard.content)
    cut_at(shard, length)
    shard.save()
    lost = shard.keys[len(shard.keys) if where == "end marker" else 3 :]
    faults = verify(root)
    assert (faults[0].file, faults[0].kind, faults[0].sample) == (str(shard.path), "wrong size", "")
    assert f"{length} bytes instead of {size}" in faults[0].detail
    words = {
        "member border": "the end marker is missing",
        "header": "cut within a header",
        "data": f"cut within '{shard.keys[3]}.jpg'",
        "caption": f"cut within '{shard.keys[3]}.txt'",
        "end marker": "the end marker",
    }
    assert words[where] in faults[0].detail
    assert {fault.sample for fault in faults[1:]} == set(lost)
    assert {fault.kind for fault in faults[1:]} <= {"cut off", "damaged header"}
    refuse_and_skip(root, pristine, shard)


def refuse_and_skip(root: Path, pristine: Path, shard: Shard) -> None:
    """Training refuses a shard of another size, or goes on without it when told so."""
    for split in {row["split"] for row in shard.rows}:
        with pytest.raises(UserError, match=f"{shard.path} (has|is missing)"):
            ShardSet(root, split)
    good, bad = read_all(root, skip_bad=True)
    assert not bad and set(good) == set(read_all(pristine)[0]) - set(shard.keys)
    assert_right(pristine, good)
    config = {"root": str(root), "mixture": {"text_to_image": 1}, "batch_size": 4, "image_size": 16, "workers": 0}
    with pytest.raises(UserError, match=str(shard.path)):
        DataModule(DataConfig(**config), seed=0)
    lines: list[str] = []
    data = DataModule(DataConfig(**config, skip_bad_shards=True), seed=0, report=lines.append)
    assert any(str(shard.path) in line and "left out" in line for line in lines)
    assert not set(next(iter(data.train_dataloader())).keys) & set(shard.keys)


WHOLE: dict[str, tuple[Callable[[int], bytes], str, str]] = {
    "no bytes": (lambda size: b"", "wrong size", "0 bytes instead of"),
    "zeros": (bytes, "changed content", "nothing but zeros"),
    "few zeros": (lambda size: bytes(1024), "wrong size", "it holds no member"),
    "random bytes": (lambda size: random.Random(0).randbytes(size), "changed content", "no readable header at byte 0"),
    "other size": (lambda size: random.Random(0).randbytes(size + 7), "wrong size", "no readable header at byte 0"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_shard_of_which_nothing_is_left_is_named_on_one_line(root: Path, pristine: Path, name: str) -> None:
    shard = Shard(root)
    content, kind, words = WHOLE[name]
    shard.content = bytearray(content(len(shard.content)))
    shard.save()
    fault = only(verify(root))
    assert (fault.file, fault.kind, fault.sample) == (str(shard.path), kind, "")
    assert words in fault.detail and f"all {len(shard.keys)} samples are lost" in fault.detail
    if kind == "wrong size":
        refuse_and_skip(root, pristine, shard)
    else:
        good, bad = read_all(root)
        assert set(bad) == set(shard.keys)
        assert_right(pristine, good)


def test_a_damaged_first_header_does_not_make_the_rest_lost(root: Path) -> None:
    shard = Shard(root)
    shard.flip(5)
    shard.save()
    faults = verify(root)
    assert len(faults) == 2 - (shard.places[0].start != 512)
    assert "samples are lost" not in faults[0].detail


def test_a_shard_with_something_after_its_end_is_named(root: Path, pristine: Path) -> None:
    shard = Shard(root)
    shard.content += b"more" * 100
    shard.save()
    fault = only(verify(root))
    assert fault.kind == "wrong size" and "there is more after it" in fault.detail
    assert f"all {len(shard.keys)} samples are whole" in fault.detail
    refuse_and_skip(root, pristine, shard)


def test_a_missing_shard_is_named(root: Path, pristine: Path) -> None:
    shard = Shard(root)
    shard.path.unlink()
    fault = only(verify(root))
    assert (fault.file, fault.kind) == (str(shard.path), "missing")
    assert f"its {len(shard.keys)} samples are lost" in fault.detail
    refuse_and_skip(root, pristine, shard)


def test_a_renamed_shard_is_named_twice(root: Path, pristine: Path) -> None:
    shard = Shard(root)
    shard.path.rename(root / "train/000009.tar")
    missing, extra = verify(root)
    assert (missing.file, missing.kind) == (str(shard.path), "missing")
    assert (extra.file, extra.kind) == (str(root / "train/000009.tar"), "extra")
    assert extra.detail == f"it is {DAMAGED} under another name"
    refuse_and_skip(root, pristine, shard)


def test_shards_that_changed_their_names_are_told(root: Path, pristine: Path) -> None:
    first, second = root / "train/000000.tar", root / DAMAGED
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert check(root) == [("train/000000.tar", "renamed", "", ""), (DAMAGED, "renamed", "", "")]
    assert verify(root)[0].detail == f"its content is that of {DAMAGED}"


def test_a_folder_in_place_of_a_shard_is_named(root: Path) -> None:
    (root / DAMAGED).unlink()
    (root / DAMAGED).mkdir()
    fault = only(verify(root))
    assert (fault.file, fault.kind) == (str(root / DAMAGED), "unreadable")


# --- manifest, indexes, leftovers ----------------------------------------------------------------------------------


def change(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def test_a_damaged_manifest_is_named(root: Path) -> None:
    path = root / "manifest.json"
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\xff" * 100, b"[]", b"{}"):
        path.write_bytes(damaged)
        fault = only(verify(root))
        assert (fault.file, fault.kind) == (str(path), "damaged manifest")
        assert str(fault).count("\n") == 0


def test_a_manifest_that_contradicts_itself_is_named(root: Path) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    change(path, samples={**manifest["samples"], "train": 5})
    assert ("manifest.json", "damaged manifest", "", "") in check(root)
    files = [dict(row) for row in manifest["files"]]
    files[0]["bytes"] += 512
    change(path, samples=manifest["samples"], files=files)
    fault = only(verify(root))
    assert (fault.file, fault.kind) == (str(path), "damaged manifest")
    assert files[0]["path"] in fault.detail
    files[0] = {**manifest["files"][0], "sha256": "0" * 64}
    change(path, files=files)
    result = verify(root)
    assert [fault.kind for fault in result] == ["damaged manifest", "changed content"]
    assert "samples are whole" in result[1].detail


def test_a_manifest_of_odd_parts_is_damaged_and_never_crashes(root: Path) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    for part in ("path", "split", "sha256", "bytes", "samples"):
        for value in (None, 5, {}, ["a"], "x", "\ud800", -1):
            for rows in ("files", "indexes"):
                if part == "samples" and rows == "indexes":
                    continue
                changed = json.loads(json.dumps(manifest))
                changed[rows][0][part] = value
                path.write_text(json.dumps(changed))
                faults = verify(root)
                assert faults, (rows, part, value)
    for change_ in ({"samples": 5}, {"indexes": [5]}, {"indexes": [{}]}, {"indexes": 5}, {"base": 5}):
        path.write_text(json.dumps(manifest | change_))
        assert verify(root)[0].kind == "damaged manifest", change_


def test_a_missing_manifest_an_unfinished_build_and_no_folder_are_told_apart(root: Path) -> None:
    (root / "manifest.json").unlink()
    assert check(root) == [("manifest.json", "missing", "", "")]
    (root / "unfinished.json").write_text("{}")
    assert check(root) == [("unfinished.json", "unfinished build", "", "")]
    with pytest.raises(UserError, match="there is no folder"):
        verify(root / "none")


def test_a_damaged_index_is_named(root: Path) -> None:
    path = root / "train.index"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-20] ^= 4
    for damaged in (b"", content[:-8], bytes(flipped), bytes(len(content))):
        path.write_bytes(damaged)
        assert check(root) == [("train.index", "damaged index", "", "")]
    path.unlink()
    assert check(root) == [("train.index", "missing", "", "")]
    with pytest.raises(UserError, match=r"train\.index is missing"):
        ShardSet(root, "train")


def test_without_its_index_a_damaged_shard_is_named_all_the_same(records: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(records, tmp_path / "data"))
    shard = Shard(root)
    shard.flip(shard.at(2, "txt"))
    shard.save()
    (root / "train.index").write_bytes(b"")
    assert check(root) == [("train.index", "damaged index", "", ""), (DAMAGED, "changed content", "", "")]


def test_an_index_of_other_shards_is_named(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["indexes"][0] = {**manifest["indexes"][1], "split": "train"}
    manifest["fingerprint"] = fingerprint(manifest["files"], manifest["indexes"])
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert ("heldout.index", "index does not fit", "", "") in check(root)
    with pytest.raises(UserError, match="does not fit"):
        ShardSet(root, "train")


def test_leftovers_are_named_and_what_people_put_there_is_not(records: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(records, tmp_path / "data"))
    (root / "README.md").write_text("mine")
    (root / "train/000000.parquet").write_text("mine")
    assert verify(root) == []
    (root / "train/000007.tar.partial").write_bytes(b"x")
    (root / "manifest.json.partial").write_bytes(b"x")
    (root / ".work").mkdir()
    (root / "unfinished.json").write_text("{}")
    (root / "train/copy.tar").write_bytes(b"x")
    assert sorted(check(root)) == [
        (".work", "left over", "", ""),
        ("manifest.json.partial", "left over", "", ""),
        ("train/000007.tar.partial", "left over", "", ""),
        ("train/copy.tar", "extra", "", ""),
        ("unfinished.json", "left over", "", ""),
    ]


def test_what_lies_among_indexed_tars_is_nobodys_fault(tars: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tars, tmp_path / "data"))
    (root / "train/other.tar").write_bytes(b"x")
    (root / "train/download.tar.partial").write_bytes(b"x")
    assert verify(root) == []
    (root / "train.index.partial").write_bytes(b"x")
    assert check(root) == [("train.index.partial", "left over", "", "")]


# --- deep, elsewhere, many -----------------------------------------------------------------------------------------


def test_deep_names_what_cannot_be_decoded_though_it_is_as_written(tmp_path: Path) -> None:
    good = picture_bytes("red", (40, 40))
    scrambled = bytearray(good)
    # A table of Huffman codes that is none: the structure is whole, decoding fails.
    table = good.index(b"\xff\xc4") + 5
    scrambled[table : table + 16] = b"\xff" * 16
    members = []
    for number in range(12):
        members += [(f"{number}.jpg", bytes(scrambled) if number == 5 else good), (f"{number}.txt", b"words")]
    write_tar(tmp_path / "a.tar", members)
    index_dataset([str(tmp_path)], TarFields(), HeldOutConfig(share=0.3), tmp_path)
    assert verify(tmp_path) == []
    calls: list[tuple[int, int]] = []
    fault = only(verify(tmp_path, deep=True, report=lambda done, total: calls.append((done, total))))
    assert (fault.file, fault.kind, fault.sample) == (str(tmp_path / "a.tar"), "undecodable", "5")
    assert "damaged picture" in fault.detail or "truncated picture" in fault.detail
    assert calls[-1][0] == calls[-1][1] == (tmp_path / "a.tar").stat().st_size


def test_deep_tells_a_damaged_sample_once(root: Path) -> None:
    shard = Shard(root)
    shard.flip(shard.at(2, "jpg") + 100)
    shard.save()
    assert verify(root, deep=True) == verify(root)


def test_shards_from_elsewhere_are_checked_and_named(pristine: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(pristine, tmp_path / "data"))
    shard = Shard(root)
    key = shard.keys[2]
    shard.flip(shard.at(2, "txt"))
    shard.save()
    (root / "train/000000.tar").unlink()
    url = f"memory://verify-{tmp_path.name}-{pristine.name}"
    system = fsspec.filesystem("memory")
    for path in root.rglob("*"):
        if path.is_file():
            system.pipe(f"{url}/{path.relative_to(root)}", path.read_bytes())
    faults = verify(url, cache=CacheSettings(str(tmp_path / "cache")))
    assert [(fault.file, fault.kind, fault.sample, fault.member) for fault in faults] == [
        (f"{url}/train/000000.tar", "missing", "", ""),
        (f"{url}/{DAMAGED}", "changed content", "", ""),
        (f"{url}/{DAMAGED}", "changed content", key, "txt"),
    ]


def test_packed_codes_are_checked_like_records(tmp_path: Path) -> None:
    def array(number: int) -> bytes:
        file = io.BytesIO()
        np.save(file, np.full((4, 8, 8), number, np.uint16))
        return file.getvalue()

    what = identity({"name": "codes"}, {}, "codes", {})
    fields = ("json", "targets.npy")
    root = tmp_path / "data"
    with lock(root):
        begin(root, what)
        shards = []
        for number in range(2):
            members = [{"json": b"{}", "targets.npy": array(n)} for n in range(3)]
            if number:
                members[2]["targets.npy"] = b"no array"
            samples = [Sample(f"{number}-{n}", parts, Counted()) for n, parts in enumerate(members)]
            shards.append(write_shard(root, f"train/00000{number}.tar", "train", samples, fields))
        finish(root, what, shards)
    assert verify(root) == []
    assert check(root, deep=True) == [("train/000001.tar", "undecodable", "1-2", "")]
    place = shards[0].index.place(0, 1)
    path = root / "train/000000.tar"
    content = bytearray(path.read_bytes())
    content[place.start + place.fields["targets.npy"][0] + 200] ^= 16
    path.write_bytes(content)
    assert check(root) == [
        ("train/000000.tar", "changed content", "", ""),
        ("train/000000.tar", "changed content", "0-1", "targets.npy"),
    ]


def test_lines_begin_with_the_file_and_are_not_too_many() -> None:
    faults = [Fault("a.tar", "wrong size", "5 bytes")]
    faults += [Fault("a.tar", "cut off", "", f"key-{number}", "jpg") for number in range(50)]
    faults += [Fault("b.tar", "changed content", "line\nbreak \x1b[31m", "k\ney", "txt")]
    lines = list(fault_lines(faults, most=3))
    assert lines == [
        "a.tar: wrong size (5 bytes)",
        "a.tar: sample key-0, jpg: cut off",
        "a.tar: sample key-1, jpg: cut off",
        "a.tar: sample key-2, jpg: cut off",
        "a.tar: and 47 more",
        "b.tar: sample k\\ney, txt: changed content (line\\nbreak \\x1b[31m)",
    ]
    assert verdict("data", faults) == "data: 2 damaged files, with 51 damaged samples named"


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
