"""The whole path in miniature, by the demo's own command: shards, three trainings, pictures, evaluation, report."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mentor.generate import generate, load
from mentor.models.checkpoint import read_config

ROOT = Path(__file__).resolve().parents[2]
DEMO = ("tools/demo.py", "--experiment", "test", "--recipe", "shapes", "limit=300", "samples_per_shard=50")
METRICS = {
    "tokenizer/psnr",
    "tokenizer/usage",
    "reconstruct/psnr",
    "reconstruct/ceiling_psnr",
    "segment/iou",
    "text_to_image/prompt_following",
    "recover/psnr_gain",
    "subject/cp",
    "subject/pf",
    "subject/cp_pf",
    "seconds/total",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, command: Callable) -> Path:
    """The folder in which the path was walked: interrupted once by Ctrl-C, then started again and finished."""
    folder = tmp_path_factory.mktemp("demo")
    interrupt_in_second_phase(folder)
    ended = command(*DEMO, cwd=folder, timeout=400)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "already holds" in ended.stdout, "the shards should have been there"
    return folder


def interrupt_in_second_phase(folder: Path) -> None:
    """Start the demo and press Ctrl-C, so to speak, as soon as the second phase reports its first step."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / DEMO[0]), *DEMO[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("test tokenizer: step"):
                os.killpg(process.pid, signal.SIGINT)
                break
        said += process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "interrupted" in said.splitlines()[-1]


def release_of(path: Path) -> Path:
    return path / "runs" / "test" / "2" / "release"


def test_metrics_and_report(path: Path) -> None:
    metrics = json.loads((path / "runs" / "test" / "metrics.json").read_text())
    assert metrics.keys() >= METRICS
    assert all(isinstance(metrics[key], float | int) and math.isfinite(metrics[key]) for key in METRICS)
    assert 0 < metrics["tokenizer/usage"] <= 1
    assert 0 <= metrics["segment/iou"] <= 1
    assert metrics["tokenizer/psnr"] > 8
    assert metrics["seconds/total"] > 1
    report = (path / "runs" / "test" / "report.html").read_text()
    assert "data:image/png;base64," in report
    assert 'src="http' not in report, "the report must not need anything from elsewhere"


@pytest.mark.parametrize("stage", ["tokenizer", "1", "2"])
def test_release_folder(path: Path, stage: str) -> None:
    release = path / "runs" / "test" / stage / "release"
    config = read_config(release)
    assert config["kind"] == ("image_tokenizer" if stage == "tokenizer" else "generator")
    assert (release / "model.safetensors").is_file()
    assert (release / "README.md").read_text().startswith("---\n")
    for file in release.rglob("*"):
        if file.is_file():
            assert file.suffix in (".json", ".safetensors", ".md", ".png"), f"{file} is none of ours"
            start = file.read_bytes()[:4]
            assert start[:2] != b"\x80\x04"
            assert start[:2] != b"PK", f"{file} is a zip, as torch.save writes them"


def test_pictures_and_grid(path: Path) -> None:
    pictures = path / "runs" / "test" / "pictures"
    made = sorted(file.name for file in pictures.glob("0*.png"))
    assert made == [f"{seed:06d}.png" for seed in range(4)]
    with Image.open(pictures / made[0]) as picture:
        assert picture.size == (64, 64)
    with Image.open(pictures / "grid.png") as grid:
        assert grid.width > 128


def test_a_picture_is_made_again_from_its_file(path: Path, tmp_path: Path, command: Callable) -> None:
    original = path / "runs" / "test" / "pictures" / "000002.png"
    ended = command("-m", "mentor.generate", "--from-png", original, "--output", tmp_path, cwd=path)
    assert ended.returncode == 0, ended.stderr
    with Image.open(original) as first, Image.open(tmp_path / original.name) as again:
        assert np.array_equal(np.asarray(first), np.asarray(again))


def test_python_interface(path: Path) -> None:
    model = load(release_of(path))
    reference = Image.open(path / "runs" / "test" / "pictures" / "reference.png")
    pictures = generate(model, "The ring in <image>.", images=[reference], num_images=2, top_k=20, top_p=0.9, seed=7)
    alone = generate(model, "The ring in <image>.", images=[reference], top_k=20, top_p=0.9, seed=8)
    assert [picture.size for picture in pictures] == [(64, 64)] * 2
    assert np.array_equal(np.asarray(pictures[1]), np.asarray(alone[0]))


def test_finished_says_so_at_once(path: Path, command: Callable) -> None:
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    again = command(*DEMO, cwd=path, timeout=60)
    assert again.returncode == 0, again.stderr
    assert "Finished earlier" in again.stdout
    assert "report.html" in again.stdout
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == before


def test_each_command_says_that_it_is_done(path: Path, command: Callable) -> None:
    shards = command("tools/make_shards.py", "shapes", "output=data/shapes", *DEMO[5:], cwd=path)
    assert shards.returncode == 0
    assert "already" in shards.stdout
    train = command("-m", "mentor.train", "stage=tokenizer", "experiment=test", cwd=path)
    assert train.returncode == 0, train.stderr
    assert "already" in train.stdout + train.stderr
