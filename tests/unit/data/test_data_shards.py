"""Shards: what is written is read back, by us and by plain webdataset; damage is named, never passed over."""

import copy
import hashlib
import json
import os
import random
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from noise import MEMBERS, RECIPE, RECORDS, assert_same, make_record, pairs

from mentor.data.making.building import write_dataset
from mentor.data.records import SCHEMA_VERSION, UnusableSample
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards") / "data"
    write_dataset(RECIPE, pairs(), root, samples_per_shard=4)
    return root


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))


def rewrite(root: Path, shard: str, change: object) -> None:
    """Put other bytes into a shard and its size into the manifest, as if it had been damaged before it was counted."""
    path = root / shard
    content = change(path.read_bytes())  # pyright: ignore[reportCallIssue]
    path.chmod(0o644)
    path.write_bytes(content)
    manifest = json.loads((root / "manifest.json").read_text())
    for row in manifest["files"]:
        if row["path"] == shard:
            row["bytes"] = len(content)
    (root / "manifest.json").write_text(json.dumps(manifest))


def test_records_are_read_at_random(pristine: Path) -> None:
    expected = {split: [record for found, record in pairs() if found == split] for split in ("train", "heldout")}
    for split, records in expected.items():
        shards = ShardSet(pristine, split)
        assert len(shards) == len(records)
        places = [(shard, position) for shard, count in enumerate(shards.counts) for position in range(count)]
        order = list(zip(places, records, strict=True))
        random.Random(0).shuffle(order)
        for (shard, position), record in order:
            assert_same(record, shards.record(shard, position))
    assert ShardSet(pristine, "train").counts == (4, 4, 1)
    with pytest.raises(IndexError):
        ShardSet(pristine, "train").record(2, 1)


def test_the_manifest_matches_the_files(pristine: Path) -> None:
    manifest = json.loads((pristine / "manifest.json").read_text())
    assert manifest["schema_version"] == SCHEMA_VERSION
    assert manifest["recipe"] == RECIPE
    assert manifest["samples"] == {"train": 9, "heldout": 2}
    on_disk = {str(path.relative_to(pristine)) for path in pristine.rglob("*") if path.is_file()}
    indexes = {"train.index", "heldout.index"}
    assert on_disk == {row["path"] for row in manifest["files"]} | {"manifest.json"} | indexes
    assert {row["path"] for row in manifest["indexes"]} == indexes
    for row in [*manifest["files"], *manifest["indexes"]]:
        content = (pristine / row["path"]).read_bytes()
        assert row["bytes"] == len(content)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
    for row in manifest["files"]:
        with tarfile.open(pristine / row["path"]) as archive:
            assert len(archive.getmembers()) == row["samples"] * len(MEMBERS)


def test_members_are_adjacent_in_one_order_without_dates(pristine: Path) -> None:
    with tarfile.open(pristine / "train/000000.tar") as archive:
        members = archive.getmembers()
    for start in range(0, len(members), len(MEMBERS)):
        group = members[start : start + len(MEMBERS)]
        assert len({member.name.partition(".")[0] for member in group}) == 1
        assert tuple(member.name.partition(".")[2] for member in group) == MEMBERS
    assert {member.mtime for member in members} == {0}


def test_plain_webdataset_reads_the_shards(pristine: Path) -> None:
    urls = [str(path) for path in sorted(pristine.glob("train/*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    expected = [record for split, record in pairs() if split == "train"]
    assert [sample["__key__"] for sample in samples] == [record.key for record in expected]
    for sample, record in zip(samples, expected, strict=True):
        assert np.array_equal(sample["png"], record.image)
        assert sample["txt"] == next(iter(record.captions), "")
        assert [thing["name"] for thing in sample["json"]["objects"]] == [thing.name for thing in record.objects]
        if record.objects:
            height = record.image.shape[0]
            masks = [thing.mask for thing in record.objects if thing.mask is not None]
            stacked = sample["masks.png"][..., 0] if sample["masks.png"].ndim == 3 else sample["masks.png"]
            assert stacked.shape[0] == height * len(masks)
            assert np.array_equal(stacked[-height:] == 255, masks[-1])
        if record.views:
            assert np.array_equal(sample["views.png"][: record.image.shape[0]], record.views[0].image)


def test_a_rerun_writes_the_same_bytes_and_other_content_another_fingerprint(pristine: Path, tmp_path: Path) -> None:
    again = write_dataset(RECIPE, pairs(), tmp_path / "again", 4)
    assert again == json.loads((pristine / "manifest.json").read_text())
    for path in pristine.rglob("*.tar"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(pristine)).read_bytes()
    changed = [
        (split, replace(record, captions=("other",)) if number == 3 else record)
        for number, (split, record) in enumerate(pairs())
    ]
    assert write_dataset(RECIPE, changed, tmp_path / "changed", 4)["fingerprint"] != again["fingerprint"]


def test_captions_come_in_order_up_to_the_limit(pristine: Path) -> None:
    shards = ShardSet(pristine, "train")
    assert shards.captions(3) == ["a thing number 0", "piñata", "a thing number 1"]
    assert len(shards.captions(10**6)) == 2 * len(shards)


def test_contents_count_what_the_records_hold(pristine: Path) -> None:
    for split in ("train", "heldout"):
        records = [record for found, record in pairs() if found == split]
        contents = ShardSet(pristine, split).contents
        assert contents.captions.tolist() == [len(record.captions) for record in records]
        assert contents.objects.tolist() == [len(record.objects) for record in records]
        assert contents.views.tolist() == [len(record.views) for record in records]
        masks = [sum(thing.mask is not None for thing in record.objects) for record in records]
        assert contents.masks.tolist() == masks
        for task in ("segment", "subject"):
            meant = [not record.tasks or task in record.tasks for record in records]
            assert contents.meant_for(task).tolist() == meant


def test_a_shard_set_works_in_forked_and_unpickled_copies(pristine: Path) -> None:
    shards = ShardSet(pristine, "train")
    first = shards.record(0, 0)
    # A spawned worker gets what `__getstate__` gives; copying goes the same way.
    assert_same(first, copy.copy(shards).record(0, 0))
    child = os.fork()
    if child == 0:
        same = np.array_equal(shards.record(0, 0).image, first.image) and len(shards.record(1, 2).captions) == 2
        os._exit(0 if same else 1)
    assert_same(first, shards.record(0, 0))
    assert os.waitpid(child, 0)[1] == 0


def test_a_shard_set_keeps_few_files_open(tmp_path: Path) -> None:
    write_dataset(RECIPE, [("train", make_record(number, 4, 0, 0)) for number in range(70)], tmp_path / "many", 1)
    shards = ShardSet(tmp_path / "many", "train")
    keys = [shards.record(shard, 0).key for shard in range(70)]
    assert keys == [f"record-{number:04d}" for number in range(70)]
    assert len(shards._files) <= 64
    assert shards.record(0, 0).key == keys[0]
    shards.close()
    assert shards.record(0, 0).key == keys[0]


def test_missing_data_names_the_folder_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shards in .*nowhere.*make_shards\.py RECIPE output=.*nowhere"):
        ShardSet(tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no manifest\.json"):
        ShardSet(tmp_path / "empty", "train")


def test_a_split_without_samples_is_refused(tmp_path: Path) -> None:
    write_dataset(RECIPE, [("train", RECORDS[0])], tmp_path / "data", 4)
    with pytest.raises(UserError, match="has no heldout samples"):
        ShardSet(tmp_path / "data", "heldout")


def test_no_records_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records"):
        write_dataset(RECIPE, [], tmp_path / "data", 4)
    with pytest.raises(UserError):
        ShardSet(tmp_path / "data", "train")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"schema_version": 2, "recipe": {}, "fingerprint": "x", "files": [{}]}', "[" * 99_999]
)
def test_a_damaged_manifest_is_refused(dataset: Path, content: str) -> None:
    (dataset / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        ShardSet(dataset, "train")


def test_another_schema_version_is_refused(dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        ShardSet(dataset, "train")


def test_a_missing_or_truncated_shard_is_named_at_once(dataset: Path) -> None:
    shard = dataset / "train/000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train/000001\.tar has \d+ bytes instead of \d+"):
        ShardSet(dataset, "train")
    shard.unlink()
    with pytest.raises(UserError, match=r"train/000001\.tar is missing"):
        ShardSet(dataset, "train")
    assert len(ShardSet(dataset, "heldout")) == 2


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/000000.tar", "train/../../other.tar"])
def test_a_manifest_that_names_files_outside_its_folder_is_refused(dataset: Path, path: str) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["files"][0]["path"] = path
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="outside its folder"):
        ShardSet(dataset, "train")


def test_bad_shards_are_left_out_if_asked(dataset: Path) -> None:
    shard = dataset / "train/000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    rest = ShardSet(dataset, "train", skip_bad=True)
    assert rest.skipped == (str(shard),)
    assert rest.counts == (4, 1) and len(rest.contents) == 5
    kept = [record for split, record in pairs() if split == "train"]
    keys = [rest.key(number, position) for number, count in enumerate(rest.counts) for position in range(count)]
    assert keys == [record.key for record in [*kept[:4], kept[8]]]
    assert_same(rest.record(1, 0), kept[8])
    for path in (dataset / "train").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="every train shard"):
        ShardSet(dataset, "train", skip_bad=True)


def test_a_missing_or_damaged_index_is_refused(dataset: Path) -> None:
    index = dataset / "train.index"
    content = index.read_bytes()
    index.unlink()
    with pytest.raises(UserError, match=r"train\.index is missing"):
        ShardSet(dataset, "train")
    index.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match=r"train\.index is damaged"):
        ShardSet(dataset, "train")
    index.write_bytes(content)
    assert len(ShardSet(dataset, "train")) == 9


def test_a_shard_that_ends_early_is_not_read_as_a_shorter_one(dataset: Path) -> None:
    rewrite(dataset, "train/000000.tar", lambda content: content[: len(content) // 4])
    with pytest.raises(UnusableSample, match=r"train/000000\.tar is damaged \(sample record-0003: truncated") as caught:
        ShardSet(dataset, "train").record(0, 3)
    assert caught.value.key == "record-0003" and caught.value.reason == "truncated shard"


@pytest.mark.parametrize("member", MEMBERS)
def test_one_flipped_bit_in_any_member_names_shard_and_key(dataset: Path, member: str) -> None:
    shards = ShardSet(dataset, "train")
    with tarfile.open(dataset / "train/000000.tar") as archive:
        found = archive.getmember(f"{shards.record(0, 2).key}.{member}")

    def flip(content: bytes) -> bytes:
        middle = found.offset_data + found.size // 2
        return content[:middle] + bytes([content[middle] ^ 0x01]) + content[middle + 1 :]

    rewrite(dataset, "train/000000.tar", flip)
    opened = ShardSet(dataset, "train")
    assert opened.record(0, 1).key == RECORDS[1].key
    with pytest.raises(UnusableSample, match=r"train/000000\.tar is damaged \(sample record-0002: checksum") as caught:
        opened.record(0, 2)
    assert caught.value.shard.endswith("train/000000.tar") and caught.value.reason == "checksum differs"


def test_a_failure_while_writing_leaves_no_shard(tmp_path: Path) -> None:
    def failing() -> object:
        yield from [("train", record) for record in RECORDS[:5]]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_dataset(RECIPE, failing(), tmp_path / "data", 4)  # pyright: ignore[reportArgumentType]
    assert [path.name for path in (tmp_path / "data").rglob("*.tar*")] == ["000000.tar"]
    broken = replace(RECORDS[1], key="a.b")
    with pytest.raises(ValueError, match="without dots"):
        write_dataset(RECIPE, [("train", RECORDS[0]), ("train", broken)], tmp_path / "other", 4)
    assert not list((tmp_path / "other").rglob("*.tar*"))


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        write_dataset(RECIPE, pairs(), tmp_path / "file/data", 4)
