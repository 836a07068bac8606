"""Weights, inputs and outputs that the original implementations of published models computed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """A small model with random weights, and what it made of some inputs.

    Attributes:
        config: its sizes.
        weights: by the names of the published checkpoints.
        given: the inputs.
        made: the outputs, computed in float32.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    given: dict[str, Tensor]
    made: dict[str, Tensor]


def read_golden(name: str) -> Golden:
    """The vectors of the file `name`."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dict
    parts = (
        {key.removeprefix(p): t for key, t in tensors.items() if key.startswith(p)} for p in ("weights.", "in.", "out.")
    )
    return Golden(config, *parts)
