"""Runs that were stopped or lost something: what they go on with is what they would have come to."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from runs import differing, newest, rows
from tiny import tiny_image_tokenizer

from mentor.errors import UserError
from mentor.models.checkpoint import Card, save_image_tokenizer
from mentor.training.checkpoint_files import STATE, listed
from mentor.training.config import TrainConfig
from mentor.training.generator_module import GeneratorModule
from mentor.training.run import train

Settings = Callable[..., TrainConfig]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.fault(9)
@pytest.mark.parametrize("batch", [6, 7, 8])
def test_a_run_stopped_within_an_accumulation_goes_on_there(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    changes = ("trainer.max_steps=5", "trainer.accumulate=3", "backbone.dropout=0.1", "trainer.log_every=2")
    train(settings(*changes, f"run.dir={tmp_path / 'whole'}"))
    original = GeneratorModule.training_step
    seen: list[int] = []

    def training_step(self: GeneratorModule, *arguments) -> torch.Tensor:
        number = self.trainer.datamodule.consumed - 1
        if number == batch and number not in seen:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(number)
        return original(self, *arguments)

    monkeypatch.setattr(GeneratorModule, "training_step", training_step)
    with pytest.raises(SystemExit):
        train(settings(*changes))
    assert seen[-1] == batch, "stopped at the next batch, not at the next update"
    state = newest(tmp_path / "run")
    assert state["global_step"] == (batch + 1) // 3
    assert ("gradients" in state) == (batch != 8)
    train(settings(*changes))
    assert seen == list(range(15))
    assert differing(tmp_path / "run", tmp_path / "whole") == []
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.fault(9)
@pytest.mark.parametrize("where", ["on_validation_epoch_start", "validation_step", "on_validation_epoch_end"])
def test_a_validation_that_was_cut_short_is_made_up_for(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    changes = ("trainer.validate_every=2", "trainer.max_steps=6", "data.validation_limit=4", "backbone.dropout=0.1")
    train(settings(*changes, f"run.dir={tmp_path / 'whole'}"))
    stopped: list[int] = []
    original = getattr(GeneratorModule, where)

    def stop(self: GeneratorModule, *arguments):
        if self.trainer.global_step == 4 and not stopped:
            stopped.append(4)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(GeneratorModule, where, stop)
    with pytest.raises(SystemExit) as caught:
        train(settings(*changes))
    assert caught.value.code == 128 + signal.SIGTERM
    assert [row["step"] for row in rows(tmp_path / "run") if row["val/loss"]] == ["2"]
    train(settings(*changes))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert differing(tmp_path / "run", tmp_path / "whole") == []
    for picture in (tmp_path / "whole" / "samples").iterdir():
        assert (tmp_path / "run" / "samples" / picture.name).read_bytes() == picture.read_bytes()


@pytest.mark.fault(9)
def test_a_validation_that_was_finished_is_not_repeated(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ("trainer.validate_every=2", "trainer.checkpoint_every=2", "data.validation_limit=4")
    train(settings("trainer.max_steps=4", *changes))
    steps: list[int] = []
    original = GeneratorModule.on_validation_epoch_end
    monkeypatch.setattr(
        GeneratorModule,
        "on_validation_epoch_end",
        lambda self: (steps.append(self.trainer.global_step), original(self))[1],
    )
    train(settings("trainer.max_steps=7", *changes))
    assert steps == [6, 7]


@pytest.mark.fault(9)
def test_a_run_stopped_where_an_epoch_ends_or_in_the_next_goes_on_there(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One task on 108 samples in batches of 12: the first epoch has nine steps."""
    alone = ("data.mixture.segment=0", "data.mixture.text_to_image=0", "data.batch_size=12")
    changes = (*alone, "trainer.max_steps=12")
    train(settings(*changes, f"run.dir={tmp_path / 'whole'}"))
    original = GeneratorModule.training_step
    at: list[int] = [8, 9, 10]

    def training_step(self: GeneratorModule, *arguments) -> torch.Tensor:
        if at and self.trainer.global_step == at[0]:
            at.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(GeneratorModule, "training_step", training_step)
    for _ in range(3):
        with pytest.raises(SystemExit):
            train(settings(*changes))
    train(settings(*changes))
    assert differing(tmp_path / "run", tmp_path / "whole") == []
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.fault(4)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = "trainer.checkpoint_every=2"
    train(settings("trainer.max_steps=6", f"run.dir={tmp_path / 'whole'}"))
    train(settings("trainer.max_steps=6", every))
    (tmp_path / "run" / "release" / "config.json").unlink()  # as if it had not come so far
    shutil.rmtree(tmp_path / "run" / "release")
    checkpoints = tmp_path / "run" / "checkpoints"
    content = (checkpoints / "step-0000006" / STATE).read_bytes()
    (checkpoints / "step-0000006" / STATE).write_bytes(content[: len(content) // 2])
    train(settings("trainer.max_steps=6", every))
    said = capsys.readouterr().err
    assert "step-0000006 is damaged" in said
    assert "from step 4 of 6" in said
    assert differing(tmp_path / "run", tmp_path / "whole") == []
    assert sorted(path.name for path in checkpoints.iterdir())[-1].startswith("step-0000006.damaged")


@pytest.mark.fault(2)
def test_a_run_killed_while_its_only_checkpoint_was_being_replaced_goes_on_from_there(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings("trainer.max_steps=2"))
    target = tmp_path / "run" / "checkpoints" / "step-0000002"
    target.rename(target.with_name(f"{target.name}.replaced.partial"))
    train(settings("trainer.max_steps=3"))
    assert "from step 2 of 3" in capsys.readouterr().err


@pytest.mark.fault(3)
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_disk_that_fills_up_costs_no_earlier_checkpoint(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    free = iter([10**9, 10**3, *([10**3] if policy == "skip" else []), *[10**9] * 6])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, next(free)))
    changes = ("trainer.checkpoint_every=1", "trainer.max_steps=5", f"guard.full_disk={policy}")
    if policy == "stop":
        with pytest.raises(
            UserError, match=r"no room for the checkpoint .*step-0000002: it needs .* MB, and 0.0 MB are"
        ):
            train(settings(*changes))
        assert [step for step, _ in listed(tmp_path / "run" / "checkpoints")] == [1]
    train(settings(*changes))
    said = capsys.readouterr().err
    assert ("going on without it" in said) == (policy == "skip")
    assert [step for step, _ in listed(tmp_path / "run" / "checkpoints")] == [5, 4]


@pytest.mark.fault(3)
def test_a_disk_that_is_full_while_a_checkpoint_is_written_is_told_with_path_and_size(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = torch.save, []

    def save(content, file) -> None:
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, file)

    monkeypatch.setattr(torch, "save", save)
    changes = ("trainer.checkpoint_every=2", "trainer.max_steps=5")
    with pytest.raises(
        UserError, match=r"step-0000004 \(No space left on device; the last one took .* MB\): make room"
    ):
        train(settings(*changes))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000002"]
    train(settings(*changes))


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("seed=5", "seed: 0 there, 5 here"),
        ("data.batch_size=8", r"data\.batch_size: 4 there, 8 here"),
        ("trainer.accumulate=2", r"trainer\.accumulate: 1 there, 2 here"),
        ("ema=null", r"ema\.decay: .* there, absent here"),
    ],
)
def test_a_run_of_other_settings_is_refused_with_both_values(settings: Settings, change: str, text: str) -> None:
    train(settings("trainer.max_steps=2"))
    with pytest.raises(UserError, match=rf"{text}.*init_from=RELEASE.*resume=false"):
        train(settings("trainer.max_steps=4", change))


@pytest.mark.fault(8)
def test_a_checkpoint_of_other_data_is_refused_with_both_fingerprints(
    settings: Settings, tmp_path: Path, command: Command
) -> None:
    train(settings("trainer.max_steps=2"))
    other = ("limit=60", "samples_per_shard=20", "workers=1", "seed=3")
    made = command("tools/make_shards.py", "shapes", f"output={tmp_path / 'other'}", *other, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    with pytest.raises(
        UserError, match=r"made with fingerprints \['.*'\], this run has \['.*'\].*resume=false.*init_from"
    ):
        train(settings("trainer.max_steps=4", f"data.root={tmp_path / 'other'}"))


@pytest.mark.fault(8)
def test_a_checkpoint_of_another_image_tokenizer_is_refused_with_both_fingerprints(
    settings: Settings, tmp_path: Path, tokenizer_release: Path
) -> None:
    release = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_release, release)
    train(settings("trainer.max_steps=2", f"image_tokenizer_from={release}"))
    shutil.rmtree(release)
    save_image_tokenizer(release, tiny_image_tokenizer(width=6), 64, Card("another"))
    with pytest.raises(UserError, match=r"belongs to image tokenizer \w+, and now there is \w+: .*resume=false"):
        train(settings("trainer.max_steps=4", f"image_tokenizer_from={release}"))
