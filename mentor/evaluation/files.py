"""Result files, each whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from mentor.data.storage.whole import whole_file
from mentor.errors import UserError


def write_files(files: Mapping[str | Path, bytes], output: Path, option: str) -> None:
    """Write files into a folder, in their order; earlier ones are replaced.

    Args:
        files: path within the folder -> content.
        output: the folder, which need not exist.
        option: how the command that writes is told of it, for the message.

    Raises:
        UserError: a file cannot be written.
    """
    for name, content in files.items():
        path = output / name
        try:
            with whole_file(path) as file:
                file.write(content)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): choose another {option} or make room") from error
