import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mentor.config import read_yaml
from mentor.errors import UserError
from mentor.training.checkpoint_files import STATE, checkpoint_name, write_checkpoint
from mentor.training.folder import RunFolder, differences, inspect_folder, locked, put_aside, save_config, tidy

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {"name": "a", "resume": True, "run": {"dir": "x"}, "optimizer": {"lr": 0.1}, "trainer": {"max_steps": 10}}


def changed(**changes: object) -> dict[str, object]:
    return CONFIG | changes


def add_checkpoint(folder: Path, step: int, settings: dict[str, object] = CONFIG) -> Path:
    target = folder / "checkpoints" / checkpoint_name(step)
    write_checkpoint(target, {"global_step": step}, settings)
    return target


def write_release(folder: Path) -> None:
    (folder / "release").mkdir()
    (folder / "release" / "config.json").write_text(json.dumps({}))


@pytest.mark.parametrize("exists", [False, True])
def test_an_empty_folder_starts_afresh(tmp_path: Path, exists: bool) -> None:
    path = tmp_path if exists else tmp_path / "run"
    folder = inspect_folder(path, CONFIG)
    assert folder == RunFolder(path)
    assert path.exists() == exists


def test_the_settings_come_back(tmp_path: Path) -> None:
    save_config(tmp_path / "run", CONFIG)
    assert read_yaml(tmp_path / "run" / "config.yaml") == CONFIG
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIG)
    newest = add_checkpoint(tmp_path, 7)
    folder = inspect_folder(tmp_path, CONFIG)
    assert folder.step == 7
    assert folder.checkpoint == newest


def test_a_run_with_its_release_is_finished(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIG)
    add_checkpoint(tmp_path, 10)
    write_release(tmp_path)
    assert inspect_folder(tmp_path, CONFIG).finished
    longer = inspect_folder(tmp_path, changed(trainer={"max_steps": 20}))
    assert (longer.finished, longer.step) == (False, 10)


def test_another_run_is_refused_with_keys_and_both_values(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIG)
    with pytest.raises(UserError, match=r"name: 'a' there, 'b' here; optimizer.lr: 0.1 there, 0.2 here") as caught:
        inspect_folder(tmp_path, changed(name="b", optimizer={"lr": 0.2}))
    assert "\n" not in str(caught.value)


def test_settings_that_change_nothing_learned_may_differ() -> None:
    now = changed(resume=False, run={"dir": "y"}, trainer={"max_steps": 20, "devices": 2})
    assert differences(CONFIG, now) == []


def test_a_setting_that_is_not_there_differs() -> None:
    assert differences(CONFIG, changed(freeze=["a"])) == ["freeze: absent there, ['a'] here"]


def test_files_that_are_no_run_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"no config\.yaml"):
        inspect_folder(tmp_path, CONFIG)
    with pytest.raises(UserError, match="is a file"):
        inspect_folder(tmp_path / "letter.txt", CONFIG)


@pytest.mark.fault(4)
def test_a_damaged_checkpoint_is_named_and_put_aside(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIG)
    add_checkpoint(tmp_path, 7)
    newest = add_checkpoint(tmp_path, 9)
    (newest / STATE).write_bytes(b"")
    lines: list[str] = []
    folder = inspect_folder(tmp_path, CONFIG, lines.append)
    assert folder.step == 7
    assert "step-0000009 is damaged" in lines[0]
    (folder.checkpoints / "step-0000008.partial").mkdir()
    tidy(folder)
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["step-0000007", "step-0000009.damaged-1"]


@pytest.mark.fault(4)
def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIG)
    (add_checkpoint(tmp_path, 7) / STATE).write_bytes(b"half")
    with pytest.raises(UserError, match=r"step-0000007: .*resume=false"):
        inspect_folder(tmp_path, CONFIG)


@pytest.mark.fault(8)
def test_a_checkpoint_of_another_run_is_refused_with_both_values(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIG)
    add_checkpoint(tmp_path, 7, changed(optimizer={"lr": 0.5}))
    with pytest.raises(UserError, match=r"optimizer.lr: 0.5 there, 0.1 here.*init_from=RELEASE.*resume=false"):
        inspect_folder(tmp_path, CONFIG)


def test_the_folder_is_one_run_s_at_a_time(tmp_path: Path) -> None:
    """In processes of their own: a process's lock does not keep out itself."""
    path = tmp_path / "new" / "run"
    program = (
        "import sys; from pathlib import Path; from mentor.training.folder import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert first.stdout is not None
    assert first.stdout.readline() == "in\n"
    with pytest.raises(UserError, match=rf"another process \(number {first.pid} on .*\) is training in .*run.dir"):
        locked(path).__enter__()
    first.kill()
    first.wait()
    with locked(path):
        save_config(path, CONFIG)
    assert path.is_dir()


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError), locked(tmp_path / "run"):
        raise UserError("no")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no permission"), locked(tmp_path / "run"):
        pass


def test_putting_aside_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert put_aside(path) is None
    for number in (1, 2):
        path.mkdir()
        (path / "a").write_text(str(number))
        aside = put_aside(path)
        assert aside == tmp_path / f"run.old-{number}"
        assert aside is not None
        assert (aside / "a").read_text() == str(number)
        assert not path.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*choose another run\.dir"):
        save_config(tmp_path / "file" / "run", CONFIG)
