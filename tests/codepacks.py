"""Data sets of image codes whose every number follows from its key, and modules that read them."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from mentor.data.datamodule import DataModule
from mentor.data.packs import NO_PIXELS, CodeLayout, Pack, encode_pack
from mentor.data.settings import DataConfig
from mentor.data.storage.index import Counted
from mentor.data.storage.manifest import begin, finish, identity, lock, shard_path
from mentor.data.storage.writing import Sample as Stored
from mentor.data.storage.writing import write_shard
from mentor.types import Batch, ImageSegment, TextSegment, prompt_images, prompt_text

TASKS = ("reconstruct", "text_to_image")
LAYOUT = CodeLayout(
    tokenizer="0123456789abcdef",
    image_size=16,
    grid=(2, 3),
    vocabulary=1000,
    feature_width=0,
    tasks=TASKS,
    variants=1,
    seed=0,
    image_only=0.1,
    recover_min_scale=0.2,
    recover_distort=0.5,
    recover_distractors=True,
)
FEATURES = LAYOUT.model_copy(update={"feature_width": 5})


def make_pack(task: str, numbers: range, images: int | None = None) -> Pack:
    """Example number i has the target ids i, focus i / 1000, and references of the ids 500 + i."""
    count = len(numbers)
    shown = images if images is not None else int(task == "reconstruct")
    base = np.array(numbers).reshape(-1, 1, 1) * np.ones((1, *LAYOUT.grid))
    return Pack(
        task=task,
        keys=[f"{number:06d}" for number in numbers],
        prompts=[
            (TextSegment(f"number {number} "), *(ImageSegment(NO_PIXELS, f"name {i}") for i in range(shown)))
            for number in numbers
        ],
        images=[tuple(range(shown * i, shown * (i + 1))) for i in range(count)],
        targets=base,
        focus=base / 1000,
        references=np.repeat(base, shown, axis=0) + 500,
        captions=[f"caption {number}" for number in numbers],
    )


def features_of(one: Pack) -> np.ndarray:
    return np.repeat(one.references[:, None], 5, axis=1) / 10


def write(root: Path, layout: CodeLayout = LAYOUT, train: int = 6, size: int = 10, heldout: int = 2) -> Path:
    """`train` packs of each task with `size` examples, two packs a shard."""
    what = identity({"name": "codes"}, {}, "codes", layout.model_dump(mode="json"))
    with lock(root):
        begin(root, what)
        shards = []
        for split, count, base in (("train", train, 0), ("heldout", heldout, 300)):
            packs = [
                (task, make_pack(task, range(base + i * size, base + (i + 1) * size)))
                for i in range(count)
                for task in layout.tasks
            ]
            for number in range(0, len(packs), 2):
                samples = []
                for place, (task, one) in enumerate(packs[number : number + 2]):
                    members = encode_pack(one, features_of(one) if layout.feature_width else None, layout)
                    samples.append(Stored(f"{split}-{number + place:04d}-{task}", members, Counted(tasks=(task,))))
                shards.append(write_shard(root, shard_path(split, number // 2), split, samples, layout.members))
        finish(root, what, shards)
    return root


def module(root: Path | None, lines: list[str] | None = None, rank: int = 0, world: int = 1, **changes) -> DataModule:
    settings = {"root": root and str(root), "mixture": dict.fromkeys(TASKS, 1.0), "batch_size": 8, "image_size": 16}
    settings |= {"workers": 0, "validation_batch_size": 8, "lanes": 2} | changes
    made = DataModule(DataConfig(**settings), 0, [].append if lines is None else lines.append)
    made.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
    return made


def batches(data: DataModule, count: int) -> list[Batch]:
    return list(islice(data.train_dataloader(), count))


def check_content(batch: Batch) -> None:
    """Every row is the example that its key says."""
    assert batch.codes is not None
    numbers = torch.tensor([int(key) for key in batch.keys])
    shown = [number for number, prompt in zip(numbers, batch.prompts, strict=True) for _ in prompt_images(prompt)]
    expected = numbers[:, None, None].expand(-1, *LAYOUT.grid)
    assert torch.equal(batch.codes.target_ids, expected)
    torch.testing.assert_close(batch.focus, expected / 1000, atol=1e-3, rtol=0)
    assert [prompt_text(prompt).split(" ")[1] for prompt in batch.prompts] == [str(int(key)) for key in batch.keys]
    assert batch.codes.reference_ids[:, 0, 0].tolist() == [500 + int(number) for number in shown]
    if batch.codes.reference_features is not None:
        assert batch.codes.reference_features.shape[0] == len(shown)
        for number, features in zip(shown, batch.codes.reference_features, strict=True):
            whole = features.float()
            torch.testing.assert_close(whole, torch.full_like(whole, (500 + int(number)) / 10), atol=0.03, rtol=0)


def same(one: Batch, two: Batch) -> bool:
    return (
        list(one.keys) == list(two.keys)
        and list(one.tasks) == list(two.tasks)
        and [prompt_text(prompt) for prompt in one.prompts] == [prompt_text(prompt) for prompt in two.prompts]
        and torch.equal(one.codes.target_ids, two.codes.target_ids)
        and torch.equal(one.codes.reference_ids, two.codes.reference_ids)
        and torch.equal(one.focus, two.focus)
    )
