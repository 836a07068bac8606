"""Checkpoints on the disk: whole or not at all, and what happens when the disk did not keep its word."""

import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from mentor.errors import UserError
from mentor.training import checkpoint_files
from mentor.training.checkpoint_files import (
    FACTS,
    STATE,
    Damaged,
    checkpoint_name,
    clean,
    listed,
    newest_good,
    prune,
    read_state,
    remove,
    restore,
    set_aside,
    verify,
    write_checkpoint,
)

SETTINGS = {"name": "a", "optimizer": {"lr": 0.1}}


class Payload:
    """Something that only running code could bring back."""


def write(folder: Path, step: int) -> Path:
    target = folder / checkpoint_name(step)
    write_checkpoint(target, {"global_step": step, "weights": torch.arange(1000) + step, "list": [1, "b"]}, SETTINGS)
    return target


def damage(checkpoint: Path, how: str) -> None:
    state = checkpoint / STATE
    content = state.read_bytes()
    match how:
        case "half":
            state.write_bytes(content[: len(content) // 2])
        case "empty":
            state.write_bytes(b"")
        case "noise":
            state.write_bytes(random.Random(0).randbytes(len(content)))
        case "one bit":
            state.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])
        case "no state":
            state.unlink()
        case "no facts":
            (checkpoint / FACTS).unlink()
        case "odd facts":
            (checkpoint / FACTS).write_text('{"format": 1, "files": 5}')
        case "half facts":
            (checkpoint / FACTS).write_text((checkpoint / FACTS).read_text()[:100])


def test_a_checkpoint_comes_back_with_what_it_says_of_itself(tmp_path: Path) -> None:
    target = write(tmp_path / "new", 7)
    state = read_state(target)
    assert torch.equal(state["weights"], torch.arange(1000) + 7)
    assert state["list"] == [1, "b"]
    facts = verify(target)
    assert (facts.step, facts.settings, facts.world) == (7, SETTINGS, 1)
    assert facts.bytes == (target / STATE).stat().st_size
    assert sorted(path.name for path in target.parent.iterdir()) == ["step-0000007"]
    assert sorted(path.name for path in target.iterdir()) == [FACTS, STATE]


@pytest.mark.fault(4)
@pytest.mark.parametrize(
    "how", ["half", "empty", "noise", "one bit", "no state", "no facts", "odd facts", "half facts"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path: Path, how: str) -> None:
    older, newer = write(tmp_path, 7), write(tmp_path, 12)
    damage(newer, how)
    with pytest.raises(Damaged):
        verify(newer)
    lines: list[str] = []
    found = newest_good(tmp_path, lines.append)
    assert found is not None
    assert found[0] == older
    assert found[1].step == 7
    assert len(lines) == 1
    assert "step-0000012 is damaged" in lines[0]
    damage(older, how)
    with pytest.raises(UserError, match=r"step-0000012: .*step-0000007: .*resume=false"):
        newest_good(tmp_path, lines.append)


def test_no_checkpoint_at_all_is_no_mistake(tmp_path: Path) -> None:
    assert newest_good(tmp_path, print) is None
    assert newest_good(tmp_path / "nowhere", print) is None


@pytest.mark.fault(2)
@pytest.mark.parametrize("moment", ["write_state", "finish", "replace"])
def test_what_stops_the_writing_leaves_the_earlier_checkpoint_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    older = write(tmp_path, 7)
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "replace") if moment == "replace" else (checkpoint_files, moment)), kill)
        patch.setattr(checkpoint_files.shutil, "rmtree", lambda *_, **__: None)  # nothing tidies up after kill -9
        with pytest.raises(Killed):
            write(tmp_path, 12)
    assert [path for _, path in listed(tmp_path)] == [older]
    found = newest_good(tmp_path, print)
    assert found is not None
    assert found[0] == older
    assert (tmp_path / "step-0000012.partial").is_dir()
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000007"]
    newer = write(tmp_path, 12)
    assert verify(newer).step == 12


@pytest.mark.fault(3)
def test_a_full_disk_leaves_the_earlier_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = write(tmp_path, 7)

    def fail(content: object, file) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000007"]
    assert verify(older).step == 7


def test_the_same_step_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path, 7)
    target = tmp_path / checkpoint_name(7)
    write_checkpoint(target, {"global_step": 7, "more": True}, SETTINGS)
    assert read_state(target)["more"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000007"]


@pytest.mark.fault(2)
def test_a_checkpoint_that_was_about_to_be_replaced_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write(tmp_path, 7)
    renamed: list[Path] = []

    def only_once(old: Path, new: Path) -> None:
        if renamed:
            raise KeyboardInterrupt
        renamed.append(new)
        old.rename(new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", only_once)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(target, {"global_step": 7, "more": True}, SETTINGS)
    assert not target.exists()
    restore(tmp_path)
    assert verify(target).step == 7
    assert "more" not in read_state(target)
    # Where the later one had its name already, that one counts.
    write_checkpoint(target, {"global_step": 7, "more": True}, SETTINGS)
    shutil.copytree(target, renamed[0])
    restore(tmp_path)
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000007"]
    assert read_state(target)["more"]


@pytest.mark.fault(16)
def test_nothing_that_needs_code_is_read(tmp_path: Path) -> None:
    target = write(tmp_path, 7)
    torch.save({"payload": Payload()}, target / STATE)
    with pytest.raises(UserError, match="cannot be read"):
        read_state(target)


@pytest.mark.fault(16)
def test_facts_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    target = write(tmp_path, 7)
    content = json.loads((target / FACTS).read_text())
    content["files"]["../outside"] = {"bytes": 0, "sha256": ""}
    (target / FACTS).write_text(json.dumps(content))
    with pytest.raises(Damaged, match="not what mentor writes"):
        verify(target)


def test_a_checkpoint_of_a_newer_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    write(tmp_path, 7)
    target = write(tmp_path, 12)
    content = json.loads((target / FACTS).read_text())
    (target / FACTS).write_text(json.dumps(content | {"format": 99, "version": "9.9", "files": "in another form"}))
    with pytest.raises(UserError, match=r"format 99, written by mentor 9\.9, and this is mentor .* install the newer"):
        newest_good(tmp_path, print)


def test_a_bounded_number_is_kept_and_multiples_for_ever(tmp_path: Path) -> None:
    for step in range(10, 70, 10):
        write(tmp_path, step)
    prune(tmp_path, keep=2, forever=20)
    assert [step for step, _ in listed(tmp_path)] == [60, 50, 40, 20]
    prune(tmp_path, keep=1)
    assert [step for step, _ in listed(tmp_path)] == [60]
    remove(tmp_path / checkpoint_name(60))
    remove(tmp_path / checkpoint_name(60))
    assert list(tmp_path.iterdir()) == []


def test_setting_aside_loses_nothing(tmp_path: Path) -> None:
    for number in (1, 2):
        aside = set_aside(write(tmp_path, 7))
        assert aside.name == f"step-0000007.damaged-{number}"
        assert read_state(aside)["global_step"] == 7
    assert listed(tmp_path) == []


def test_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, 12_345_678)
    for name in ("step-7", "step-0000009.partial", "step-0000009.damaged-1", "last.ckpt", "step-abcdefg"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-0000010").write_text("a file")
    assert [step for step, _ in listed(tmp_path)] == [12_345_678]
