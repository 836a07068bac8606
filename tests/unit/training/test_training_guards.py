"""What the guard does about losses and gradients that are not as they should be, in whole runs of a few steps."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from planned import stage_tokenizer
from runs import differing, summary, weights
from torch import nn

from mentor.errors import UserError
from mentor.training import optim, run
from mentor.training.checkpoint_files import checkpoint_name, read_state
from mentor.training.config import GuardConfig, TrainConfig
from mentor.training.generator_module import GeneratorModule
from mentor.training.guards import Guard
from mentor.training.image_tokenizer_module import ImageTokenizerModule
from mentor.training.joint import JointOptimizer
from mentor.training.run import train

Settings = Callable[..., TrainConfig]
# Both depend on nothing but the number of the global batch, like a sample that is bad in itself.
BAD = (4, 5)
ALONE = ("data.mixture.segment=0", "data.mixture.text_to_image=0", "data.mixture.reconstruct=1")


def spoil(monkeypatch: pytest.MonkeyPatch, how: str, numbers: tuple[int, ...] = BAD) -> None:
    """Let the batches of these numbers have a loss of NaN, of infinity, one far too high, or a gradient of NaN."""
    original = GeneratorModule.training_step

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx, *grad_outputs: torch.Tensor) -> torch.Tensor:
            return grad_outputs[0] * float("nan")

    def training_step(self: GeneratorModule, batch, batch_idx: int) -> torch.Tensor:
        loss = original(self, batch, batch_idx)
        if self.trainer.datamodule.consumed - 1 not in numbers:
            return loss
        match how:
            case "gradient":
                return Spoil.apply(loss)
            case "spike":
                return loss + 100
            case _:
                return loss * float(how)

    monkeypatch.setattr(GeneratorModule, "training_step", training_step)


@pytest.mark.fault(10)
@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_ends_the_run_before_the_update(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    config = settings("trainer.max_steps=8", "trainer.checkpoint_every=2", "trainer.log_every=100")
    with monkeypatch.context() as patch:
        spoil(patch, how)
        with pytest.raises(UserError) as caught:
            train(config)
    said = str(caught.value)
    assert f"the {'gradient' if how == 'gradient' else 'loss'} is {how if how == 'inf' else 'nan'} at update 4" in said
    assert "samples train-scene-" in said
    assert "optimizer.lr" in said
    assert "guard.nonfinite=skip" in said
    assert "\n" not in said
    assert summary(tmp_path / "run")["status"] == "failed"
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-0000002",
        "step-0000004",
    ]
    train(config)
    train(settings("trainer.max_steps=8", f"run.dir={tmp_path / 'whole'}"))
    assert differing(tmp_path / "run", tmp_path / "whole") == [], "the checkpoint before it was as good as ever"


@pytest.mark.fault(10)
def test_updates_that_are_no_numbers_are_skipped_and_counted(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("trainer.max_steps=8", "guard.nonfinite=skip", "trainer.log_every=1")
    spoil(monkeypatch, "nan")
    before: dict[int, torch.Tensor] = {}
    original = GeneratorModule.training_step

    def watched(self: GeneratorModule, batch, batch_idx: int) -> torch.Tensor:
        before[self.trainer.global_step] = self.generator.rows.detach().clone()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(GeneratorModule, "training_step", watched)
    train(settings(*changes))
    changed = [step for step in range(7) if not torch.equal(before[step], before[step + 1])]
    assert changed == [0, 1, 2, 3, 6]
    found = summary(tmp_path / "run")
    assert found["guard"]["counts"] == {"nonfinite": 2, "skipped": 2}
    assert [event["step"] for event in found["guard"]["events"] if event["kind"] == "nonfinite"] == [4, 5]
    assert len(found["guard"]["events"][0]["samples"]) == 4
    said = capsys.readouterr().err
    assert "the loss is nan at update 4" in said
    assert "(2 skipped so far)" in said
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


@pytest.mark.fault(10)
@pytest.mark.parametrize("quantizer", ["image_tokenizer.quantizer.usage_decay=0.5", "image_tokenizer=ema_vq"])
def test_a_skipped_update_leaves_no_trace_in_the_codes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str
) -> None:
    original = ImageTokenizerModule.training_step

    def training_step(self: ImageTokenizerModule, batch, batch_idx: int) -> dict[str, torch.Tensor]:
        values = original(self, batch, batch_idx)
        bad = self.trainer.datamodule.consumed - 1 == 5  # type: ignore[attr-defined]
        return values | {"loss": values["loss"] * float("nan")} if bad else values

    monkeypatch.setattr(ImageTokenizerModule, "training_step", training_step)
    kept = ("trainer.max_steps=6", "trainer.checkpoint_every=1", "trainer.keep=3")
    train(stage_tokenizer(settings(), quantizer, *kept, "guard.nonfinite=skip", "ema=null"))
    assert summary(tmp_path / "run")["guard"]["counts"]["skipped"] == 1
    before, good, bad = (
        {
            name: tensor
            for name, tensor in read_state(tmp_path / "run" / "checkpoints" / checkpoint_name(step))[
                "state_dict"
            ].items()
            if ".quantize." in name
        }
        for step in (4, 5, 6)
    )
    assert any(not torch.equal(tensor, good[name]) for name, tensor in before.items())
    assert [name for name, tensor in good.items() if not torch.equal(tensor, bad[name])] == []


@pytest.mark.fault(10)
def test_the_count_of_skipped_updates_survives_a_resume(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "inf", (1, 4))
    changes = ("guard.nonfinite=skip", "trainer.checkpoint_every=1")
    train(settings("trainer.max_steps=3", *changes))
    train(settings("trainer.max_steps=6", *changes))
    assert summary(tmp_path / "run")["guard"]["counts"]["skipped"] == 2
    assert summary(tmp_path / "run")["starts"] == 2


@pytest.mark.fault(10)
def test_too_many_in_a_row_end_the_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "nan", (2, 3, 4, 5))
    with pytest.raises(UserError, match=r"at update 4 .* 2 times in a row \(guard\.in_a_row\)"):
        train(settings("trainer.max_steps=8", "guard.nonfinite=skip", "guard.in_a_row=2"))


@pytest.mark.fault(10)
@pytest.mark.fault(11)
@pytest.mark.parametrize("saved", [True, False])
def test_a_roll_back_goes_on_from_the_last_good_state_without_those_samples(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    saved: bool,
) -> None:
    """The result is that of a run which never saw the batches, whether or not there was a checkpoint to go back to."""
    length = ("trainer.max_steps=8", "data.warmup_steps=2", "backbone.dropout=0.1", "trainer.checkpoint_every=3")
    every = length if saved else (*length[:-1], "trainer.checkpoint_every=0")
    with monkeypatch.context() as patch:
        spoil(patch, "nan")
        train(settings(*every, "guard.nonfinite=rollback"))
    found = summary(tmp_path / "run")
    assert found["guard"]["counts"]["rolled_back"] == 2
    assert found["data"]["left_out_batches"] == list(BAD)
    assert f"rolled back to step {3 if saved else 0}, leaving these samples out" in capsys.readouterr().err

    def without_the_bad(config, seed, report):
        data = opened(config, seed, report)
        data.leave_out(BAD)
        return data

    opened = run.open_data
    monkeypatch.setattr(run, "open_data", without_the_bad)
    train(settings(*every, f"run.dir={tmp_path / 'without'}"))
    assert differing(tmp_path / "run", tmp_path / "without") == []


@pytest.mark.fault(11)
@pytest.mark.parametrize("policy", ["report", "skip", "rollback", "stop"])
def test_a_loss_far_above_its_usual_range_is_a_spike(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    spoil(monkeypatch, "spike", (30, 31, 32))
    changes = (
        "trainer.max_steps=36",
        *ALONE,
        f"guard.spike={policy}",
        "guard.spike_window=20",
        "trainer.checkpoint_every=10",
    )
    if policy == "stop":
        with pytest.raises(UserError, match=r"the loss is 10\d.*, far above its usual range .* at update 30 "):
            train(settings(*changes))
        return
    train(settings(*changes))
    counts = summary(tmp_path / "run")["guard"]["counts"]
    assert counts["spike"] == 3
    assert counts.get("skipped", 0) == (3 if policy == "skip" else 0)
    assert counts.get("rolled_back", 0) == (3 if policy == "rollback" else 0)
    spikes = [event for event in summary(tmp_path / "run")["guard"]["events"] if event["kind"] == "spike"]
    assert all(len(event["samples"]) == 4 for event in spikes)
    assert len(spikes) == 3


def test_a_learning_rate_that_is_used_up_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "rate_factor", lambda update, *_: 1.0 if update < 2 else 0.0)
    train(settings("trainer.max_steps=5"))
    found = summary(tmp_path / "run")["guard"]
    assert found["counts"] == {"exhausted": 2}
    assert "the learning rate is 0 at update 2 of 5" in found["events"][0]["what"]
    with pytest.raises(UserError, match=r"learning rate is 0 .*optimizer\.min_ratio"):
        train(settings("trainer.max_steps=5", "guard.exhausted=stop", "resume=false"))


def test_data_that_begin_anew_are_told_and_can_be_limited(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = ("trainer.max_steps=20", "data.batch_size=24", *ALONE)
    train(settings(*many))
    events = [event["what"] for event in summary(tmp_path / "run")["guard"]["events"]]
    assert events[:2] == [f"training has seen every sample of the task 'reconstruct' {n} time(s)" for n in (1, 2)]
    assert "begin anew" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"'reconstruct' 2 times at update 9, .*guard\.max_epochs"):
        train(settings(*many, "guard.max_epochs=2", "resume=false"))


def test_gradients_are_clipped_by_the_norm_of_each_model_alone() -> None:
    class Trainer:
        global_step, max_steps, precision_plugin = 0, 10, None

    first, second = nn.Linear(3, 2), nn.Linear(2, 1)
    optimizer = JointOptimizer([[torch.optim.SGD(one.parameters(), lr=1.0)] for one in (first, second)])
    for number, model in enumerate((first, second)):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 10.0 ** (1 - 2 * number))
    expected = [[one.grad.clone() for one in model.parameters()] for model in (first, second)]
    guard = Guard(GuardConfig(), 1.0, print)
    guard._loss, guard._positions, guard._tasks = torch.tensor(1.0), [], {"a"}
    guard._positions = [0]
    guard._look_ahead = lambda *_: None
    guard.on_before_optimizer_step(Trainer(), None, optimizer)
    norm = math.sqrt(sum(float(one.square().sum()) for one in expected[0]))
    assert guard.norm == pytest.approx(norm)
    for parameter, before in zip(first.parameters(), expected[0], strict=True):
        torch.testing.assert_close(parameter.grad, before / norm, atol=1e-6, rtol=1e-5)
    for parameter, before in zip(second.parameters(), expected[1], strict=True):
        assert torch.equal(parameter.grad, before)
