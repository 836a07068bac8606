"""The same sequence of samples for any number of ranks and workers, from wherever it is resumed."""

import hashlib
import random
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mentor.data.datamodule import DataModule
from mentor.data.settings import DataConfig
from mentor.types import Batch, prompt_images, prompt_text

MIXTURE = {"reconstruct": 1.0, "segment": 1.0, "text_to_image": 2.0, "recover": 1.0, "subject": 2.0}
LAYOUTS = list(product((1, 2, 4), (0, 1, 2, 4)))
STEPS = 3
FAR = 200


def module(root: Path, rank: int = 0, world: int = 1, workers: int = 0, consumed: int = 0) -> DataModule:
    made = DataModule(DataConfig(root=str(root), mixture=MIXTURE, batch_size=8, image_size=16, workers=workers), seed=3)
    made.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
    made.load_state_dict({**made.state_dict(), "consumed": consumed})
    return made


def digests(batch: Batch) -> list[str]:
    """Key, task, prompt and every pixel of each row."""
    rows = []
    for row, (key, prompt) in enumerate(zip(batch.keys, batch.prompts, strict=True)):
        digest = hashlib.sha256(f"{key} {batch.tasks[row]} {prompt_text(prompt)}".encode())
        for image in [batch.targets[row], batch.focus[row], *prompt_images(prompt)]:
            digest.update(image.contiguous().numpy().tobytes())
        rows.append(digest.hexdigest())
    return rows


def rows_of(data: DataModule, steps: int) -> Iterator[list[str]]:
    return map(digests, islice(data.train_dataloader(), steps))


@pytest.fixture(scope="module")
def whole(shapes: Path) -> list[list[str]]:
    torch.manual_seed(0)
    return list(rows_of(module(shapes), FAR + STEPS))


@pytest.mark.parametrize(("world", "workers"), LAYOUTS)
def test_every_layout_resumed_anywhere_goes_on_with_the_same_samples(shapes, whole, world, workers):
    points = random.Random(f"{world} {workers}").sample(range(FAR), 50 // len(LAYOUTS) + 1)
    for consumed in points:
        ranks = [list(rows_of(module(shapes, rank, world, workers, consumed), STEPS)) for rank in range(world)]
        for step in range(STEPS):
            together = [row for rows in zip(*(ranks[rank][step] for rank in range(world)), strict=True) for row in rows]
            assert together == whole[consumed + step], f"at step {consumed + step}"


def test_the_first_hundred_keys_are_the_same_on_every_machine_and_in_every_version(shapes):
    batches = islice(module(shapes).train_dataloader(), 13)
    keys = [f"{task} {key}" for batch in batches for task, key in zip(batch.tasks, batch.keys, strict=True)][:100]
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    assert digest == "05b5ef9f16f4a6b72885b5bd6bc9323d03849269abed1c08be789ca680b73c4b"
