import lightning
import pytest
import torch
from torch import nn
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from mentor.models import Generator
from mentor.training.optim import OptimizerConfig, build_optimizer, configure_optimizers, parameter_groups, rate_factor


def test_the_rate_rises_to_its_peak_and_falls_to_the_minimum() -> None:
    factors = [rate_factor(update, 100, 10, 0.1) for update in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert max(factors) == factors[10]
    assert factors[99] == pytest.approx(0.1)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_the_cosine_is_that_of_transformers() -> None:
    """The library's schedule falls over one update more and starts its warm-up at zero."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 0, 49, min_lr_rate=0.2)
    for update in range(50):
        assert rate_factor(update, 50, 0, 0.2) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_the_shortest_trainings_have_a_rate(updates: int) -> None:
    assert all(0 < rate_factor(update, updates, 0, 0.1) <= 1 for update in range(updates + 1))


def test_only_matrices_decay(generator: Generator) -> None:
    names = {id(parameter): name for name, parameter in generator.named_parameters()}
    decayed, others = parameter_groups(generator, 0.05)
    assert decayed["weight_decay"] == 0.05
    assert others["weight_decay"] == 0.0
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    other_names = {names[id(parameter)] for parameter in others["params"]}
    assert decayed_names | other_names == set(names.values())
    assert not decayed_names & other_names
    assert {"rows", "columns", "conditioner.special", "conditioner.text.weight", "embedding.free.weight"} <= other_names
    assert all(generator.get_parameter(name).ndim >= 2 for name in decayed_names)
    assert any("attention" in name for name in decayed_names)
    assert not any("norm" in name or name.endswith("bias") for name in decayed_names)


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    (group,) = parameter_groups(module, 0.1)
    assert [id(parameter) for parameter in group["params"]] == [id(module.bias)]


def test_weight_decay_shrinks_matrices_alone() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    optimizer = build_optimizer(module, OptimizerConfig(lr=0.1, weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in module.named_parameters():
        factor = 0.95 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


class Line(lightning.LightningModule):
    """Notes the rate that every batch is trained with."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.updates = updates
        self.rates: list[float] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.line(batch).square().mean()

    def configure_optimizers(self):
        return configure_optimizers(self.line, OptimizerConfig(lr=1.0, warmup=0.2, min_ratio=0.1), self.updates)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_rate_moves_with_updates_and_not_with_batches(accumulate: int, tmp_path) -> None:
    updates = 10
    module = Line(updates)
    trainer = lightning.Trainer(
        max_steps=updates,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(updates * accumulate, 1)))
    expected = [rate_factor(update, updates, 2, 0.1) for update in range(updates) for _ in range(accumulate)]
    assert module.rates == pytest.approx(expected)
    assert module.rates[-1] == pytest.approx(0.1)
