"""Lines about pictures: one each over all files, half ones dropped, one writer a file."""

import errno
import json
import os
from pathlib import Path

import pytest

from mentor.drawing import records
from mentor.drawing.ranks import Rank
from mentor.drawing.records import Records
from mentor.errors import UserError


def names(path: Path) -> list[str]:
    return [json.loads(line)["file"] for line in path.read_text().splitlines()]


def test_a_line_is_on_the_disk_once_it_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    path = tmp_path / "pictures.jsonl"
    monkeypatch.setattr(records.os, "fsync", lambda handle: synced.append(path.read_bytes()))
    with Records(tmp_path, Rank()) as lines:
        assert lines.add({"file": "a.png", "prompt": "é"}) == '{"file": "a.png", "prompt": "é"}'
        assert synced == ['{"file": "a.png", "prompt": "é"}\n'.encode()]


def test_no_picture_has_two_lines_whoever_wrote_the_first(tmp_path: Path) -> None:
    for rank, file in ((Rank(0, 2), "a.png"), (Rank(1, 2), "b.png"), (Rank(), "c.png")):
        with Records(tmp_path, rank) as lines:
            lines.add({"file": file})
            lines.add({"file": file})
    with Records(tmp_path, Rank(0, 3)) as lines:
        assert lines.known == {"a.png", "b.png", "c.png"}
        for file in ("a.png", "b.png", "c.png", "d.png"):
            lines.add({"file": file})
    found = {path.name: names(path) for path in tmp_path.iterdir()}
    assert found == {
        "pictures.rank-0000-of-0002.jsonl": ["a.png"],
        "pictures.rank-0001-of-0002.jsonl": ["b.png"],
        "pictures.jsonl": ["c.png"],
        "pictures.rank-0000-of-0003.jsonl": ["d.png"],
    }


@pytest.mark.parametrize("half", ['{"file": "b.p', '{"file": "b.png"}', '{"file": "b.png", "prompt": "\xc3'])
def test_a_half_line_is_dropped_and_can_be_written_again(tmp_path: Path, half: str) -> None:
    path = tmp_path / "pictures.jsonl"
    path.write_bytes(b'{"file": "a.png"}\n' + half.encode("latin-1"))
    with Records(tmp_path, Rank()) as lines:
        assert lines.known == {"a.png"}
        lines.add({"file": "b.png"})
    assert names(path) == ["a.png", "b.png"]


def test_half_lines_of_another_number_of_processes_are_the_first_ones_to_drop(tmp_path: Path) -> None:
    earlier, beside = tmp_path / "pictures.jsonl", tmp_path / "pictures.rank-0000-of-0002.jsonl"
    earlier.write_text('{"file": "a.png"}\n{"fi')
    beside.write_text('{"file": "b.png"}\n{"fi')
    with Records(tmp_path, Rank(1, 2)) as lines:
        assert lines.known == {"a.png", "b.png"}
    assert all(path.read_text().endswith('{"fi') for path in (earlier, beside)), "the second process leaves them"
    with Records(tmp_path, Rank(0, 2)):
        assert names(earlier) == ["a.png"] and names(beside) == ["b.png"]


def test_a_second_process_of_the_same_number_is_refused_and_the_dead_are_forgotten(tmp_path: Path) -> None:
    with Records(tmp_path, Rank()):
        with pytest.raises(UserError, match=r"another process draws this job .*pictures.jsonl is in use"):
            Records(tmp_path, Rank())
        with pytest.raises(UserError, match="another process draws this job"):
            Records(tmp_path, Rank(0, 2))
    with Records(tmp_path, Rank(0, 2)), Records(tmp_path, Rank(1, 2)):
        pass


def test_a_disk_without_locks_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(records.fcntl, "flock", none)
    with Records(tmp_path, Rank()) as lines:
        lines.add({"file": "a.png"})


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "pictures.jsonl").write_text('{"file": "a.png"}\nnothing\n')
    with pytest.raises(UserError, match=r"pictures.jsonl line 2 is no record of a picture: take that line out"):
        Records(tmp_path, Rank())


def test_a_full_disk_is_named_and_the_half_line_goes_later(tmp_path: Path) -> None:
    class Full:
        def __init__(self, file: object) -> None:
            self.file, self.left = file, 10

        def write(self, data: bytes) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = self.file.write(data[: self.left])
            self.left -= written
            return written

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    with Records(tmp_path, Rank()) as lines:
        lines._file = Full(lines._file)
        with pytest.raises(UserError, match=r"cannot write .*pictures.jsonl \(No space left on device\): make room"):
            lines.add({"file": "a.png"})
    with Records(tmp_path, Rank()) as lines:
        lines.add({"file": "a.png"})
    assert names(tmp_path / "pictures.jsonl") == ["a.png"]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pictures-of-mine.jsonl").write_text("no record")
    with Records(tmp_path, Rank()) as lines:
        assert lines.known == set()
    assert (tmp_path / "pictures-of-mine.jsonl").read_text() == "no record"
