"""How two finished runs differ, bit for bit and by name."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from safetensors.torch import load_file
from torch import Tensor

from mentor.config import flatten
from mentor.training.checkpoint_files import listed, read_state, verify

Leaves = dict[str, Any]
# Lightning counts the validation batches since the beginning, to see whether one is unfinished. A validation whose
# numbers were written before the kill is not done again, and so not counted by the start that goes on.
UNCOUNTED = ".val_loop.batch_progress.total."


def compare_runs(expected: Path, found: Path) -> list[str]:
    """A line for each thing in which the run folder `found` differs from `expected`; none if they are alike.

    Compared are the last checkpoint (weights, averages, optimizers, place in the data, guards, counts), the release,
    the sample grids, the rows of the logs and the summary; nothing half-written may be left. Tensors are compared by
    their bytes.
    """
    differences = []
    for part, read in PARTS.items():
        try:
            differences += compare_leaves(part, read(expected), read(found))
        except Exception as error:  # torch, safetensors and json raise many kinds for damaged files
            differences.append(f"{part}: cannot be read ({next(iter(str(error).splitlines()), error)})")
    return differences + [f"left behind: {path.relative_to(found)}" for path in sorted(found.rglob("*.partial"))]


def compare_leaves(part: str, expected: Leaves, found: Leaves) -> list[str]:
    """A line for each name whose value differs or that only one side has; numbers come with their largest difference.

    With nothing to compare there is a line too: no file is not a file that agrees.
    """
    if not expected:
        return [f"{part}: the undisturbed run has none"]
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            lines.append(f"{part}: {name} is missing")
        elif name not in expected:
            lines.append(f"{part}: {name} is new")
        elif difference := describe(expected[name], found[name]):
            lines.append(f"{part}: {name}: {difference}")
    return lines


def describe(expected: Any, found: Any) -> str:
    """How two values differ; empty if every bit is the same."""
    if not (isinstance(expected, Tensor) and isinstance(found, Tensor)):
        if type(expected) is type(found) and repr(expected) == repr(found):
            return ""
        if isinstance(expected, bytes) and isinstance(found, bytes):
            return f"other bytes ({len(expected)} and {len(found)} of them)"
        return f"{shorten(expected)} became {shorten(found)}"
    if (expected.dtype, expected.shape) != (found.dtype, found.shape):
        return f"{expected.dtype} {tuple(expected.shape)} became {found.dtype} {tuple(found.shape)}"
    differ = (as_bytes(expected) != as_bytes(found)).any(dim=1)
    if not differ.any():
        return ""
    apart = (expected.double() - found.double()).abs().reshape(-1)[differ]
    return f"{len(apart)} of {len(differ)} numbers differ, by {float(apart.max()):.3g} at most"


def as_bytes(tensor: Tensor) -> UInt8[Tensor, "n bytes"]:
    """The bytes of each number: by them NaN equals itself, and 0 is not -0."""
    # A copy: a tensor with one row may have any stride there and counts as contiguous.
    laid_out = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return laid_out.view(torch.uint8).reshape(-1, tensor.element_size())


def shorten(value: Any) -> str:
    """The value in few characters."""
    text = "a tensor" if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def leaves(value: Any, prefix: str = "") -> Leaves:
    """What is in nested containers, by dotted path."""
    if isinstance(value, Mapping) and value:
        pairs = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, list | tuple) and value:
        pairs = [(str(index), one) for index, one in enumerate(value)]
    else:
        return {prefix: value}
    return {
        name: leaf for key, one in pairs for name, leaf in leaves(one, f"{prefix}.{key}" if prefix else key).items()
    }


def read_release(run: Path) -> Leaves:
    """Tensors and settings of a release by file and name, and the bytes of its other files."""
    readers: dict[str, Callable[[Path], Leaves]] = {
        ".safetensors": lambda path: dict(load_file(path)),
        ".json": lambda path: flatten(json.loads(path.read_text(encoding="utf-8"))),
    }
    release, found = run / "release", {}
    for path in sorted(path for path in release.rglob("*") if path.is_file()):
        read = readers.get(path.suffix, lambda path: {"": path.read_bytes()})
        found |= {f"{path.relative_to(release)} {name}".strip(): leaf for name, leaf in read(path).items()}
    return found


def read_checkpoint(run: Path) -> Leaves:
    """All that the newest checkpoint holds, by dotted path."""
    for _, newest in listed(run / "checkpoints")[:1]:
        verify(newest)
        found = {"name": newest.name} | leaves(read_state(newest))
        return {name: leaf for name, leaf in found.items() if UNCOUNTED not in name}
    return {}


def read_logs(run: Path) -> Leaves:
    """The quantities in the rows of the logs, by step and name."""
    path = run / "logs" / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {f"step {row['step']} {name}": value for row in rows for name, value in row.items()}


def read_summary(run: Path) -> Leaves:
    """What the run says of itself, but for the time and the starts that it took."""
    facts = flatten(json.loads((run / "summary.json").read_text(encoding="utf-8")))
    return {name: value for name, value in facts.items() if name not in ("seconds", "starts")}


def read_pictures(run: Path) -> Leaves:
    """The bytes of the sample grids, by name."""
    return {path.name: path.read_bytes() for path in sorted((run / "samples").glob("*"))}


PARTS: dict[str, Callable[[Path], Leaves]] = {
    "checkpoint": read_checkpoint,
    "release": read_release,
    "samples": read_pictures,
    "logs": read_logs,
    "summary": read_summary,
}
