import json
from pathlib import Path

import pytest
import torch

from mentor.config import read_yaml
from mentor.errors import UserError
from mentor.training.folder import differences, inspect_folder, put_aside, save_config

CONFIG = {"name": "a", "resume": True, "run": {"dir": "x"}, "optimizer": {"lr": 0.1}, "trainer": {"max_steps": 10}}


def changed(**changes: object) -> dict[str, object]:
    return CONFIG | changes


def write_checkpoint(folder: Path, step: int) -> None:
    (folder / "checkpoints").mkdir()
    torch.save({"global_step": step}, folder / "checkpoints" / "last.ckpt")


def write_release(folder: Path) -> None:
    (folder / "release").mkdir()
    (folder / "release" / "config.json").write_text(json.dumps({}))


@pytest.mark.parametrize("exists", [False, True])
def test_an_empty_folder_starts_afresh(tmp_path: Path, exists: bool) -> None:
    path = tmp_path if exists else tmp_path / "run"
    folder = inspect_folder(path, CONFIG)
    assert (folder.step, folder.finished, folder.checkpoint) == (0, False, None)
    assert path.exists() == exists


def test_the_settings_come_back(tmp_path: Path) -> None:
    save_config(tmp_path / "run", CONFIG)
    assert read_yaml(tmp_path / "run" / "config.yaml") == CONFIG
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIG)
    write_checkpoint(tmp_path, 7)
    folder = inspect_folder(tmp_path, CONFIG)
    assert folder.step == 7
    assert folder.checkpoint == tmp_path / "checkpoints" / "last.ckpt"


def test_a_run_with_its_release_is_finished(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIG)
    write_checkpoint(tmp_path, 10)
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


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIG)
    write_checkpoint(tmp_path, 7)
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read .*resume=false"):
        inspect_folder(tmp_path, CONFIG)


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
