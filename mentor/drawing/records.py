"""What a batch job writes beside its pictures: a line for each, and which job it is."""

import fcntl
import hashlib
import io
import json
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mentor.data.storage.whole import unwritable, whole_file
from mentor.drawing.model import Model
from mentor.drawing.prompts import PromptLine
from mentor.drawing.ranks import Rank
from mentor.errors import UserError

JOB = "job.json"
VERSION = 1
_LINES = re.compile(r"pictures(?:\.rank-(\d+)-of-(\d+))?\.jsonl")


def lines_name(rank: Rank) -> str:
    """The name of the file that a process writes its lines into."""
    return "pictures.jsonl" if rank.world == 1 else f"pictures.rank-{rank.number:04d}-of-{rank.world:04d}.jsonl"


def is_begun(folder: Path, model: Model, lines: Sequence[PromptLine]) -> bool:
    """Whether the folder holds this job already; if not, it may be begun there.

    Raises:
        UserError: it holds another job.
    """
    path = folder / JOB
    own = describe_job(model, lines)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != own["format"]:
            raise ValueError("it is no record of one")
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise UserError(f"{path} does not say which job this is ({error}): choose another --output") from error
    if found.get("version") != VERSION:
        raise UserError(
            f"{path} has format version {found.get('version')}, this is {VERSION}: choose another --output, "
            "or go on with the mentor that began it"
        )
    different = [name for name in own if found.get(name) != own[name]]
    if different:
        shown = ", ".join(
            f"{name} {found.get(name)} there and {own[name]} here" if name in ("model", "precision") else name
            for name in different
        )
        raise UserError(
            f"{folder} holds another job ({shown} differ): choose another --output, or give that job's own settings"
        )
    return True


def begin(folder: Path, model: Model, lines: Sequence[PromptLine]) -> None:
    """Write down which job the folder holds, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / JOB
    try:
        # Processes of several machines may begin a job at the same time.
        with whole_file(path, f"{socket.gethostname()}.{os.getpid()}") as file:
            file.write((json.dumps(describe_job(model, lines), indent=2) + "\n").encode())
    except OSError as error:
        raise unwritable(path, error) from error


def describe_job(model: Model, lines: Sequence[PromptLine]) -> dict[str, Any]:
    """What a job is: those with the same description make the same pictures under the same names."""
    return {
        "format": "mentor batch job",
        "version": VERSION,
        "prompts": _digest([[line.number, line.prompt, line.written, line.stem] for line in lines]),
        "seeds": _digest([[line.seeds.start, len(line.seeds)] for line in lines]),
        "sampling": _digest([line.sampling.model_dump(mode="json") for line in lines]),
        "model": model.fingerprint,
        "precision": model.precision,
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


class Records:
    """The lines about finished pictures, each in one file only: this process's own, or one of an earlier start's.

    Attributes:
        known: names of the pictures that have a line in any of the job's files.

    Args:
        folder: the job's.
        rank: this process.

    Raises:
        UserError: another process writes there already, or a file cannot be read or written.
    """

    def __init__(self, folder: Path, rank: Rank) -> None:
        self.path = folder / lines_name(rank)
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            if not _lock(self._file, fcntl.LOCK_EX):
                raise _used(self.path)
            self.known = self._read_all(folder, rank)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, record: dict[str, Any]) -> str:
        """Write the line of a picture, unless it has one; the line.

        Raises:
            UserError: it cannot be written.
        """
        line = json.dumps(record, ensure_ascii=False)
        if record["file"] in self.known:
            return line
        rest = (line + "\n").encode()
        try:
            # A kill leaves a part of a line at worst, which the next start drops.
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.known.add(record["file"])
        return line

    def _read_all(self, folder: Path, rank: Rank) -> set[str]:
        """The pictures of all lines in the folder; half lines of processes that are no more are dropped."""
        known: set[str] = set()
        for path in sorted(folder.glob("pictures*.jsonl")):
            match = _LINES.fullmatch(path.name)
            if match is None:
                continue
            world = int(match[2] or 1)
            # The others of this very start write into theirs now; whoever wrote with another number of processes must
            # have ended, and the first process tidies up.
            if world != rank.world:
                self._refuse_used(path)
            if path == self.path or (world != rank.world and rank.number == 0):
                _drop_half_line(path)
            known |= _read_names(path)
        return known

    @staticmethod
    def _refuse_used(path: Path) -> None:
        with path.open("rb") as file:
            if not _lock(file, fcntl.LOCK_SH):
                raise _used(path)


def _lock(file: io.IOBase, kind: int) -> bool:
    """Whether nobody else holds the file; then this process does until it is closed. The system forgets the dead's."""
    try:
        fcntl.flock(file.fileno(), kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # there are shared disks that know no locks
        return True
    return True


def _drop_half_line(path: Path) -> None:
    """Cut off what stands after the last whole line."""
    try:
        with path.open("r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
    except OSError as error:
        raise unwritable(path, error) from error


def _read_names(path: Path) -> set[str]:
    """The pictures that the whole lines of a file are about."""
    names: set[str] = set()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): choose another --output") from error
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            names.add(json.loads(line)["file"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} line {number} is no record of a picture: take that line out, it will be written again"
            ) from error
    return names


def _used(path: Path) -> UserError:
    return UserError(f"another process draws this job at the moment ({path} is in use): wait for it or end it")
