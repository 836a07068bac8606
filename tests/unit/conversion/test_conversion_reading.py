"""Checkpoint files: where weights lie in them, and what is refused before anything is read or run."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mentor.conversion.reading import read_checkpoint
from mentor.errors import UserError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        OrderedDict(WEIGHTS),
        {"model": WEIGHTS, "optimizer": {"state": {0: torch.ones(1)}, "lr": 0.1}, "steps": 5},
        {"module": WEIGHTS},
        {"epoch": 3, "state_dict": WEIGHTS, "callbacks": {}},
    ],
)
def test_weights_are_found_bare_or_under_their_usual_names(tmp_path: Path, content: Any) -> None:
    read = read_checkpoint(saved(tmp_path / "x.pt", content))
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "x.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "x.safetensors")["b"], WEIGHTS["b"])


def test_the_wanted_part_comes_first(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"model": WEIGHTS, "ema": {"a.weight": torch.zeros(1)}})
    assert read_checkpoint(path)["a.weight"].shape == (2, 3)
    assert read_checkpoint(path, ("ema", "model"))["a.weight"].shape == (1,)


class ModelCheckpoint:
    """Stands for a callback of Lightning, by which its checkpoints are keyed."""


def test_lightnings_callbacks_do_no_harm_and_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelCheckpoint, "__module__", "pytorch_lightning.callbacks.model_checkpoint")
    module = type(os)("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = ModelCheckpoint
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(__import__("sys").modules, name, module)
    path = saved(tmp_path / "last.ckpt", {"state_dict": WEIGHTS, "callbacks": {ModelCheckpoint: {"best": 1.0}}})
    monkeypatch.undo()
    assert read_checkpoint(path).keys() == WEIGHTS.keys()


class Code:
    """What a file can hold that runs when it is read by a careless reader."""

    def __init__(self, told: Path) -> None:
        self.told = told

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.told),)


def cut(path: Path) -> Path:
    whole = saved(path, WEIGHTS).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def flipped(path: Path) -> Path:
    whole = bytearray(saved(path, WEIGHTS).read_bytes())
    place = whole.index(WEIGHTS["a.weight"].numpy().tobytes())
    whole[place] ^= 1
    path.write_bytes(whole)
    return path


def cut_safetensors(path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-3])
    return path


def written(content: bytes) -> Any:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path, "is not there: give the checkpoint file"),
        (lambda path: path.parent, "is a folder"),
        (cut, "is damaged, cut off or no checkpoint of torch"),
        (flipped, "another checksum"),
        (cut_safetensors, "is damaged or cut off"),
        (written(b"<html>404</html>"), "is damaged, cut off or no checkpoint"),
        (lambda path: saved(path, [1, 2]), "holds no weights"),
        (lambda path: saved(path, {"optimizer": {"lr": 1.0}}), r"it holds \['optimizer'\]"),
        (
            lambda path: saved(path, {"model": Code(path.parent / "ran")}),
            r"would run code .* \(posix.mkdir\)",
        ),
    ],
)
def test_what_cannot_be_trusted_is_refused(tmp_path: Path, make: Any, told: str) -> None:
    path = make(tmp_path / "x.pt")
    with pytest.raises(UserError, match=told):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
