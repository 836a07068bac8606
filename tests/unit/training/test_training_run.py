"""Whole runs of a few steps, in this process."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import newest, rows, weights

from mentor.errors import UserError
from mentor.models.checkpoint import load_generator, load_image_tokenizer
from mentor.training.config import TrainConfig
from mentor.training.generator_module import GeneratorModule
from mentor.training.run import train

Settings = Callable[..., TrainConfig]


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = GeneratorModule.training_step

    def training_step(self: GeneratorModule, batch, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(GeneratorModule, "training_step", training_step)


@pytest.mark.fault(9)
@pytest.mark.parametrize("change", ["optimizer.kind=adamw", "optimizer.kind=muon", "trainer.log_every=4"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    settings: Settings, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("trainer.max_steps=6", "backbone.dropout=0.1", "data.warmup_steps=2", change)
    train(settings(*changes, f"run.dir={tmp_path / 'whole'}"))
    parts = settings(*changes, f"run.dir={tmp_path / 'parts'}")
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(3, patch)
        with pytest.raises(SystemExit) as caught:
            train(parts)
    assert caught.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "parts" / "release").exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    train(parts)
    whole = weights(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "parts").items():
        assert torch.equal(tensor, whole[name]), name
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert "same command goes on" in capsys.readouterr().err


@pytest.mark.fault(5)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_the_run_at_once(
    settings: Settings, tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def on_fit_start(self: GeneratorModule) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal has not stopped it")

    handler = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratorModule, "on_fit_start", on_fit_start)
        with pytest.raises(SystemExit) as caught:
            train(settings("trainer.max_steps=3"))
    assert caught.value.code == 128 + number
    assert "before the first step" in capsys.readouterr().err
    assert signal.getsignal(number) == handler
    assert not (tmp_path / "run" / "release").exists()
    train(settings("trainer.max_steps=3"))


def test_the_release_holds_the_averaged_weights(settings: Settings, tmp_path: Path) -> None:
    config = settings("trainer.max_steps=5", "ema.decay=0.5")
    train(config)
    checkpoint = newest(tmp_path / "run")
    assert checkpoint["global_step"] == 5
    released = weights(tmp_path / "run")
    differing = 0
    for name, tensor in released.items():
        assert torch.equal(tensor, checkpoint["state_dict"][f"generator.{name}"]), name
        differing += not torch.equal(tensor, checkpoint["current_model_state"][f"generator.{name}"])
    assert differing > 5
    assert not any("tokenizer" in name for name in checkpoint["state_dict"])


def test_without_averaging_the_release_holds_the_last_weights(settings: Settings, tmp_path: Path) -> None:
    train(settings("trainer.max_steps=3", "ema=null"))
    checkpoint = newest(tmp_path / "run")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, checkpoint["state_dict"][f"generator.{name}"]), name


def test_a_run_killed_before_its_release_only_writes_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("trainer.max_steps=3")
    with monkeypatch.context() as patch:
        patch.setattr("mentor.training.run.write_release", lambda *_: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            train(config)
    train(config)
    checkpoint = newest(tmp_path / "run")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, checkpoint["state_dict"][f"generator.{name}"]), name


def test_logs_have_a_loss_for_each_task_and_validation(settings: Settings, tmp_path: Path) -> None:
    changes = ("trainer.validate_every=2", "trainer.max_steps=5", "data.warmup_steps=1", "data.validation_limit=4")
    train(settings(*changes))
    table = rows(tmp_path / "run")
    assert [int(row["step"]) for row in table] == [1, 2, 3, 4, 5]
    tasks = ("reconstruct", "segment", "text_to_image")
    for row in table:
        losses = [float(row[f"train/loss/{task}"]) for task in tasks if row[f"train/loss/{task}"]]
        assert losses == [pytest.approx(float(row["train/loss"]))]
    assert table[0]["train/loss/reconstruct"]
    # Validation after updates 2 and 4, and of the last weights.
    validated = [row["step"] for row in table if row["val/loss"]]
    assert validated == ["2", "4", "5"]
    assert all(float(table[-1][f"val/loss/{task}"]) > 0 for task in tasks)
    pictures = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert pictures == ["0000002.png", "0000004.png", "0000005.png"]
    assert any(path.name.startswith("events.") for path in (tmp_path / "run" / "logs").iterdir())


def test_a_finished_run_says_so_and_does_nothing(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings("trainer.max_steps=2")
    train(config)
    before = (tmp_path / "run" / "release" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    train(config)
    assert "finished already" in capsys.readouterr().err
    assert (tmp_path / "run" / "release" / "model.safetensors").stat().st_mtime_ns == before


def test_starting_over_puts_the_old_run_aside(settings: Settings, tmp_path: Path) -> None:
    train(settings("trainer.max_steps=2"))
    train(settings("trainer.max_steps=2", "resume=false", "seed=1"))
    assert (tmp_path / "run.old-1" / "release" / "config.json").is_file()
    assert not torch.equal(weights(tmp_path / "run")["rows"], weights(tmp_path / "run.old-1")["rows"])


def test_stage_2_goes_on_from_the_release_of_stage_1(settings: Settings, tmp_path: Path, shapes: Path) -> None:
    from mentor.config import compose, validate

    train(settings("trainer.max_steps=2"))
    overrides = (
        "stage=2",
        "experiment=test",
        f"data.root={shapes}",
        f"run.dir={tmp_path / 'second'}",
        f"init_from={tmp_path / 'run' / 'release'}",
        "trainer.max_steps=1",
        "trainer.validate_every=0",
        "optimizer.lr=1e-12",
        "freeze=[conditioner.*]",
    )
    train(validate(TrainConfig, compose("train", overrides)))
    first, second = load_generator(tmp_path / "run" / "release"), load_generator(tmp_path / "second" / "release")
    assert second.generator.config == first.generator.config
    for name, tensor in first.generator.state_dict().items():
        torch.testing.assert_close(second.generator.state_dict()[name], tensor, atol=1e-6, rtol=0)
    inner = load_image_tokenizer(tmp_path / "second" / "release")
    assert all(
        torch.equal(tensor, inner.state_dict()[name]) for name, tensor in first.image_tokenizer.state_dict().items()
    )


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("image_tokenizer_from=nowhere", "stage=tokenizer experiment=test"),
        ("init_from=nowhere", "stage=1 experiment=test"),
        ("data.root=nowhere", "make_shards.py"),
        ("data.image_size=60", "no multiple"),
        ("freeze=[backbon]", "did you mean backbone?"),
        ("trainer=gpu", "trainer=cpu"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_written(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, text: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError) as caught:
        train(settings(override))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_run_is_refused(settings: Settings) -> None:
    train(settings("trainer.max_steps=1"))
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.002 there, 0\.5 here"):
        train(settings("trainer.max_steps=1", "optimizer.lr=0.5"))


def test_the_release_says_whether_the_null_condition_was_ever_trained(settings: Settings, tmp_path: Path) -> None:
    def record(name: str, share: float, before: str = "") -> bool:
        start = (f"init_from={tmp_path / before / 'release'}",) if before else ()
        run = f"run.dir={tmp_path / name}"
        train(settings("trainer.max_steps=1", "ema=null", f"objective.guidance.everything={share}", run, *start))
        return load_generator(tmp_path / name / "release").config["training"]["null_condition_trained"]

    assert record("never", 0) is False
    assert record("not_yet", 0, "never") is False
    assert record("later", 0.1, "never") is True
    assert record("before", 0, "later") is True


def test_a_task_can_be_taken_out_of_the_mixture(settings: Settings) -> None:
    assert set(settings("data.mixture.segment=0").data.mixture) == {"reconstruct", "text_to_image"}
    assert set(settings("data.mixture.segment=null").data.mixture) == {"reconstruct", "text_to_image"}
