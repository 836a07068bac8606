"""Run folders of finished trainings, made by hand, that may be compared."""

import json
from pathlib import Path
from typing import Any

import torch
from tiny import save_tiny_releases

from mentor.config import to_yaml
from mentor.models.checkpoint import load_generator
from mentor.training.checkpoint_files import write_checkpoint

DATA = "d1" * 32


def settings_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """What a run's config.yaml holds of what a comparison reads."""
    return {
        "stage": "1",
        "run": {"dir": str(folder)},
        "data": {"root": "data/shapes"},
        "trainer": {"precision": "32-true", "accelerator": "cpu"},
        "init_from": None,
    } | changes


def make_run(
    folder: Path, data: str = DATA, size: int = 64, checkpoints: int = 0, model: bool = False, **changes: Any
) -> Path:
    """Write a finished run of 12 updates into a folder; its release has weights only where `model` says so.

    Args:
        folder: where to.
        data: fingerprint of the data.
        size: of its pictures.
        checkpoints: how many are kept.
        model: whether the release is a real one.
        changes: to its settings; `summary` changes summary.json.
    """
    summary = {"status": "finished", "seconds": 10.0, "processes": 2, "step": 12, "max_steps": 12, "samples": 96}
    summary |= changes.pop("summary", {})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(settings_of(folder, **changes)))
    (folder / "summary.json").write_text(json.dumps(summary))
    release = folder / "release"
    if model:
        save_tiny_releases(folder / "releases")
        (folder / "releases" / "model").rename(release)
        config = json.loads((release / "config.json").read_text())
    else:
        (release / "image_tokenizer").mkdir(parents=True)
        config = {"format": "mentor", "version": 4, "kind": "generator", "fingerprint": "0" * 16}
        config["generator"] = {"head": {"kind": "ar"}}
        (release / "image_tokenizer" / "config.json").write_text(json.dumps(config | {"kind": "image_tokenizer"}))
    config |= {"image_size": size, "data": {"fingerprint": data}}
    (release / "config.json").write_text(json.dumps(config))
    for number in range(1, checkpoints + 1):
        generator = load_generator(release).generator
        torch.manual_seed(number)
        state = {
            f"generator.{name}": value + 0.1 * torch.randn_like(value) for name, value in generator.named_parameters()
        }
        rest = {f"generator.{name}": value for name, value in generator.state_dict().items()}
        write_checkpoint(
            folder / "checkpoints" / f"step-{4 * number:07d}",
            {"state_dict": rest | state, "global_step": 4 * number},
            {"seed": 0},
        )
    return folder
