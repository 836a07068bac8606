"""Damaged manifests and indexes are named, and so is what an interrupted build has left."""

import json
import shutil
from pathlib import Path

import pytest
from damaging import DAMAGED, Shard, check, only

from mentor.data.storage.manifest import fingerprint
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.verifying import verify
from mentor.errors import UserError

pytestmark = [pytest.mark.fault(12)]


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
