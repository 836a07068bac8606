"""Training with two processes on the CPU: disjoint shards, and the curve of one process."""

import csv
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from mentor.models.checkpoint import Card, save_image_tokenizer
from mentor.tokenizers import ImageTokenizerConfig, VQConfig, build_image_tokenizer

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
LIMIT = 150

# The real command, which also notes what each process reads.
DRIVER = """
import os
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as mentor.train does before it imports torch
from mentor.data.loading import TrainingBatches
from mentor.errors import run_main
from mentor.train import main

original = TrainingBatches.__getitem__

def get(self, step):
    task, samples = self._stream.batch(step, self._rank, self._world)
    with open(f"{os.environ['SEEN']}.{self._rank}", "a") as file:
        for sample in samples:
            file.write(f"{step} {task} {sample.epoch} {sample.shard} {sample.position}\\n")
    return original(self, step)

TrainingBatches.__getitem__ = get
run_main(main)
"""


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        channels=8,
        multipliers=(1, 2),
        stem=4,
        attention=False,
        middle=False,
        latent_width=16,
        groups=8,
        encoder_blocks=1,
        decoder_blocks=1,
        quantizer=VQConfig(codes=32),
    )
    folder = tmp_path_factory.mktemp("image_tokenizer") / "release"
    save_image_tokenizer(folder, build_image_tokenizer(config).eval(), 64, Card("test"))
    return folder


def start(folder: Path, shapes: Path, image_tokenizer: Path, *overrides: str) -> subprocess.Popen[str]:
    folder.mkdir()
    driver = folder / "drive.py"
    driver.write_text(DRIVER)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "SEEN": str(folder / "seen"), "OMP_NUM_THREADS": "1"}
    settings = (
        "stage=1",
        "experiment=test",
        f"data.root={shapes}",
        f"image_tokenizer_from={image_tokenizer}",
        "trainer.precision=32-true",
        "trainer.timeout=100",
        f"run.dir={folder / 'run'}",
        *overrides,
    )
    # Processes that wait for each other do not heed a friendly signal, so the second one is not friendly.
    limit = ("timeout", "-k", "5", str(LIMIT)) if shutil.which("timeout") else ()
    command = [*limit, sys.executable, str(driver), *settings]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=LIMIT + 10)
    return process.returncode, output


def curve(folder: Path) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = defaultdict(dict)
    with (folder / "run" / "logs" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    values[name][int(row["step"])] = float(value)
    return values


def seen(folder: Path, rank: int) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in (folder / f"seen.{rank}").read_text().splitlines()]


@pytest.mark.slow
# Muon works in bfloat16, where another order of a sum shows.
@pytest.mark.parametrize(("kind", "tolerance"), [("adamw", 1e-4), ("muon", 1e-3)])
def test_two_processes_read_disjoint_shards_and_learn_like_one(
    shapes: Path, image_tokenizer: Path, tmp_path: Path, kind: str, tolerance: float
) -> None:
    length = (f"trainer.max_steps={STEPS}", "trainer.validate_every=6")
    steps = (*length, "data.batch_size=8", "data.lanes=2", f"optimizer.kind={kind}")
    alone = start(tmp_path / "one", shapes, image_tokenizer, *steps)
    together = start(tmp_path / "two", shapes, image_tokenizer, *steps, "trainer.devices=2")
    for process in (alone, together):
        code, output = finish(process)
        assert code == 0, output
    assert "arning" not in output

    by_rank = [seen(tmp_path / "two", rank) for rank in (0, 1)]
    shards: list[dict[tuple[str, str], set[str]]] = [defaultdict(set), defaultdict(set)]
    for rank in (0, 1):
        for _, task, epoch, shard, _ in by_rank[rank]:
            shards[rank][task, epoch].add(shard)
    for walk in shards[0].keys() | shards[1].keys():
        assert len(shards[0][walk] & shards[1][walk]) <= 1, "two lanes share the one shard in which they meet"
    assert not {row[1:] for row in by_rank[0]} & {row[1:] for row in by_rank[1]}
    assert sorted(by_rank[0] + by_rank[1]) == sorted(seen(tmp_path / "one", 0))
    assert len(by_rank[0]) == len(by_rank[1]) == STEPS * 4

    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert one.keys() == two.keys()
    assert len(one["train/loss"]) == STEPS
    assert {"train/loss/segment", "val/loss/text_to_image"} <= one.keys()
    for name in one:
        if "loss" in name:
            assert two[name] == pytest.approx(one[name], rel=tolerance), name
