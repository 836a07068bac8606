import os
from pathlib import Path

import pytest

from mentor.errors import UserError, check_output


def test_a_place_that_can_be_written_is_accepted_and_not_made(tmp_path: Path) -> None:
    check_output(tmp_path)
    check_output(tmp_path / "new" / "below")
    assert not list(tmp_path.iterdir())


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"below cannot be written: .*file is a file; choose another folder"):
        check_output(tmp_path / "file" / "below")


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is not asked: some users may write everywhere."""
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
    with pytest.raises(UserError, match=r"no permission in .*; choose another folder"):
        check_output(tmp_path / "new")
