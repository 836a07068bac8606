"""Runs that train an adapter: they go on exactly where they were, with the very model that they began with."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import differing, newest, rows, summary
from tiny import save_tiny_releases

from mentor.config import compose, validate
from mentor.errors import UserError
from mentor.models.checkpoint import read_config
from mentor.training.config import TrainConfig
from mentor.training.generator_module import GeneratorModule
from mentor.training.run import train

Settings = Callable[..., TrainConfig]


@pytest.fixture
def tuning(shapes: Path, tmp_path: Path) -> Settings:
    """Settings that train an adapter of both kinds on the release `model` beside the run folder."""
    save_tiny_releases(tmp_path)

    def make(*overrides: str) -> TrainConfig:
        base = ("stage=2", "experiment=test", f"data.root={shapes}", f"init_from={tmp_path / 'model'}")
        adapter = ("adapter=lora_mrt", "adapter.lora.rank=2", "adapter.lora.dropout=0.2", "adapter.edits.rank=2")
        places = (f"run.dir={tmp_path / 'run'}", "trainer.validate_every=0", "data.batch_size=4", "trainer.max_steps=5")
        return validate(TrainConfig, compose("train", [*base, *adapter, *places, *overrides]))

    return make


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the run to stop at this update, once."""
    original, stopped = GeneratorModule.training_step, []

    def training_step(self: GeneratorModule, *arguments) -> torch.Tensor:
        if self.trainer.global_step == step and not stopped:
            stopped.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(GeneratorModule, "training_step", training_step)


def test_a_run_that_was_stopped_comes_to_the_same_adapter(
    tuning: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tuning(f"run.dir={tmp_path / 'whole'}"))
    stop_at(2, monkeypatch)
    with pytest.raises(SystemExit):
        train(tuning())
    assert newest(tmp_path / "run")["global_step"] < 5
    train(tuning())
    assert read_config(tmp_path / "run" / "release")["kind"] == "adapter"
    assert differing(tmp_path / "run", tmp_path / "whole") == []
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert summary(tmp_path / "run")["frozen"] == summary(tmp_path / "whole")["frozen"]


def test_a_run_does_not_go_on_with_another_model_in_the_old_ones_place(
    tuning: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(2, monkeypatch)
    with pytest.raises(SystemExit):
        train(tuning())
    old = read_config(tmp_path / "model")["fingerprint"]
    shutil.rmtree(tmp_path / "model")
    save_tiny_releases(tmp_path / "others")
    path = tmp_path / "others" / "model"
    config = path / "config.json"
    config.write_text(config.read_text().replace(old, "f" * 16))
    path.rename(tmp_path / "model")
    with pytest.raises(UserError, match=f"began with model {old}, and .* is now {'f' * 16}"):
        train(tuning())
