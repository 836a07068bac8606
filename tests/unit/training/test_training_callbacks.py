import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mentor.training.averaging import Averaging
from mentor.training.callbacks import Progress, StepSeeds, clock


def fake_trainer(step: int = 0, steps: int = 100) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=steps, is_global_zero=True, accumulate_grad_batches=1)


def test_progress_without_a_terminal_is_a_line_every_tenth() -> None:
    file = io.StringIO()
    progress, trainer = Progress("demo stage 1", 4, file), fake_trainer()
    progress.on_train_start(trainer, None)
    for step in range(1, 101):
        trainer.global_step = step
        progress.on_train_batch_end(trainer, None, {"loss": torch.tensor(2.0)}, None, step - 1)
    lines = file.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[4].startswith("demo stage 1: step 50/100 (50 %), loss 2.000, ")
    assert "samples/s" in lines[4]
    assert lines[4].endswith("left")


def test_progress_counts_updates_and_not_batches() -> None:
    file = io.StringIO()
    progress, trainer = Progress("a", 4, file), fake_trainer(steps=2)
    progress.on_train_start(trainer, None)
    for step in (0, 1, 1, 2):
        trainer.global_step = step
        progress.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.0)}, None, 0)
    assert len(file.getvalue().splitlines()) == 2


def test_durations_read_like_a_clock() -> None:
    assert clock(5) == "0:05"
    assert clock(3600 + 62) == "1:01:02"


def test_every_batch_of_every_process_has_a_seed_of_its_own() -> None:
    seeds, trainer = StepSeeds(5), fake_trainer()
    trainer.accumulate_grad_batches = 2

    def draw(step: int, batch: int, rank: int = 0) -> tuple[float, float, float]:
        trainer.global_step, trainer.global_rank = step, rank
        seeds.on_train_batch_start(trainer, None, None, batch)
        return float(torch.rand(())), random.random(), np.random.random()  # noqa: NPY002

    drawn = [draw(0, 0), draw(0, 1), draw(1, 2), draw(1, 3), draw(1, 3, rank=1)]
    assert all(len(set(each)) == 5 for each in zip(*drawn, strict=True))
    assert draw(1, 2) == drawn[2]


def test_the_average_starts_short_and_grows_to_its_decay() -> None:
    averaging = Averaging(0.5)
    average, weight = [torch.tensor([0.0])], [torch.tensor([1.0])]
    averaging._average(average, weight, 0)
    assert average[0].item() == pytest.approx(0.9)
    average = [torch.tensor([0.0])]
    averaging._average(average, weight, 1000)
    assert average[0].item() == pytest.approx(0.5)
