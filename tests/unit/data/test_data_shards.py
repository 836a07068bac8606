"""Shards: what is written is read back, by us and by plain webdataset; damage is named, never passed over."""

import copy
import hashlib
import io
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
from PIL import Image

from mentor.data.making.building import write_dataset
from mentor.data.records import SCHEMA_VERSION, Record, RecordObject, UnusableSample, View
from mentor.data.storage.decoding import BadSample
from mentor.data.storage.encoding import Layout, decode_record, encode_members, encode_record
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError

RECIPE = {"name": "test", "size": 16}
MEMBERS = ("json", "masks.png", "png", "txt", "viewmasks.png", "views.png")


def make_record(number: int, size: int = 16, objects: int = 1, views: int = 2) -> Record:
    """A record of noise; of several objects or views every second has no mask."""
    rng = np.random.default_rng(number)

    def image() -> np.ndarray:
        return rng.integers(0, 256, (size, size + 4, 3), dtype=np.uint8)

    def mask() -> np.ndarray:
        return rng.random((size, size + 4)) < 0.5

    return Record(
        key=f"record-{number:04d}",
        image=image(),
        captions=(f"a thing number {number}", "piñata"),
        objects=tuple(
            RecordObject(f"thing {i}", mask() if i % 2 == 0 else None, f"thing {i} at the left", {"place": i})
            for i in range(objects)
        ),
        views=tuple(View(image(), mask() if i % 2 else None, {"turn": i}) for i in range(views)),
        subject="thing 0" if objects else "",
        attributes={"kind": "scene", "background": {"kind": "plain", "colour": "red"}},
    )


def assert_same(first: Record, second: Record) -> None:
    assert (first.key, first.captions, first.subject) == (second.key, second.captions, second.subject)
    assert first.tasks == second.tasks
    assert first.attributes == second.attributes
    assert np.array_equal(first.image, second.image)
    assert len(first.objects) == len(second.objects)
    assert len(first.views) == len(second.views)
    for one, other in zip(first.objects, second.objects, strict=True):
        assert (one.name, one.phrase, one.attributes) == (other.name, other.phrase, other.attributes)
        assert_same_mask(one.mask, other.mask)
    for one, other in zip(first.views, second.views, strict=True):
        assert one.attributes == other.attributes
        assert np.array_equal(one.image, other.image)
        assert_same_mask(one.mask, other.mask)


def assert_same_mask(first: np.ndarray | None, second: np.ndarray | None) -> None:
    assert (first is None) == (second is None)
    assert first is None or second is None or (second.dtype == np.bool_ and np.array_equal(first, second))


RECORDS = [make_record(number, objects=number % 3, views=number % 4) for number in range(11)]
RECORDS[4] = replace(RECORDS[4], captions=(), tasks=("segment",))


def pairs() -> list[tuple[str, Record]]:
    return [("heldout" if number % 5 == 4 else "train", record) for number, record in enumerate(RECORDS)]


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


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_a_record_survives_encoding(number: int) -> None:
    members = encode_record(RECORDS[number], Layout())
    assert tuple(members) == MEMBERS
    assert_same(RECORDS[number], decode_record(RECORDS[number].key, members))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "a.b"}, "without dots"),
        ({"image": np.zeros((4, 4), np.uint8)}, "y x 3"),
        ({"objects": (RecordObject("x", np.zeros((3, 3), bool)),)}, "every mask"),
        ({"views": (View(np.zeros((3, 3, 3), np.uint8), np.zeros((4, 4), bool)),)}, "one size"),
    ],
)
def test_records_that_break_the_schema_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_record(replace(RECORDS[1], **change), Layout())


@pytest.mark.parametrize("picture", ["jpg", "webp"])
def test_a_layout_of_another_format_keeps_pictures_closely_and_masks_exactly(picture: str) -> None:
    smooth = np.broadcast_to(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (16, 20, 3))
    record = replace(RECORDS[5], image=smooth, views=(View(smooth, None), View(smooth, RECORDS[5].objects[0].mask)))
    layout = Layout(picture=picture, quality=95)
    members = encode_record(record, layout)
    assert tuple(members) == layout.members == tuple(sorted(layout.members))
    assert set(layout.members) == {"json", "txt", picture, "masks.png", "viewmasks.png", "views.jpg"}
    back = decode_record(record.key, members)
    assert np.abs(back.image.astype(int) - smooth).max() < 8
    assert_same_mask(back.objects[0].mask, record.objects[0].mask)
    assert back.views[0].mask is None and np.abs(back.views[1].image.astype(int) - smooth).max() < 8
    assert_same_mask(back.views[1].mask, record.objects[0].mask)


def test_a_layout_without_masks_and_views_has_three_members_and_refuses_either() -> None:
    layout = Layout(masks=False, views=False)
    assert tuple(encode_record(RECORDS[0], layout)) == layout.members == ("json", "png", "txt")
    assert_same(RECORDS[0], decode_record(RECORDS[0].key, encode_record(RECORDS[0], layout)))
    for record in (RECORDS[1], replace(RECORDS[0], views=RECORDS[1].views)):
        with pytest.raises(ValueError, match="no members"):
            encode_record(record, layout)


def test_a_picture_that_is_encoded_already_is_kept_to_the_byte() -> None:
    file = io.BytesIO()
    Image.fromarray(RECORDS[1].image).save(file, "JPEG", quality=80)
    members = encode_members(RECORDS[1], file.getvalue(), Layout(picture="jpg"))
    assert members["jpg"] == file.getvalue()


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


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("json", b"{"),
        ("json", b"[" * 50_000),
        ("json", b'{"captions": []}'),
        ("png", b"GIF89a"),
        ("masks.png", b""),
        ("views.png", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_a_damaged_member_is_a_bad_sample_that_names_it(member: str, content: bytes) -> None:
    members = {**encode_record(RECORDS[5], Layout()), member: content}
    with pytest.raises(BadSample, match=member.partition(".")[0]):
        decode_record("x", members)


def test_masks_of_another_size_are_refused() -> None:
    members = encode_record(RECORDS[1], Layout())
    file = io.BytesIO()
    Image.new("L", (3, 3)).save(file, "PNG")
    with pytest.raises(ValueError, match=r"masks\.png does not fit"):
        decode_record("x", {**members, "masks.png": file.getvalue()})


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
