"""Training from tars that nobody has indexed: batches like those of a data set, with the promises that remain."""

import io
import tarfile
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from mentor.config import validate
from mentor.data.settings import DataConfig
from mentor.data.streammodule import StreamModule, open_data
from mentor.errors import UserError
from mentor.types import Batch


def write_tar(path: Path, numbers: range, broken: tuple[int, ...] = ()) -> None:
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            file = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            picture = b"<html>" if number in broken else file.getvalue()
            for name, content in (("png", picture), ("txt", f"caption {number}".encode())):
                info = tarfile.TarInfo(f"{number:05d}.{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for shard in range(4):
        write_tar(tmp_path / f"{shard}.tar", range(50 * shard, 50 * shard + 50))
    return tmp_path


def module(tars: Path, rank: int = 0, world: int = 1, lines: list[str] | None = None, **changes) -> StreamModule:
    stream = {"urls": f"{tars}/*.tar", "heldout_share": 0.1, "shuffle": 20, **changes.pop("stream", {})}
    settings = {"root": None, "stream": stream, "mixture": {"text_to_image": 1.0, "reconstruct": 1.0}, "batch_size": 8}
    settings |= {"image_size": 16, "workers": 0, "validation_batch_size": 8}
    data = open_data(validate(DataConfig, settings | changes), 0, [].append if lines is None else lines.append)
    assert isinstance(data, StreamModule)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
    return data


def keys(data: StreamModule, steps: int) -> list[str]:
    return list(chain.from_iterable(batch.keys for batch in islice(data.train_dataloader(), steps)))


def heldout(data: StreamModule) -> set[str]:
    return {key for batch in data.val_dataloader() for key in batch.keys}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_one_task_and_every_sample_once_in_a_pass(tars: Path, workers: int) -> None:
    data = module(tars, workers=workers)
    apart = heldout(data)
    count = 200 - len(apart)
    batches = list(islice(data.train_dataloader(), count // 8))
    assert all(len(set(batch.tasks)) == 1 and batch.targets.shape == (8, 3, 16, 16) for batch in batches)
    assert Counter(batch.tasks[0] for batch in batches).keys() == {"text_to_image", "reconstruct"}
    seen = Counter(key for batch in batches for key in batch.keys)
    # Workers are dealt shards of different sizes, so that one may begin its next pass before the other is through.
    assert max(seen.values()) <= (1 if workers == 0 else 2)
    assert not apart & seen.keys()
    assert len(seen) > 0.8 * count


def test_ranks_read_different_samples_and_equally_many(tars: Path) -> None:
    first, second = (keys(module(tars, rank, 2), 8) for rank in range(2))
    assert len(first) == len(second) == 32
    assert not set(first) & set(second)
    with pytest.raises(UserError, match=r"batch_size 8 .*3 processes"):
        module(tars, 0, 3).train_dataloader()


@pytest.mark.parametrize("world", [1, 2])
def test_validation_has_every_held_out_sample_once_for_each_task(tars: Path, world: int) -> None:
    loaders = [module(tars, rank, world).val_dataloader() for rank in range(world)]
    assert len({len(batches) for batches in loaders}) == 1
    counted = Counter(
        (batch.tasks[0], key)
        for batches in loaders
        for batch in batches
        for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True)
        if valid
    )
    assert set(counted.values()) == {1}
    assert len(counted) == 2 * len(heldout(module(tars)))


def test_a_resumed_run_counts_on_and_begins_another_pass(tars: Path) -> None:
    data = module(tars)
    before = keys(data, 5)
    resumed = module(tars)
    resumed.load_state_dict(data.state_dict())
    after = keys(resumed, 5)
    assert resumed.consumed == 10
    assert before != after
    other = module(tars, batch_size=4)
    with pytest.raises(UserError, match="batch_size 8, this run has 4"):
        other.load_state_dict(data.state_dict())


def test_bad_samples_are_counted_and_too_many_stop_the_run(tars: Path) -> None:
    write_tar(tars / "4.tar", range(200, 250), broken=(200, 203))
    lines: list[str] = []
    data = module(tars, lines=lines)
    keys(data, 60)
    assert data.skipped["not a picture"] >= 2
    assert any("4.tar" in line and "not a picture" in line for line in lines)
    write_tar(tars / "5.tar", range(300, 350), broken=tuple(range(300, 350)))
    with pytest.raises(UserError, match=r"not a picture.*max_bad"):
        keys(module(tars), 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": {"segment": 1.0}}, "'segment' needs more than a stream"),
        ({"stream": {"heldout_share": 0.0}}, r"heldout_share=0\.01"),
        ({"stream": {"urls": "/nowhere/*.tar"}}, "no file matches"),
        ({"stream": {"urls": "pipe:cat x"}}, "pipe:cat x"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(tars: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        module(tars, **changes)


def test_captions_come_without_opening_pictures_and_never_from_what_is_held_out(tars: Path) -> None:
    write_tar(tars / "9.tar", range(900, 910), broken=tuple(range(900, 910)))
    captions = module(tars).captions(1000)
    apart = {f"caption {int(key.rpartition('-')[2])}" for key in heldout(module(tars))}
    assert {f"caption {number}" for number in range(200)} - apart <= set(captions)
    assert not apart & set(captions)
    assert len(module(tars).captions(7)) == 7


def test_lightning_trains_on_a_stream_and_validates(tars: Path) -> None:
    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.validated: list[str] = []

        def training_step(self, batch: Batch, index: int) -> torch.Tensor:
            return (self.weight - batch.targets.mean()).square().sum()

        def validation_step(self, batch: Batch, index: int) -> None:
            self.validated += [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    data, model = module(tars, workers=1), Model()
    data.trainer = None
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=6, max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, val_check_interval=3, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, data)
    assert trainer.global_step == 6 and data.consumed == 6
    assert len(model.validated) == 2 * 2 * len(heldout(module(tars)))
