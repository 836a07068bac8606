"""What a training run has left in its folder."""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mentor.training.checkpoint_files import listed, read_state


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The released weights."""
    return load_file(folder / "release" / "model.safetensors")


def differing(one: Path, other: Path) -> list[str]:
    """Names of released weights that are not the same bit for bit."""
    theirs = weights(other)
    return [name for name, tensor in weights(one).items() if not torch.equal(tensor, theirs[name])]


def rows(folder: Path) -> list[dict[str, str]]:
    """The run's numbers, a row a step."""
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def newest(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint holds."""
    return read_state(listed(folder / "checkpoints")[0][1])


def summary(folder: Path) -> dict[str, Any]:
    """What the run says of itself."""
    return json.loads((folder / "summary.json").read_text())
