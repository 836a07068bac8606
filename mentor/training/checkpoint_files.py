"""Checkpoints on the disk: folders that appear whole or not at all, and that know what should be in them.

`checkpoints/step-0000123/` holds `state.ckpt` (and, of sharded training, a file of each process) and
`checkpoint.json`, which names format, step and settings and has size and SHA-256 of every file. A checkpoint grows
under a name with `.partial`; when all of it is on the disk, one rename makes it valid. So whatever stops a process,
the newest folder without a suffix is whole, unless the disk itself lost bits: then the checksums tell.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mentor import __version__
from mentor.errors import UserError

FORMAT = 1
STATE = "state.ckpt"
FACTS = "checkpoint.json"
PARTIAL = ".partial"
REPLACED = f".replaced{PARTIAL}"
DAMAGED = ".damaged"
_NAME = re.compile(r"step-(\d{7,})")
_CHUNK = 1 << 22


class Damaged(ValueError):
    """A checkpoint is not what it was when it was written."""


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says of itself.

    Attributes:
        step: updates that it has behind it.
        settings: of the run that wrote it, as in its config.yaml.
        files: name -> size in bytes and SHA-256.
        world: processes that wrote it.
    """

    step: int
    settings: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]
    world: int = 1

    @property
    def bytes(self) -> int:
        """What all its files take."""
        return sum(size for size, _ in self.files.values())


class Hashed:
    """A binary file that is written in one go, and the digest of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        """Write and count."""
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self.size += len(view)
        return self._file.write(view)

    def flush(self) -> None:
        """Hand over to the system."""
        self._file.flush()

    @property
    def entry(self) -> tuple[int, str]:
        """Size and SHA-256 so far."""
        return self.size, self._digest.hexdigest()


def checkpoint_name(step: int) -> str:
    """Name of the folder of a checkpoint with so many updates behind it."""
    return f"step-{step:07d}"


def listed(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint in `folder` that was finished, the newest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return sorted(((int(match[1]), path) for match, path in found), reverse=True)


def write_state(path: Path, state: Mapping[str, Any]) -> tuple[int, str]:
    """Write tensors and plain containers to `path` and to the disk; size and SHA-256.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        hashed = Hashed(file)
        torch.save(dict(state), hashed)  # type: ignore[arg-type]  # it wants no more than write and flush
        file.flush()
        os.fsync(file.fileno())
    return hashed.entry


def finish(partial: Path, target: Path, facts: Facts) -> None:
    """Turn the folder `partial`, whose files are on the disk, into the checkpoint `target`.

    Raises:
        OSError: it cannot be written.
    """
    content = {
        "format": FORMAT,
        "version": __version__,
        "torch": torch.__version__,
        "step": facts.step,
        "world": facts.world,
        "settings": dict(facts.settings),
        "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in facts.files.items()},
    }
    with (partial / FACTS).open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(partial)
    replaced = target.with_name(target.name + REPLACED)
    if target.exists():  # of the same update, with less of an accumulation in it
        os.replace(target, replaced)
    os.replace(partial, target)
    sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_checkpoint(target: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> Facts:
    """Write the checkpoint `target` of one file, whole or not at all.

    Raises:
        OSError: it cannot be written; what is there of it has been removed.
    """
    partial = begin(target)
    try:
        facts = Facts(int(state["global_step"]), settings, {STATE: write_state(partial / STATE, state)})
        finish(partial, target, facts)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return facts


def begin(target: Path) -> Path:
    """An empty folder to write the checkpoint `target` into.

    Raises:
        OSError: it cannot be made.
    """
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def read_facts(checkpoint: Path) -> Facts:
    """What the checkpoint says of itself; its other files are not opened.

    Raises:
        Damaged: it cannot be read.
        UserError: a newer version wrote it.
    """
    path = checkpoint / FACTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise UserError(
                f"the checkpoint {checkpoint} has format {content['format']}, written by mentor "
                f"{content.get('version', '?')}, and this is mentor {__version__}, which reads format {FORMAT}: "
                "install the newer one, or say resume=false to start over"
            )
        files = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in content["files"].items()}
        if any(Path(name).name != name for name in files) or not isinstance(content["settings"], dict):
            raise Damaged(f"{FACTS} is not what mentor writes")
        return Facts(int(content["step"]), content["settings"], files, int(content["world"]))
    except FileNotFoundError:
        raise Damaged(f"{FACTS} is missing") from None
    except OSError as error:
        raise Damaged(f"{FACTS}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError | Damaged):
            raise
        raise Damaged(f"{FACTS} is not what mentor writes") from None


def verify(checkpoint: Path) -> Facts:
    """What the checkpoint says of itself, after a look at every byte.

    Raises:
        Damaged: a file is missing, or not what was written.
        UserError: a newer version wrote it.
    """
    facts = read_facts(checkpoint)
    for name, (size, digest) in facts.files.items():
        path = checkpoint / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != size:
            raise Damaged(f"{name} has {path.stat().st_size} bytes instead of {size}")
        if sha256_of(path) != digest:
            raise Damaged(f"the content of {name} has changed")
    return facts


def newest_good(folder: Path, report: Callable[[str], None]) -> tuple[Path, Facts] | None:
    """The newest checkpoint in `folder` that is whole; None when there is none at all.

    Args:
        folder: holds the checkpoints.
        report: takes a line on each one that is damaged.

    Raises:
        UserError: there are checkpoints, but none is whole; or a newer version wrote one.
    """
    found = listed(folder)
    reasons = []
    for number, (_, path) in enumerate(found):
        try:
            return path, verify(path)
        except Damaged as error:
            reasons.append(f"{path.name}: {error}")
            if number + 1 < len(found):
                report(f"the checkpoint {path} is damaged ({error}): going back to the one before it")
    if reasons:
        raise UserError(f"no checkpoint in {folder} can be read ({'; '.join(reasons)}): say resume=false to start over")
    return None


def read_state(checkpoint: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint's tensors and plain containers; nothing else is read, since that could run code.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return torch.load(checkpoint / STATE, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises several kinds for a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the checkpoint {checkpoint} cannot be read ({reason[:120]}): say resume=false to start over"
        ) from error


def prune(folder: Path, keep: int, forever: int = 0) -> None:
    """Remove all checkpoints but the newest `keep`, and but those whose step is a multiple of `forever`."""
    for step, path in listed(folder)[keep:]:
        if not (forever and step % forever == 0):
            remove(path)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; interrupted, it leaves nothing that looks like one."""
    doomed = checkpoint.with_name(checkpoint.name + PARTIAL)
    try:
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(checkpoint, doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def restore(folder: Path) -> None:
    """Give a checkpoint its name back that was to be replaced by a later one of the same update, and was not."""
    for path in folder.glob(f"*{REPLACED}"):
        target = path.with_name(path.name.removesuffix(REPLACED))
        if not target.exists():
            os.replace(path, target)


def clean(folder: Path) -> None:
    """Remove what interrupted writing has left in `folder`."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.endswith(PARTIAL) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint so that nothing takes it for a good one, and nothing is lost; its new place."""
    number = 1
    while (aside := checkpoint.with_name(f"{checkpoint.name}{DAMAGED}-{number}")).exists():
        number += 1
    os.replace(checkpoint, aside)
    return aside


def later_ones(folder: Path, step: int) -> Iterable[Path]:
    """The checkpoints in `folder` beyond a step."""
    return [path for other, path in listed(folder) if other > step]


def sha256_of(path: Path) -> str:
    """The file's digest."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make sure that renamed files of `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
