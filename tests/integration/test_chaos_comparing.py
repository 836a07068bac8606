"""tools/chaos.py notices each bit in which two runs differ."""

import importlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mentor.training.checkpoint_files import read_state, write_checkpoint


@pytest.fixture(scope="module")
def comparing(chaos: ModuleType) -> ModuleType:
    return importlib.import_module("chaos.comparing")


def flip_weight(run: Path) -> None:
    path = run / "release" / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name].view(torch.uint8).flatten()[0] ^= 1
    save_file(weights, path)


def flip_in_checkpoint(*path: Any) -> Callable[[Path], None]:
    def flip(run: Path) -> None:
        newest = run / "checkpoints" / "step-0000012"
        found = read_state(newest)
        shutil.rmtree(newest)
        *parents, last = path
        inner: Any = found
        for part in parents:
            inner = inner[part]
        if isinstance(inner[last], torch.Tensor):
            inner[last].view(torch.uint8).flatten()[0] ^= 1
        else:
            inner[last] += 1
        write_checkpoint(newest, found, {"seed": 0})

    return flip


def negative_zero(run: Path) -> None:
    newest = run / "checkpoints" / "step-0000012"
    found = read_state(newest)
    shutil.rmtree(newest)
    found["optimizer_states"][0]["state"][0]["exp_avg"][2] = -0.0
    write_checkpoint(newest, found, {"seed": 0})


def flip_byte(name: str, offset: int = -20) -> Callable[[Path], None]:
    def flip(run: Path) -> None:
        content = bytearray((run / name).read_bytes())
        content[offset] ^= 1
        (run / name).write_bytes(bytes(content))

    return flip


def replace_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def replace(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))

    return replace


def remove(name: str) -> Callable[[Path], None]:
    return lambda run: shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def leave_partial(run: Path) -> None:
    (run / "checkpoints" / "step-0000011.partial").mkdir()


# What differs, and what the line on it must say.
CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of a released weight": (flip_weight, r"release: model.safetensors \S+: 1 of \d+ numbers differ, by .*e-"),
    "a bit of a kept weight": (flip_in_checkpoint("state_dict", "weight"), r"checkpoint: state_dict.weight: 1 of 6 "),
    "a bit of an average": (flip_in_checkpoint("current_model_state", "weight"), "checkpoint: current_model_state"),
    "a bit of an optimizer's moment": (
        flip_in_checkpoint("optimizer_states", 0, "state", 0, "exp_avg"),
        r"checkpoint: optimizer_states.0.state.0.exp_avg: 1 of 3 numbers differ, by 1.19e-07 at most",
    ),
    "the sign of a zero": (negative_zero, "exp_avg: 1 of 3 numbers differ, by 0 at most"),
    "the place in the data": (flip_in_checkpoint("DataModule", "consumed"), "DataModule.consumed: 24 became 25"),
    "a guard's count": (flip_in_checkpoint("callbacks", "Guard", "skipped"), "skipped: 0 became 1"),
    "where a loop is": (
        flip_in_checkpoint("loops", "fit_loop", "epoch_loop.val_loop.batch_progress", "current", "ready"),
        "current.ready: 5 became 6",
    ),
    "a learning rate": (flip_in_checkpoint("optimizer_states", 0, "param_groups", 0, "lr"), "lr: 0.1 became 1.1"),
    "another last step": (remove("checkpoints/step-0000012"), "name: 'step-0000012' became 'step-0000009'"),
    "no checkpoint": (remove("checkpoints"), "checkpoint: state_dict.weight is missing"),
    "a damaged checkpoint": (flip_byte("checkpoints/step-0000012/state.ckpt"), "checkpoint: cannot be read .*state"),
    "a setting of the release": (
        replace_text("release/config.json", '"steps": 3', '"steps": 4'),
        "release: config.json training.steps: 3 became 4",
    ),
    "the card": (flip_byte("release/README.md"), "release: README.md: other bytes"),
    "no release": (remove("release"), "release: .* is missing"),
    "a row of the logs": (
        replace_text("logs/metrics.csv", "0.25", "0.26"),
        "logs: step 12 train/loss: '0.25' became '0.26'",
    ),
    "a row too few": (replace_text("logs/metrics.csv", "6,0.5\n", ""), "logs: step 6 train/loss is missing"),
    "a sample grid": (flip_byte("samples/0000012.png"), "samples: 0000012.png: other bytes"),
    "no sample grid": (remove("samples/0000012.png"), "samples: 0000012.png is missing"),
    "a sample grid too many": (
        lambda run: shutil.copy(run / "samples" / "0000012.png", run / "samples" / "0000013.png"),
        "samples: 0000013.png is new",
    ),
    "the summary": (replace_text("summary.json", '"step": 12', '"step": 11'), "summary: step: 12 became 11"),
    "something half-written": (leave_partial, "left behind: checkpoints/step-0000011.partial"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_of_one_bit_is_named_and_counts(
    chaos: ModuleType,
    comparing: ModuleType,
    run: Path,
    tmp_path: Path,
    change: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, says = CHANGES[change]
    other = Path(shutil.copytree(run, tmp_path / "run"))
    spoil(other)
    done = chaos.Round(1, tmp_path, ["after 1.0 s at step 3 (training)"], 2.0, comparing.compare_runs(run, other))
    chaos.tell(done)
    assert chaos.conclude([done]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "0 of 1 bit-identical"
    assert any(re.search(says, line) for line in done.differences), said


def test_runs_that_differ_in_time_starts_and_counted_validation_batches_alone_are_alike(
    chaos: ModuleType, comparing: ModuleType, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    (other / "summary.json").write_text(json.dumps({"status": "finished", "starts": 3, "seconds": 9.0, "step": 12}))
    flip_in_checkpoint("loops", "fit_loop", "epoch_loop.val_loop.batch_progress", "total", "ready")(other)
    differences = comparing.compare_runs(run, other)
    assert differences == []
    assert chaos.conclude([chaos.Round(1, tmp_path, [], 1.0, differences)]) == 0
    assert capsys.readouterr().out == "1 of 1 bit-identical\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_of_every_layout_are_compared(comparing: ModuleType, dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(4, 6).to(dtype)
    layouts = [tensor, tensor.T, tensor[:, :1], tensor[:1, ::2], tensor[0, 0], tensor[:0], tensor.expand(2, 4, 6)]
    layouts.append(torch.as_strided(tensor, (1,), (8,)))
    for layout in layouts:
        assert comparing.describe(layout, layout.clone()) == ""
        if layout.numel():
            different = layout.clone(memory_format=torch.contiguous_format)
            different.view(-1)[-1] = 0 if different.view(-1)[-1] else 1
            assert comparing.describe(layout, different).startswith(f"1 of {layout.numel()} numbers differ")


def test_an_undisturbed_run_without_a_part_agrees_with_nothing(comparing: ModuleType, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    lines = comparing.compare_runs(tmp_path / "one", tmp_path / "other")
    assert len(lines) == len(comparing.PARTS)
