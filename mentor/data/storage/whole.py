"""Files that appear whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mentor.errors import UserError

PARTIAL = ".partial"


@contextmanager
def whole_file(target: Path, owner: str = "") -> Iterator[BinaryIO]:
    """A file to write; it takes its name when all is written and on the disk. If anything fails, nothing is left.

    Args:
        target: where it is to be; missing folders are made.
        owner: sets apart processes that may write the same file at the same time.

    Raises:
        OSError: it cannot be written.
    """
    partial = target.with_name(f"{target.name}{owner and f'.{owner}'}{PARTIAL}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def unwritable(path: Path, error: OSError) -> UserError:
    """What to tell people when a file of theirs could not be written."""
    first = "make room, or " if error.errno == errno.ENOSPC else ""
    return UserError(f"cannot write {path} ({error.strerror or error}): {first}choose a folder that can be written")
