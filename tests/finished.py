"""A finished run, made by hand and small, and tools/chaos.py as a module."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import save_tiny_releases

from mentor.training.checkpoint_files import write_checkpoint

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@contextmanager
def chaos_module() -> Iterator[ModuleType]:
    """The program as a module; while this holds, its parts can be imported too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        spec = importlib.util.spec_from_file_location("chaos_program", TOOLS / "chaos.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "chaos_program", module)
        spec.loader.exec_module(module)
        yield module


def make_finished_run(path: Path) -> Path:
    """Write what a finished run leaves into the folder `path`; `path`."""
    for step in (9, 12):
        write_checkpoint(path / "checkpoints" / f"step-{step:07d}", state() | {"global_step": step}, {"seed": 0})
    save_tiny_releases(path / "releases")
    (path / "releases" / "model").rename(path / "release")
    shutil.rmtree(path / "releases")
    (path / "logs").mkdir()
    (path / "logs" / "metrics.csv").write_text("step,train/loss\n6,0.5\n12,0.25\n")
    (path / "samples").mkdir()
    Image.new("RGB", (8, 8), "red").save(path / "samples" / "0000012.png")
    (path / "summary.json").write_text(json.dumps({"status": "finished", "starts": 1, "seconds": 3.5, "step": 12}))
    return path


def state() -> dict[str, Any]:
    """What a checkpoint may hold."""
    moments = {"exp_avg": torch.tensor([1.0, float("nan"), 0.0]), "step": torch.tensor(3.0)}
    return {
        "global_step": 12,
        "state_dict": {"weight": torch.arange(6.0).view(2, 3)},
        "current_model_state": {"weight": torch.arange(6.0).view(2, 3) + 1},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 0.1}]}],
        "DataModule": {"consumed": 24},
        "callbacks": {"Guard": {"skipped": 0}},
        "loops": {"fit_loop": {"epoch_loop.val_loop.batch_progress": {"total": {"ready": 5}, "current": {"ready": 5}}}},
    }
