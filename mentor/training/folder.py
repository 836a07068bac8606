"""The run folder: is there a run in it already, is it this one, and how far did it come?"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentor.config import flatten, read_yaml, to_yaml
from mentor.errors import UserError, check_output
from mentor.training.checkpoint_files import Facts, clean, later_ones, newest_good, set_aside, sync_folder

# Settings that may change between two starts of one run: none of them changes what is learned.
# (The fingerprint of the data is in the checkpoint, so that their folder may be another.)
_FREE_DATA = ("root", "workers", "validation_batch_size", "validation_limit", "cache_dir", "cache_gigabytes", "max_bad")
_FREE_TRAINER = ("accelerator", "devices", "nodes", "max_steps", "threads", "timeout", "deterministic", "log_every")
_FREE_TRAINER += ("validate_every", "validation_batches", "checkpoint_every", "checkpoint_minutes", "samples")
_FREE_TRAINER += ("keep", "keep_every", "strategy")
_FREE_GUARD = ("nonfinite", "spike", "spike_sigmas", "spike_window", "in_a_row", "full_disk", "exhausted", "max_epochs")
FREE = {"resume", "run.dir", *(f"data.{key}" for key in _FREE_DATA), *(f"trainer.{key}" for key in _FREE_TRAINER)}
FREE |= {f"guard.{key}" for key in _FREE_GUARD}
_LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """What is where in a run folder.

    Attributes:
        path: the folder.
        checkpoint: the one to go on from; None to start afresh.
        step: updates that it has behind it; 0 when there is none.
        finished: whether the release of a run of as many steps is there.
    """

    path: Path
    checkpoint: Path | None = None
    step: int = 0
    finished: bool = False

    @property
    def release(self) -> Path:
        """What the run is for."""
        return self.path / "release"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"


def inspect_folder(
    path: Path, config: Mapping[str, Any], report: Callable[[str], None] = lambda line: None
) -> RunFolder:
    """What an earlier run left in `path`; changes nothing.

    Args:
        path: the run folder, which need not exist.
        config: the settings of the run that is to start.
        report: takes a line on every checkpoint that is damaged.

    Raises:
        UserError: another run is in the folder, or its files cannot be read.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"run.dir {path} is a file: choose another run.dir")
    saved_path = path / "config.yaml"
    if not saved_path.is_file():
        if path.is_dir() and any(one.name != _LOCK for one in path.iterdir()):
            raise UserError(f"run.dir {path} holds files but no config.yaml of a run: choose another run.dir")
        return RunFolder(path)
    saved = read_yaml(saved_path)
    _refuse_another(f"run.dir {path} holds another run", saved, config)
    steps = config["trainer"]["max_steps"]
    if (path / "release" / "config.json").is_file() and flatten(saved).get("trainer.max_steps") == steps:
        return RunFolder(path, finished=True)
    return find_checkpoint(RunFolder(path), config, report)


def find_checkpoint(folder: RunFolder, config: Mapping[str, Any], report: Callable[[str], None]) -> RunFolder:
    """The folder with the checkpoint to go on from, if it has one.

    Raises:
        UserError: there are checkpoints, but none is whole, or it is of another run.
    """
    found: tuple[Path, Facts] | None = newest_good(folder.checkpoints, report)
    if found is None:
        return folder
    path, facts = found
    _refuse_another(f"the checkpoint {path} is of another run", facts.settings, config)
    return RunFolder(folder.path, path, facts.step)


def _refuse_another(what: str, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    differing = differences(saved, config)
    if differing:
        raise UserError(
            f"{what} ({'; '.join(differing[:5])}{'; ...' if len(differing) > 5 else ''}): choose another run.dir "
            "(with init_from=RELEASE to begin from its weights), or say resume=false to put that run aside"
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from training in the run folder while this lasts; makes the folder.

    Raises:
        UserError: another process trains there, or nothing can be written there.
    """
    check_output(path)
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"run.dir {path} cannot be written ({error.strerror}): choose another run.dir") from error
    try:
        try:
            # The process's own, unlike flock's: loader processes do not keep it when this one is killed.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _used(path, handle) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"number {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            # Nothing else has come into it: the run was refused.
            if made and os.listdir(path) == [_LOCK]:  # noqa: PTH208
                (path / _LOCK).unlink()
                path.rmdir()
    finally:
        os.close(handle)


def refuse_used(path: Path) -> None:
    """Nothing, where no other process trains in the run folder; the lock is not taken and nothing is written.

    Raises:
        UserError: one does.
    """
    lock = path / _LOCK
    if not lock.is_file():
        return
    with lock.open("rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise _used(path, file.fileno()) from None


def _used(path: Path, handle: int) -> UserError:
    owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
    return UserError(
        f"another process ({owner}) is training in {path}: wait for it, stop it, or choose another run.dir"
    )


def tidy(folder: RunFolder) -> None:
    """Remove what interrupted writing left, and put checkpoints aside that the run does not go on from."""
    clean(folder.checkpoints)
    for path in later_ones(folder.checkpoints, folder.step):
        set_aside(path)


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


def put_aside(path: Path) -> Path | None:
    """Rename the folder to the first free name of the form `NAME.old-1`; None when there was nothing in it."""
    if not path.is_dir() or not any(one.name != _LOCK for one in path.iterdir()):
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
