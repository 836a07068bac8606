"""Shards that are cut, gone, renamed or no shards at all are named; training refuses them or goes on without them."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from damaging import DAMAGED, Shard, assert_right, check, only, read_all

from mentor.data.datamodule import DataModule
from mentor.data.settings import DataConfig
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.verifying import verify
from mentor.errors import UserError

pytestmark = [pytest.mark.fault(12)]


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
