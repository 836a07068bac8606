"""Verifying whole data sets, deeply, from elsewhere and of codes, and the lines that tell of it."""

import io
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from damaging import DAMAGED, Shard, check, only
from layouts import picture_bytes, write_tar

from mentor.data.making.indexing import index_dataset
from mentor.data.making.recipes import HeldOutConfig
from mentor.data.storage.damage import Fault
from mentor.data.storage.files import CacheSettings
from mentor.data.storage.index import Counted
from mentor.data.storage.manifest import begin, finish, identity, lock
from mentor.data.storage.tarsets import TarFields
from mentor.data.storage.verifying import fault_lines, verdict, verify
from mentor.data.storage.writing import Sample, write_shard

pytestmark = [pytest.mark.fault(12)]


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
