"""Checkpoint files that other projects wrote: tensors by name. Nothing in a file is executed."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mentor.errors import UserError

# Where training scripts put the weights, beside optimizers and counters.
PARTS = ("model", "ema", "module", "state_dict")
# Lightning names its callbacks by their classes, which are not needed to read the weights beside them.
_LIGHTNING = ("pytorch_lightning.", "lightning.")


class _StandIn:
    """What a class of Lightning becomes in a checkpoint that names it: nothing at all."""


def read_checkpoint(path: Path, parts: Sequence[str] = PARTS) -> dict[str, Tensor]:
    """The weights in a safetensors file, or in a file that torch.save wrote, by name.

    Args:
        path: the file.
        parts: under which names the weights may lie in it, best first; a file that holds them bare has no such name.

    Raises:
        UserError: there is no such file, it is damaged or cut off, it would run code, or it holds no weights.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not there"
        raise UserError(f"{path} is {kind}: give the checkpoint file (.pt, .pth, .ckpt, .bin or .safetensors)")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged or cut off ({error}): get the file again") from error
    return _weights(path, _read_zip(path), parts)


def _read_zip(path: Path) -> Any:
    """What torch.save put into the file, as far as it is made of tensors and plain values."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(
            f"{path} is damaged, cut off or no checkpoint of torch 1.6 or later ({error}): get the file again"
        ) from error
    if damaged is not None:
        raise UserError(f"{path} is damaged ({damaged} in it has another checksum): get the file again")
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # the library lets through whatever a reader of a broken file may raise
        raise UserError(f"{path} is a zip file but no checkpoint of torch ({error}): give another file") from error
    unsafe = sorted(name for name in named if not name.startswith(_LIGHTNING))
    if unsafe:
        raise UserError(
            f"{path} would run code when it is read ({', '.join(unsafe[:4])}) and was not: take a .safetensors file of "
            "these weights, or one that holds tensors alone"
        )
    harmless: list[Any] = [(_StandIn, name) for name in named]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # likewise
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): get the file again") from error


def _weights(path: Path, content: Any, parts: Sequence[str]) -> dict[str, Tensor]:
    found: Any = content
    if isinstance(content, Mapping) and not _is_weights(content):
        found = next((content[part] for part in parts if _is_weights(content.get(part))), None)
    if not _is_weights(found):
        keys = [str(key) for key in content][:6] if isinstance(content, Mapping) else type(content).__name__
        raise UserError(
            f"{path} holds no weights, neither bare nor under {', '.join(parts)} (it holds {keys}): give another file"
        )
    return dict(found)


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())
