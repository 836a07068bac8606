"""Tars that cannot be indexed: damaged, packed, unfinished or wrongly named ones, and folders in use."""

import os
from pathlib import Path

import pytest
from foreigntars import captions, everything, members, run, write_tars
from layouts import write_tar

from mentor.data.storage.manifest import lock
from mentor.data.storage.tarsets import TarFields
from mentor.errors import UserError

pytestmark = [pytest.mark.fault(14)]


def test_two_runs_at_once_on_one_folder_are_refused(tmp_path: Path) -> None:
    write_tars(tmp_path)
    with lock(tmp_path), pytest.raises(UserError, match=r"another process .* is writing to"):
        run(tmp_path)


def test_a_damaged_tar_is_refused_by_name_or_left_out(tmp_path: Path) -> None:
    paths = write_tars(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:3000])
    with pytest.raises(UserError, match=r"1 of 3 tars cannot be used: .*00001\.tar: cut within .*skip_damaged=true"):
        run(tmp_path)
    lines: list[str] = []
    manifest = run(tmp_path, skip_damaged=True, log=lines.append).manifest
    (row,) = manifest["left_out"]
    assert row["path"] == "00001.tar" and row["reason"].startswith("cut within")
    assert len(lines) == 1 and "00001.tar" in lines[0] and "damaged" in lines[0]
    assert captions(tmp_path) == {key: value for key, value in everything().items() if not key.startswith("00001")}
    assert run(tmp_path, skip_damaged=True).found


def test_a_damaged_tar_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    paths = write_tars(tmp_path)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(bytes(2000) + whole[2000:])
    with pytest.raises(UserError, match="cannot be used"):
        run(tmp_path)
    paths[1].write_bytes(whole)
    run(tmp_path)
    assert captions(tmp_path) == everything()


def test_nothing_but_damaged_tars_are_refused(tmp_path: Path) -> None:
    for path in write_tars(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"every tar is damaged, .*00000\.tar among them"):
        run(tmp_path, skip_damaged=True)


def test_tars_that_img2dataset_has_not_completed_are_left_out(tmp_path: Path) -> None:
    paths = write_tars(tmp_path / "made")
    write_tar(tmp_path / "own/x.tar", members("x"))
    for path in paths[:2]:
        path.with_name(f"{path.stem}_stats.json").write_text("{}")
    lines: list[str] = []
    patterns = [tmp_path / "made", tmp_path / "own"]
    manifest = run(*patterns, output=tmp_path / "index", log=lines.append).manifest
    assert manifest["left_out"] == [{"path": "made/00002.tar", "reason": "unfinished"}]
    assert {row["path"] for row in manifest["files"]} == {"made/00000.tar", "made/00001.tar", "own/x.tar"}
    assert any("00002.tar" in line and "img2dataset" in line for line in lines)
    # Once it is complete, the data set is another.
    paths[2].with_name("00002_stats.json").write_text("{}")
    with pytest.raises(UserError, match="other tars"):
        run(*patterns, output=tmp_path / "index")


def test_nothing_but_unfinished_tars_are_refused(tmp_path: Path) -> None:
    paths = write_tars(tmp_path)
    (tmp_path / "00001_stats.json").write_text("{}")
    with pytest.raises(UserError, match=r"every tar is unfinished, .*00000\.tar among them"):
        run(paths[0], paths[2])


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TAR.ZST", "a.tar.xz"])
def test_packed_tars_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=f"{name} is compressed.*unpack it"):
        run(tmp_path / "*")


def test_a_packed_tar_under_the_name_of_a_plain_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b\x08\x00" + bytes(range(256)) * 8)
    with pytest.raises(UserError, match=r"a\.tar.*compressed: unpack it"):
        run(tmp_path)


def test_wrong_paths_are_refused_by_name(tmp_path: Path) -> None:
    write_tars(tmp_path)
    cases: list[tuple[list[str], str]] = [
        ([], "no tars were given"),
        ([f"{tmp_path}/none-*.tar"], "no file matches"),
        ([f"{tmp_path}/none.tar"], "none.tar cannot be read"),
        (["pipe:cat x.tar"], "cannot be read: allowed are"),
        ([f"{tmp_path}/00000.tar::x.tar"], "nothing is piped or chained"),
    ]
    (tmp_path / "empty").mkdir()
    cases.append(([f"{tmp_path}/empty"], "no tars were given"))
    (tmp_path / "words.txt").write_text("x")
    cases.append(([f"{tmp_path}/*"], "is no tar: give paths or patterns that end in .tar"))
    for paths, words in cases:
        with pytest.raises(UserError, match=words):
            run(*paths)
    assert not (tmp_path / "manifest.json").exists() and not (tmp_path / ".work").exists()


def test_tars_without_a_sample_are_refused_with_the_reasons(tmp_path: Path) -> None:
    write_tars(tmp_path)
    with pytest.raises(UserError, match=r"there are no records to write .dropped: 24 no picture"):
        run(tmp_path, fields=TarFields(image=("png",)))
    with pytest.raises(UserError, match="dropped: 24 no caption"):
        run(tmp_path, fields=TarFields(caption="json.prompt"))
    # Nothing of that is in the way of the right settings.
    run(tmp_path)
    assert captions(tmp_path) == everything()


def test_what_lies_in_the_output_already_is_spared(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no data set"):
        run(tmp_path / "tars", output=tmp_path / "other")
    (tmp_path / "tars/manifest.json").write_text('{"version": "of another program"}')
    with pytest.raises(UserError, match=r"damaged or none of this program's: delete .*manifest.json .the tars stay"):
        run(tmp_path / "tars")
    (tmp_path / "tars/manifest.json").unlink()
    (tmp_path / "tars/unfinished.json").write_text('{"kind": "records"}')
    with pytest.raises(UserError, match="unfinished build of something else"):
        run(tmp_path / "tars")
    (tmp_path / "tars/unfinished.json").unlink()
    (tmp_path / "tars/00009.tar.partial").write_bytes(b"a download of somebody else")
    run(tmp_path / "tars")
    assert (tmp_path / "tars/00009.tar.partial").exists()


def test_a_folder_that_cannot_be_written_asks_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tars(tmp_path)
    # Permissions are nothing to a test that runs as root.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written: say where the index goes with output=DIR"):
        run(tmp_path)


def test_a_tar_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    paths = write_tars(tmp_path)
    content = paths[2].read_bytes()

    def grow(done: int, total: int) -> None:
        paths[2].write_bytes(content + bytes(10240))

    with pytest.raises(UserError, match=r"00002\.tar changed while it was read"):
        run(tmp_path, report=grow)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = write_tars(tmp_path, tars=1)[0]
    path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar"))
    with pytest.raises(UserError, match=r"not UTF-8.*rename"):
        run(tmp_path)
