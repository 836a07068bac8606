"""The run folder: is there a run in it already, is it this one, and how far did it come?"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mentor.config import flatten, read_yaml, to_yaml
from mentor.errors import UserError
from mentor.training.checkpoints import LAST, AtomicCheckpointIO, sync_folder

# Settings that may change between two starts of one run: none of them changes what is learned.
# (The fingerprint of the data is in the checkpoint, so that their folder may be another.)
_FREE_DATA = ("root", "workers", "validation_batch_size", "validation_limit")
_FREE_TRAINER = ("accelerator", "devices", "nodes", "max_steps", "threads", "timeout", "deterministic", "log_every")
_FREE_TRAINER += ("validate_every", "validation_batches", "checkpoint_every", "checkpoint_minutes", "samples")
FREE = {"resume", "run.dir", *(f"data.{key}" for key in _FREE_DATA), *(f"trainer.{key}" for key in _FREE_TRAINER)}


@dataclass(frozen=True)
class RunFolder:
    """What is where in a run folder.

    Attributes:
        path: the folder.
        step: updates that the last checkpoint has behind it; 0 when there is none.
        finished: whether the release of a run of as many steps is there.
    """

    path: Path
    step: int = 0
    finished: bool = False

    @property
    def release(self) -> Path:
        """What the run is for."""
        return self.path / "release"

    @property
    def checkpoints(self) -> Path:
        """Folder of last.ckpt."""
        return self.path / "checkpoints"

    @property
    def checkpoint(self) -> Path | None:
        """The file to go on from; None to start afresh."""
        return self.checkpoints / LAST if self.step else None


def inspect_folder(path: Path, config: Mapping[str, Any]) -> RunFolder:
    """What an earlier run left in `path`; changes nothing.

    Args:
        path: the run folder, which need not exist.
        config: the settings of the run that is to start.

    Raises:
        UserError: another run is in the folder, or its files cannot be read.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"run.dir {path} is a file: choose another run.dir")
    saved_path = path / "config.yaml"
    if not saved_path.is_file():
        if path.is_dir() and any(path.iterdir()):
            raise UserError(f"run.dir {path} holds files but no config.yaml of a run: choose another run.dir")
        return RunFolder(path)
    saved = read_yaml(saved_path)
    differing = differences(saved, config)
    if differing:
        raise UserError(
            f"run.dir {path} holds another run ({'; '.join(differing[:5])}{'; ...' if len(differing) > 5 else ''}): "
            f"choose another run.dir, or say resume=false to put that run aside"
        )
    steps = config["trainer"]["max_steps"]
    finished = (path / "release" / "config.json").is_file() and flatten(saved).get("trainer.max_steps") == steps
    checkpoint = path / "checkpoints" / LAST
    return RunFolder(path, checkpoint_step(checkpoint) if checkpoint.is_file() and not finished else 0, finished)


def differences(saved: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """`key: old value there, new value here` for every setting that differs and matters."""
    before, now = flatten(saved), flatten(config)
    keys = [key for key in dict.fromkeys([*before, *now]) if key not in FREE]
    absent = object()
    return [
        f"{key}: {_shown(before.get(key, absent), absent)} there, {_shown(now.get(key, absent), absent)} here"
        for key in keys
        if before.get(key, absent) != now.get(key, absent)
    ]


def checkpoint_step(path: Path) -> int:
    """Updates that the checkpoint has behind it."""
    return int(AtomicCheckpointIO().load_checkpoint(path, map_location=torch.device("meta"))["global_step"])


def put_aside(path: Path) -> Path | None:
    """Rename the folder to the first free name of the form `NAME.old-1`; None when there was nothing in it."""
    if not path.is_dir() or not any(path.iterdir()):
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise UserError(f"cannot rename {path} ({error.strerror}): choose another run.dir") from error
    return aside


def save_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write the settings as config.yaml of the run folder `path`, whole or not at all.

    Raises:
        UserError: the folder cannot be made or written.
    """
    partial = path / "config.yaml.partial"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(to_yaml(config))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path / "config.yaml")
        sync_folder(path)
    except OSError as error:
        raise UserError(f"run.dir {path} cannot be written ({error.strerror}): choose another run.dir") from error


def _shown(value: Any, absent: object) -> str:
    return "absent" if value is absent else repr(value)
