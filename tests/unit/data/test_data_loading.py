"""What loaders do when something is wrong, and several data sets at once: counted, named, never passed over."""

import json
import multiprocessing
import os
import signal
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from webserver import serving

from mentor.data.datamodule import DataModule
from mentor.data.making.building import write_dataset
from mentor.data.records import Record, RecordObject
from mentor.data.settings import DataConfig
from mentor.errors import UserError

pytestmark = [pytest.mark.fault(13)]
SIZE = 16


def record(number: int) -> Record:
    """Keys below 1000 have an object."""
    draw = np.random.default_rng(number)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[2:10, 3:12] = True
    things = (RecordObject(f"thing {number}", mask),) if number < 1000 else ()
    return Record(f"{number:06d}", draw.integers(0, 255, (SIZE, SIZE, 3), np.uint8), (f"caption {number}",), things)


def write(folder: Path, numbers: range, heldout: range, per_shard: int = 10, make=record) -> Path:
    records = [("train", make(number)) for number in numbers] + [("heldout", make(number)) for number in heldout]
    write_dataset({"name": "test"}, records, folder, per_shard)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "data", range(40), range(100, 110))


def spoil(root: Path, shard: str, key: str, member: str = "png") -> None:
    """Flip a bit of one sample, leaving every size as it was."""
    with tarfile.open(root / shard) as archive:
        found = archive.getmember(f"{key}.{member}")
    content = bytearray((root / shard).read_bytes())
    content[found.offset_data + found.size // 2] ^= 1
    (root / shard).write_bytes(content)


def module(root: Path | None, lines: list[str] | None = None, **changes) -> DataModule:
    settings = {"root": root and str(root), "mixture": {"reconstruct": 1.0}, "batch_size": 8, "image_size": SIZE}
    settings |= {"workers": 0, "validation_batch_size": 5} | changes
    return DataModule(DataConfig(**settings), 0, [].append if lines is None else lines.append)


def keys(data: DataModule, steps: int) -> list[list[str]]:
    return [list(batch.keys) for batch in islice(data.train_dataloader(), steps)]


def flat_keys(data: DataModule, steps: int) -> list[str]:
    return list(chain.from_iterable(keys(data, steps)))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_damaged_sample_stops_the_run_and_is_named(root: Path, workers: int) -> None:
    spoil(root, "train/000002.tar", "000025")
    message = r"train/000002\.tar is damaged \(sample 000025: checksum differs.*data\.max_bad=0\.01"
    with pytest.raises(UserError, match=message) as caught:
        keys(module(root, workers=workers), 5)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tolerated_damaged_sample_is_replaced_by_the_next_and_reported(root: Path, workers: int) -> None:
    expected = flat_keys(module(root), 10)
    spoil(root, "train/000002.tar", "000025")
    lines: list[str] = []
    data = module(root, lines, workers=workers, max_bad=0.1)
    flat = flat_keys(data, 10)
    assert "000025" not in flat and len(flat) == len(expected) == 80
    place = expected.index("000025")
    assert flat[place] == expected[place + 1], "the next sample in the order stands in"
    assert [a for a, b in zip(flat, expected, strict=True) if b != "000025"] == [b for b in expected if b != "000025"]
    assert data.skipped == Counter({"checksum differs": 2}), "once in each of two epochs"
    assert len(lines) == 2 and "sample 000025" in lines[0] and "train/000002.tar" in lines[0]


def test_ranks_and_resumed_runs_leave_out_the_same_samples(root: Path) -> None:
    for number in (3, 17, 25):
        spoil(root, f"train/00000{number // 10}.tar", f"{number:06d}")
    whole = keys(module(root, max_bad=0.2), 10)
    resumed = module(root, max_bad=0.2)
    resumed.load_state_dict({**module(root, max_bad=0.2).state_dict(), "consumed": 4})
    assert keys(resumed, 6) == whole[4:]
    assert resumed.state_dict()["skipped"] == dict(resumed.skipped)


def test_too_many_unusable_samples_stop_the_run_with_their_counts(tmp_path: Path) -> None:
    root = write(tmp_path / "data", range(40), range(100, 110))
    for number in range(12):
        spoil(root, f"train/00000{number // 10}.tar", f"{number:06d}")
    with pytest.raises(
        UserError, match=r"\d+ of \d+ samples could not be used \(in all: \d+ checksum differs\).*max_bad=0\.01"
    ):
        keys(module(root, max_bad=0.01), 200)


def test_nothing_but_unusable_samples_ends_at_once(root: Path) -> None:
    for number in range(40):
        spoil(root, f"train/00000{number // 10}.tar", f"{number:06d}")
    with pytest.raises(UserError, match="100 samples in a row cannot be used"):
        keys(module(root, max_bad=0.9), 1)


def test_a_damaged_held_out_sample_is_a_row_that_does_not_count(root: Path) -> None:
    spoil(root, "heldout/000000.tar", "000104")
    with pytest.raises(UserError, match="sample 000104"):
        list(module(root).val_dataloader())
    lines: list[str] = []
    seen = []
    loader = module(root, lines, max_bad=0.1).val_dataloader()
    for _ in range(2):
        for batch in loader:
            assert len(batch.keys) == 5
            seen += [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid]
    assert sorted(seen) == sorted(2 * [f"{number:06d}" for number in range(100, 110) if number != 104])
    assert len(lines) == 1 and "000104" in lines[0]


def test_an_object_cut_away_by_the_crop_is_counted_too(tmp_path: Path) -> None:
    def edge(number: int) -> Record:
        mask = np.zeros((SIZE, 2 * SIZE), bool)
        mask[:, 0 if number % 4 == 0 else SIZE] = True
        return Record(f"{number:06d}", np.zeros((*mask.shape, 3), np.uint8), ("x",), (RecordObject("cup", mask),))

    root = write(tmp_path / "data", range(40), range(101, 104), make=edge)
    data = module(root, mixture={"segment": 1.0}, max_bad=0.5)
    assert {int(key) % 4 for key in flat_keys(data, 5)} == {1, 2, 3}
    assert set(data.skipped) == {"object not in the picture"}


def test_a_killed_loader_process_ends_the_run_with_the_shards_and_a_hint(root: Path) -> None:
    batches = iter(module(root, workers=1).train_dataloader())
    next(batches)
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"loader process died.*train/00000\d\.tar.*data\.workers") as caught:
        list(islice(batches, 20))
    assert "\n" not in str(caught.value)


def test_shards_that_are_left_out_are_reported_and_counted(root: Path) -> None:
    shard = root / "train/000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"000001\.tar has \d+ bytes.*skip_bad_shards=true"):
        module(root)
    lines: list[str] = []
    data = module(root, lines, skip_bad_shards=True)
    assert len(lines) == 1 and "000001.tar" in lines[0] and "30 train samples remain" in lines[0]
    assert data.size == 30
    seen = flat_keys(data, 15)
    assert not {f"{number:06d}" for number in range(10, 20)} & set(seen)
    assert all(count == 4 for count in Counter(seen).values()), "four whole epochs of thirty"
    before = module(write(root.parent / "whole", range(40), range(100, 110))).state_dict()
    with pytest.raises(UserError, match="skipped_shards"):
        data.load_state_dict(before)


@pytest.fixture
def two(tmp_path: Path) -> dict[str, object]:
    """With objects: 30 records; without: 50."""
    write(tmp_path / "things", range(30), range(100, 106))
    write(tmp_path / "photographs", range(1000, 1050), range(1100, 1107))
    datasets = [{"root": str(tmp_path / "things"), "weight": 3}, {"root": str(tmp_path / "photographs"), "weight": 1}]
    return {"root": None, "datasets": datasets}


def test_several_data_sets_are_mixed_by_weight_in_every_window(two: dict[str, object]) -> None:
    data = module(**two)  # pyright: ignore[reportArgumentType]
    drawn = np.array([int(key) >= 1000 for key in flat_keys(data, 400)])
    windows = np.convolve(drawn, np.ones(1000, int), "valid")
    assert set(windows.tolist()) == {250}
    assert data.size == 80 and data.usable == {"reconstruct": (80, 80)}


def test_a_task_draws_only_from_data_sets_that_can_serve_it_or_may(two: dict[str, object]) -> None:
    data = module(**two, mixture={"segment": 1.0, "reconstruct": 1.0})  # pyright: ignore[reportArgumentType]
    for batch in islice(data.train_dataloader(), 40):
        if batch.tasks[0] == "segment":
            assert all(int(key) < 1000 for key in batch.keys)
    datasets = [{**two["datasets"][0], "tasks": ["segment"]}, two["datasets"][1]]  # pyright: ignore[reportIndexIssue]
    kept = module(None, datasets=datasets, mixture={"segment": 1.0, "reconstruct": 1.0})
    assert kept.usable == {"segment": (30, 80), "reconstruct": (50, 80)}


def test_validation_sees_every_held_out_record_of_every_data_set_once(two: dict[str, object]) -> None:
    seen = []
    for batch in module(**two).val_dataloader():  # pyright: ignore[reportArgumentType]
        seen += [int(key) for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid]
    assert sorted(seen) == [*range(100, 106), *range(1100, 1107)]


def test_a_run_with_other_weights_or_data_is_not_resumed(two: dict[str, object]) -> None:
    state = module(**two).state_dict()  # pyright: ignore[reportArgumentType]
    json.dumps(state)
    first, second = two["datasets"]  # pyright: ignore[reportGeneralTypeIssues]
    with pytest.raises(UserError, match="datasets"):
        module(None, datasets=[first, {**second, "weight": 2}]).load_state_dict(state)
    with pytest.raises(UserError, match="fingerprints"):
        module(None, datasets=[first]).load_state_dict(state)


def test_captions_come_from_every_data_set(two: dict[str, object]) -> None:
    captions = module(**two).captions(10)  # pyright: ignore[reportArgumentType]
    assert len(captions) == 10
    assert {int(caption.split()[1]) >= 1000 for caption in captions} == {True, False}


@pytest.fixture
def served(root: Path) -> Iterator[str]:
    """The data set behind a web server of this machine."""
    with serving(root) as url:
        yield url


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_elsewhere_gives_the_same_batches_from_a_small_cache(
    root: Path, served: str, tmp_path: Path, workers: int
) -> None:
    largest = max(path.stat().st_size for path in root.rglob("*.tar"))
    cache = tmp_path / "cache"
    settings = {"cache_dir": str(cache), "cache_gigabytes": 2.5 * largest / 1e9, "workers": workers}
    data = DataModule(module(root).config.model_copy(update={"root": served, **settings}), 0)
    assert flat_keys(data, 12) == flat_keys(module(root), 12)
    assert sum(path.stat().st_size for path in cache.iterdir()) <= 2.5 * largest
    assert [batch.keys for batch in data.val_dataloader()] == [batch.keys for batch in module(root).val_dataloader()]


def test_a_shard_elsewhere_that_is_not_what_the_manifest_says_is_refused(
    root: Path, served: str, tmp_path: Path
) -> None:
    shard = root / "train/000001.tar"
    shard.write_bytes(shard.read_bytes()[:-100] + bytes(100))
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    data = DataModule(module(root).config.model_copy(update={"root": served, "cache_dir": str(tmp_path / "cache")}), 0)
    with pytest.raises(UserError, match=r"train/000001\.tar is not what it should be: sha256"):
        flat_keys(data, 10)
