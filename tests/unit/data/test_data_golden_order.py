"""The order of training on every machine: equal to digests that were committed once.

`order.json` has two. `keys` is that of the first hundred batches of a data set of procedural scenes, by task and key.
Drawing a scene uses floating point, but only its pixels follow from that, not keys, shards and what tasks can use.
`numbers` is that of an order over made-up shards of all sizes and far out, whole numbers throughout. A change of either
means that no run of an earlier version can be gone on with: raise the format of checkpoints with it.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mentor.data.datamodule import DataModule
from mentor.data.order import TrainingOrder, Usable
from mentor.data.settings import DataConfig

pytestmark = pytest.mark.fault(22)
ROOT = Path(__file__).resolve().parents[3]
GOLDEN: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "order.json").read_text(encoding="utf-8"))
LAYOUTS = [(1, 0), (1, 2), (2, 0), (2, 2)]


def make_scenes(folder: Path, workers: int, **environment: str) -> Path:
    recipe = ROOT / "tests" / "golden" / "scenes.yaml"
    command = [ROOT / "tools" / "make_shards.py", recipe, f"output={folder}", f"workers={workers}"]
    made = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes") / "data", 1)


def batches(scenes: Path, rank: int, world: int, workers: int) -> list[tuple[str, Sequence[str]]]:
    """Task and keys of the rank's part of each batch."""
    data = DataModule(DataConfig(root=str(scenes), workers=workers, **GOLDEN["settings"]), GOLDEN["seed"])
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return [(batch.tasks[0], batch.keys) for batch in islice(data.train_dataloader(), GOLDEN["batches"])]


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(("world", "workers"), LAYOUTS)
def test_the_first_hundred_batches_are_the_golden_ones(scenes: Path, world: int, workers: int) -> None:
    ranks = [batches(scenes, rank, world, workers) for rank in range(world)]
    lines = []
    for parts in zip(*ranks, strict=True):
        assert len({task for task, _ in parts}) == 1, "all ranks are at the same task"
        rows = [key for keys in zip(*(keys for _, keys in parts), strict=True) for key in keys]
        lines.append(" ".join([parts[0][0], *rows]))
    assert lines[: len(GOLDEN["first"])] == GOLDEN["first"]
    assert (len(lines), digest(lines)) == (100, GOLDEN["keys"])


def test_the_scenes_have_the_same_bytes_whoever_makes_them(scenes: Path, tmp_path: Path) -> None:
    again = make_scenes(tmp_path / "again", 2, PYTHONHASHSEED="5", OMP_NUM_THREADS="2", LC_ALL="C", TZ="Asia/Tokyo")
    tars = sorted(path.relative_to(scenes) for path in scenes.rglob("*.tar"))
    assert len(tars) > 8
    assert [path for path in tars if (again / path).read_bytes() != (scenes / path).read_bytes()] == []


@pytest.mark.parametrize("world", [1, 2])
def test_an_order_over_made_up_shards_is_the_golden_one(world: int) -> None:
    sizes = np.arange(40) * 37 % 101
    positions = [np.arange(size) * 3 for size in sizes]
    usable = [Usable.listed(positions), Usable.listed([rows[::2] for rows in positions])]
    tasks = {"reconstruct": usable, "segment": [usable[1], None], "text_to_image": [None, usable[0]]}
    mixture = GOLDEN["settings"]["mixture"]
    order = TrainingOrder(tasks, mixture, 16, 8, GOLDEN["seed"], 5, "reconstruct", [2.0, 1.0])
    lines = []
    for step in [*range(100), 10_000, 123_456_789]:
        parts = [order.batch(step, rank, world) for rank in range(world)]
        rows = [sample for samples in zip(*(samples for _, samples in parts), strict=True) for sample in samples]
        lines.append(f"{parts[0][0]} {[(one.dataset, one.epoch, one.shard, one.position) for one in rows]}")
    assert digest(lines) == GOLDEN["numbers"]
