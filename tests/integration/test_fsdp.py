"""Sharded training with two processes on the CPU: the curve of one process, checkpoints, faults while writing."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import tiny_image_tokenizer

from mentor.models.checkpoint import Card, load_generator, save_image_tokenizer, weights_fingerprint
from mentor.training.checkpoint_files import verify

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
LIMIT = 200
# Each test is a few runs one after another.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TWO = ("trainer.devices=2", "trainer.strategy=fsdp")

# The real command, which also notes what each process holds, and in which things can be made to go wrong.
DRIVER = """
import errno, json, os, signal
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as mentor.train does before it imports torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from mentor.errors import run_main
from mentor.models import Backbone
from mentor.nn.attention import SelfAttention
from mentor.train import main
from mentor.training import sharding
from mentor.training.generator_module import GeneratorModule

rank = int(os.environ.get("RANK", 0))
gathered, blocks = [0], []
on_backbone, on_attention, on_step = Backbone.forward, SelfAttention.forward, GeneratorModule.training_step
write_rows = sharding.write_rows

def backbone(self, *arguments, **more):
    blocks[:] = self.blocks
    return on_backbone(self, *arguments, **more)

def attention(self, *arguments, **more):
    if isinstance(self, FSDPModule):  # pictures are drawn with a whole generator
        whole = [one for one in blocks if not isinstance(one.attention.qkv.weight, DTensor)]
        gathered[0] = max(gathered[0], len(whole))
    return on_attention(self, *arguments, **more)

def step(self, batch, index):
    if rank == 1 and os.environ.get("STOP") == f"{self.trainer.global_step} {index % 2}":
        os.kill(os.getpid(), signal.SIGTERM)
    if not isinstance(self.generator.rows, DTensor) and "RANK" in os.environ:
        raise RuntimeError("weights of a validation are still gathered")
    return on_step(self, batch, index)

def rows(folder, sharded, *more):
    held = sum(one.to_local().nbytes for one in sharded.values())
    facts = {"held": held, "all": sum(one.nbytes for one in sharded.values()), "gathered": gathered[0]}
    with open(os.environ["NOTES"] + f".{rank}", "w") as file:
        json.dump(facts, file)
    if rank == 1 and os.environ.get("FULL", "nowhere") in str(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write_rows(folder, sharded, *more)

Backbone.forward, SelfAttention.forward, GeneratorModule.training_step = backbone, attention, step
sharding.write_rows = rows
run_main(main)
"""


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_tokenizer") / "release"
    save_image_tokenizer(folder, tiny_image_tokenizer(), 64, Card("test"))
    return folder


class Runs:
    """Starts runs of stage 1 whose batches are so small that now one process has references and now another."""

    def __init__(self, folder: Path, shapes: Path, image_tokenizer: Path) -> None:
        self.folder = folder
        self._driver = folder / "drive.py"
        self._driver.write_text(DRIVER)
        self._settings = (
            "stage=1",
            "experiment=test",
            f"data.root={shapes}",
            f"image_tokenizer_from={image_tokenizer}",
            "backbone.layers=3",
            "backbone.width=32",
            "data.batch_size=2",
            "data.lanes=2",
            "objective.guidance.everything=0.4",
            "objective.guidance.text=0.2",
            f"trainer.max_steps={STEPS}",
            "trainer.validate_every=4",
            "trainer.timeout=100",
        )

    def start(self, name: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NOTES": str(self.folder / f"{name}.notes")}
        limit = ("timeout", "-k", "5", str(LIMIT)) if shutil.which("timeout") else ()
        settings = (*self._settings, f"run.dir={self.folder / name}", *overrides)
        return subprocess.Popen(
            [*limit, sys.executable, str(self._driver), *settings],
            cwd=self.folder,
            env=os.environ | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name: str, *overrides: str, **environment: str) -> str:
        code, output = finish(self.start(name, *overrides, **environment))
        assert code == 0, output
        return output

    def cut(self, name: str, copy: str) -> None:
        """A copy of a finished run as if it had been killed after the checkpoint at half its steps."""
        shutil.copytree(self.folder / name, self.folder / copy)
        shutil.rmtree(self.folder / copy / "release")
        shutil.rmtree(self.folder / copy / "checkpoints" / f"step-{STEPS:07d}")

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "release" / "model.safetensors")

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name / "logs" / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def notes(self, name: str) -> list[dict[str, int]]:
        return [json.loads((self.folder / f"{name}.notes.{rank}").read_text()) for rank in (0, 1)]


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=LIMIT + 10)
    return process.returncode, output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shapes: Path, image_tokenizer: Path) -> Runs:
    """The runs `one` and `two`, of as many processes."""
    made = Runs(tmp_path_factory.mktemp("sharded"), shapes, image_tokenizer)
    for process in (made.start("one"), made.start("two", *TWO)):
        code, output = finish(process)
        assert code == 0, output
        assert "arning" not in output
    return made


def test_sharded_processes_learn_and_draw_what_one_does(runs: Runs) -> None:
    alone, together = runs.rows("one"), runs.rows("two")
    assert len(alone) == len(together) == STEPS
    compared = set()
    for one, two in zip(alone, together, strict=True):
        for name, value in one.items():
            assert bool(value) == bool(two[name]), name
            if value:
                compared.add(name)
                assert float(two[name]) == pytest.approx(float(value), rel=1e-5), name
    assert {"train/loss", "train/grad_norm", "val/loss/segment", "val/loss/text_to_image"} <= compared
    whole, sharded = runs.weights("one"), runs.weights("two")
    assert whole.keys() == sharded.keys()
    for name, value in whole.items():
        torch.testing.assert_close(sharded[name], value, rtol=0, atol=1e-5)
    for picture in ("0000004.png", "0000008.png"):
        drawn = [(runs.folder / name / "samples" / picture).read_bytes() for name in ("one", "two")]
        assert drawn[0] == drawn[1]
    release = load_generator(runs.folder / "two" / "release")
    assert weights_fingerprint(release.generator) == release.fingerprint


def test_each_process_holds_and_writes_half(runs: Runs) -> None:
    for facts in runs.notes("two"):
        assert facts["held"] / facts["all"] == pytest.approx(0.5, abs=0.02)
        assert facts["gathered"] == 1, "the linear layers of one block at a time are whole"
    weights = sum(value.nbytes for value in runs.weights("two").values())
    # Weights, their average, and AdamW's two states of each.
    assert runs.notes("two")[0]["all"] == pytest.approx(4 * weights, rel=0.05)

    checkpoint = runs.folder / "two" / "checkpoints" / f"step-{STEPS:07d}"
    files = {"checkpoint.json", "state.ckpt", "rows-0000-of-0002.safetensors", "rows-0001-of-0002.safetensors"}
    assert {path.name for path in checkpoint.iterdir()} == files
    assert verify(checkpoint).world == 2
    state = torch.load(checkpoint / "state.ckpt", weights_only=True)
    assert all(value.is_meta for name, value in state["state_dict"].items() if not name.endswith(".codebook"))
    for rank in (0, 1):
        with safe_open(checkpoint / f"rows-000{rank}-of-0002.safetensors", framework="pt") as file:
            assert file.get_slice("state_dict/generator.rows").get_shape() == [4, 32]


@pytest.mark.fault(7)
@pytest.mark.parametrize(
    ("wrote", "goes_on", "tolerance"),
    [("two", TWO, 0.0), ("two", (), 1e-5), ("one", TWO, 1e-5)],
    ids=["two-two", "two-one", "one-two"],
)
def test_a_checkpoint_is_gone_on_from_by_any_number_of_processes(
    runs: Runs, wrote: str, goes_on: tuple[str, ...], tolerance: float
) -> None:
    name = f"{wrote}-{len(goes_on)}"
    runs.cut(wrote, name)
    assert "from step 4 of 8" in runs.run(name, *goes_on)
    expected = runs.weights(wrote)
    for key, value in runs.weights(name).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=tolerance)
    assert [row["step"] for row in runs.rows(name)] == [row["step"] for row in runs.rows(wrote)]


@pytest.mark.fault(9)
def test_stopped_within_an_accumulation_in_bfloat16_it_ends_as_if_it_had_not_been(runs: Runs) -> None:
    changes = (*TWO, "trainer.accumulate=2", "trainer.precision=bf16-mixed", "freeze=[backbone.blocks.0.*]")
    whole = runs.start("whole", *changes)
    code, output = finish(runs.start("parts", *changes, STOP="3 0"))
    assert code == 128 + signal.SIGTERM, output
    assert [path.name for path in (runs.folder / "parts" / "checkpoints").iterdir()] == ["step-0000003"]
    runs.run("parts", *changes)
    code, output = finish(whole)
    assert code == 0, output
    expected = runs.weights("whole")
    for name, value in runs.weights("parts").items():
        assert torch.equal(value, expected[name]), name
    assert runs.rows("parts") == runs.rows("whole")


@pytest.mark.fault(3)
def test_when_one_process_cannot_write_the_checkpoint_before_stands(runs: Runs) -> None:
    code, output = finish(runs.start("full", *TWO, FULL=f"step-{STEPS:07d}"))
    assert code == 2, output
    assert output.strip().splitlines()[-1].startswith("error: cannot write the checkpoint")
    assert "No space left on device" in output
    assert "Traceback" not in output
    checkpoints = runs.folder / "full" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-0000004"]
    runs.run("full", *TWO)
    expected = runs.weights("two")
    for name, value in runs.weights("full").items():
        assert torch.equal(value, expected[name]), name
