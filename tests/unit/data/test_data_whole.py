"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from mentor.data.storage.whole import whole_file


def test_a_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "made" / "x"
    with whole_file(target) as file:
        file.write(b"half")
        assert not target.exists()
        file.write(b" and whole")
    assert target.read_bytes() == b"half and whole" and list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")

    def fail() -> None:
        with whole_file(target) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_owners_do_not_write_into_each_others_halves(tmp_path: Path) -> None:
    with whole_file(tmp_path / "x", "1") as first, whole_file(tmp_path / "x", "2") as second:
        first.write(b"first")
        second.write(b"second")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.1.partial", "x.2.partial"]
    assert (tmp_path / "x").read_bytes() == b"first", "the last to finish"
