"""Data sets of image codes: every example whole and in its place, damage and what does not fit named."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from codepacks import LAYOUT, TASKS, batches, check_content, module, same, write

from mentor.data.codes import CodeSet, gather, samples_of
from mentor.data.collate import pack, to_device, unpack
from mentor.data.making.building import write_dataset
from mentor.data.order import Sample
from mentor.data.records import Record, UnusableSample
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("codes") / "codes")


@pytest.mark.parametrize("changes", [{}, {"feature_width": 5}], ids=["ids", "features"])
def test_batches_hold_the_examples_that_their_keys_name(tmp_path: Path, changes: dict[str, int]) -> None:
    data = module(write(tmp_path / "codes", LAYOUT.model_copy(update=changes)))
    seen = set()
    for batch in batches(data, 30):
        check_content(batch)
        seen.add(batch.tasks[0])
        assert batch.targets.shape == (8, 3, 0, 0)
        assert batch.focus.shape == (8, *LAYOUT.grid)
    assert seen == set(TASKS)
    for batch in data.val_dataloader():
        check_content(batch)


def test_samples_that_alternate_between_sets_and_packs_keep_their_order(root: Path, tmp_path: Path) -> None:
    other = CodeSet(write(tmp_path / "other", train=1), "train")
    visits = [Sample(0, 2, 3, 0), Sample(0, 0, 4, 1), Sample(0, 2, 1, 0), Sample(0, 4, 3, 0), Sample(0, 0, 4, 1)]
    batch = gather([CodeSet(root, "train"), other], "reconstruct", samples_of(visits))
    assert [int(key) for key in batch.keys] == [13, 4, 11, 23, 4]
    check_content(batch)


def test_an_epoch_visits_every_example_of_a_task_once(root: Path) -> None:
    data = module(root, mixture={"reconstruct": 1.0}, batch_size=10)
    keys = [key for batch in batches(data, 6) for key in batch.keys]
    assert sorted(map(int, keys)) == list(range(60))
    assert data.usable == {"reconstruct": (60, 120)}


def test_ranks_and_workers_change_nothing(root: Path) -> None:
    alone = batches(module(root), 20)
    assert all(map(same, alone, batches(module(root, workers=2), 20)))
    first, second = (batches(module(root, rank=rank, world=2), 20) for rank in range(2))
    for whole, left, right in zip(alone, first, second, strict=True):
        assert list(whole.keys) == [key for pair in zip(left.keys, right.keys, strict=True) for key in pair]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_goes_on_with_the_next_batch(root: Path, workers: int) -> None:
    whole = batches(module(root), 15)
    interrupted = module(root, workers=workers)
    assert all(map(same, batches(interrupted, 6), whole))
    resumed = module(root, workers=workers)
    resumed.load_state_dict(interrupted.state_dict())
    assert all(map(same, batches(resumed, 9), whole[6:]))


def test_validation_sees_each_heldout_example_once(root: Path) -> None:
    seen = [
        (batch.tasks[row], key)
        for rank in range(2)
        for batch in module(root, rank=rank, world=2).val_dataloader()
        for row, key in enumerate(batch.keys)
        if batch.valid[row]
    ]
    assert sorted(seen) == sorted((task, f"{number:06d}") for task in TASKS for number in range(300, 320))


def test_few_packs_in_memory_give_the_same_batches(root: Path) -> None:
    visits = samples_of([Sample(0, 2 * (i % 6), i % 10) for i in range(60)])
    one = gather([CodeSet(root, "train", room=1)], "reconstruct", visits)
    assert same(one, gather([CodeSet(root, "train")], "reconstruct", visits))
    code_set = CodeSet(root, "train", room=2)
    gather([code_set], "reconstruct", visits)
    assert sum(map(len, code_set._kept.values())) == 2


def test_captions_are_those_of_the_records(root: Path) -> None:
    found = CodeSet(root, "train").captions(25)
    assert found == [f"caption {number}" for number in [*range(10), *range(10), *range(10, 15)]]
    assert module(root).captions(3) == found[:3]


def spoil(root: Path, shard: str, member: str) -> None:
    with tarfile.open(root / shard) as archive:
        found = archive.getmember(member)
    content = bytearray((root / shard).read_bytes())
    content[found.offset_data + found.size - 1] ^= 1
    (root / shard).write_bytes(content)


def test_a_damaged_pack_stops_the_run_and_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "codes")
    spoil(root, "train/000001.tar", "train-0002-reconstruct.targets.npy")
    message = r"train/000001\.tar is damaged \(sample train-0002-reconstruct: checksum differs.*make_shards\.py codes"
    with pytest.raises(UserError, match=message):
        batches(module(root), 30)
    with pytest.raises(UnusableSample, match=message) as caught:
        CodeSet(root, "train").pack(2)
    assert caught.value.reason == "checksum differs"


@pytest.mark.parametrize("workers", [0, 2])
def test_tolerated_damage_is_counted_and_the_next_examples_take_the_places(tmp_path: Path, workers: int) -> None:
    root = write(tmp_path / "codes")
    expected = batches(module(root, mixture={"reconstruct": 1.0}), 7)
    spoil(root, "train/000001.tar", "train-0002-reconstruct.json")
    lines: list[str] = []
    data = module(root, lines, mixture={"reconstruct": 1.0}, workers=workers, max_bad=0.5)
    found = batches(data, 7)
    lost = {f"{number:06d}" for number in range(10, 20)}
    for batch, whole in zip(found, expected, strict=True):
        check_content(batch)
        assert not lost & set(batch.keys)
        kept = [(row, key) for row, key in enumerate(whole.keys) if key not in lost]
        assert [(row, batch.keys[row]) for row, _ in kept] == kept
    assert data.skipped["checksum differs"] >= 8
    assert "train-0002-reconstruct" in lines[0] and "train/000001.tar" in lines[0]


def test_damaged_heldout_packs_do_not_count_and_are_reported_once(tmp_path: Path) -> None:
    root = write(tmp_path / "codes")
    spoil(root, "heldout/000000.tar", "heldout-0000-reconstruct.focus.npy")
    lines: list[str] = []
    data = module(root, lines, mixture={"reconstruct": 1.0}, max_bad=0.1)
    loader = data.val_dataloader()
    for _ in range(2):
        valid = [key for batch in loader for row, key in enumerate(batch.keys) if batch.valid[row]]
        assert sorted(map(int, valid)) == list(range(310, 320))
    assert len(lines) == 1 and "heldout-0000-reconstruct" in lines[0]
    with pytest.raises(UserError, match=r"checksum differs.*max_bad"):
        list(module(root, mixture={"reconstruct": 1.0}).val_dataloader())


@pytest.mark.parametrize("changes", [{"grid": [2, 4]}, {"feature_width": 3}, {"grid": "x"}, {"unknown": 1}])
def test_a_manifest_that_does_not_fit_its_index_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    root = write(tmp_path / "codes")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["layout"] |= changes
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"damaged.*make_shards\.py codes"):
        CodeSet(root, "train")


def test_missing_shards_are_refused_or_left_out_and_reported(tmp_path: Path) -> None:
    root = write(tmp_path / "codes")
    (root / "train/000001.tar").unlink()
    with pytest.raises(UserError, match=r"train/000001\.tar is missing.*make_shards\.py codes"):
        module(root)
    lines: list[str] = []
    data = module(root, lines, skip_bad_shards=True)
    assert data.size == 100
    assert "train/000001.tar" in lines[0]
    for batch in batches(data, 20):
        check_content(batch)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "data"
    records = [Record(f"{i:06d}", np.zeros((16, 16, 3), np.uint8), (f"caption {i}",)) for i in range(20)]
    write_dataset(
        {"name": "test"}, [("heldout" if i % 4 == 0 else "train", r) for i, r in enumerate(records)], folder, 5
    )
    return folder


def test_codes_and_pictures_are_not_taken_for_one_another(root: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match="holds image codes, not pictures"):
        ShardSet(root, "train")
    with pytest.raises(UserError, match=r"holds pictures, not image codes.*make_shards\.py codes"):
        CodeSet(pictures, "train")
    with pytest.raises(UserError, match="cannot be mixed") as caught:
        module(None, datasets=[{"root": str(root)}, {"root": str(pictures)}])
    assert str(root) in str(caught.value) and str(pictures) in str(caught.value)


def test_codes_of_two_image_tokenizers_are_not_mixed(root: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", LAYOUT.model_copy(update={"tokenizer": "fedcba9876543210"}))
    with pytest.raises(UserError, match=r"tokenizer 0123456789abcdef.*fedcba9876543210"):
        module(None, datasets=[{"root": str(root)}, {"root": str(other)}])
    alike = write(tmp_path / "alike", train=2)
    for batch in batches(module(None, datasets=[{"root": str(root)}, {"root": str(alike)}]), 10):
        check_content(batch)


def test_settings_that_the_codes_were_not_made_with_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.image_size is 64.*made with 16.*data\.image_size=16"):
        module(root, image_size=64)
    with pytest.raises(UserError, match=r"data\.image_only is 0\.3"):
        module(root, image_only=0.3)
    module(root, image_only=0.3, mixture={"text_to_image": 1.0})
    module(root, recover_distort=0.9)
    with pytest.raises(UserError, match=r"no train codes of the task 'segment'.*--tasks segment"):
        module(root, mixture={"segment": 1.0})


def test_a_batch_of_codes_can_be_packed_moved_and_cut(root: Path) -> None:
    batch = next(b for b in batches(module(root), 9) if b.tasks[0] == "reconstruct")
    assert same(unpack(pack(batch)), batch)
    assert same(to_device(batch, torch.device("cpu")), batch)
    assert to_device(batch, torch.device("meta")).codes.target_ids.device.type == "meta"
    cut = batch.first(3)
    assert len(cut.keys) == len(cut.codes.target_ids) == len(cut.codes.reference_ids) == 3
    check_content(cut)
