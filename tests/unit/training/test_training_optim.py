from typing import Literal

import lightning
import pytest
import torch
from torch import nn
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from mentor.models import Generator
from mentor.training.joint import JointOptimizer
from mentor.training.optim import (
    OptimizerConfig,
    build_optimizer,
    configure_optimizers,
    rate_factor,
    trained_parameters,
)


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


def test_every_parameter_is_a_matrix_a_kernel_or_another_one(generator: Generator) -> None:
    names = {id(parameter): name for name, parameter in generator.named_parameters()}
    matrices, kernels, others = ({names[id(one)] for one in part} for part in trained_parameters(generator))
    assert matrices | kernels | others == set(names.values())
    assert len(matrices) + len(kernels) + len(others) == len(names)
    assert {"rows", "columns", "conditioner.special", "conditioner.text.weight", "embedding.free.weight"} <= others
    assert all(generator.get_parameter(name).ndim == 2 for name in matrices)
    assert any("attention" in name for name in matrices)
    assert not any("norm" in name or name.endswith("bias") for name in matrices | kernels)


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    matrices, kernels, others = trained_parameters(module)
    assert not matrices + kernels
    assert [id(parameter) for parameter in others] == [id(module.bias)]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weight_decay_shrinks_matrices_and_kernels_alone(kind: Literal["adamw", "muon"]) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(2, 2, 1), nn.LayerNorm(2))
    optimizer = build_optimizer(module, OptimizerConfig(kind=kind, lr=0.1, weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in module.named_parameters():
        factor = 0.95 if name in ("0.weight", "1.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_muon_moves_matrices_as_far_as_adamw_does_and_in_all_directions() -> None:
    torch.manual_seed(0)
    module = nn.Linear(256, 16)
    optimizer = build_optimizer(module, OptimizerConfig(kind="muon", lr=0.1, weight_decay=0.0))
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    module.weight.grad = torch.outer(torch.randn(16), torch.randn(256)) + 0.1 * torch.randn(16, 256)
    module.bias.grad = torch.randn(16)
    optimizer.step()
    step = (module.weight.detach() - weight) / 0.1
    assert 0.1 < step.square().mean().sqrt() < 0.4  # AdamW's are 0.2 to 0.4 in the middle of a training
    strengths = torch.linalg.svdvals(step)
    assert strengths.max() < 2.5 * strengths.min()  # the gradient's: more than 20
    torch.testing.assert_close(module.bias.detach(), bias - 0.1 * module.bias.grad.sign())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("left", ["weight", "bias"])
def test_an_optimizer_of_one_sort_of_parameters(kind: Literal["adamw", "muon"], left: str) -> None:
    module = nn.Linear(2, 2)
    module.get_parameter(left).requires_grad_(False)
    optimizer = build_optimizer(module, OptimizerConfig(kind=kind, lr=0.1))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_models_beside_each_other_have_settings_of_their_own_and_one_schedule(kind: Literal["adamw", "muon"]) -> None:
    model, other = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(2, 2, 1)), nn.Linear(3, 3)
    theirs = OptimizerConfig(lr=0.01, betas=(0.5, 0.9), weight_decay=0.0)
    configured = configure_optimizers(model, OptimizerConfig(kind=kind, lr=0.1, warmup=0.2), 10, [(other, theirs)])
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]  # type: ignore[index]
    assert isinstance(optimizer, JointOptimizer)
    assert [{id(one) for one in group} for group in optimizer.groups_to_clip] == [
        {id(one) for one in model.parameters()},
        {id(one) for one in other.parameters()},
    ]
    for update in range(10):
        for group in optimizer.param_groups:
            own = any(parameter is one for parameter in group["params"] for one in other.parameters())
            assert group["lr"] == pytest.approx((0.01 if own else 0.1) * rate_factor(update, 10, 2, 0.1))
            assert group.get("betas") == ((0.5, 0.9) if own else group.get("betas") and (0.9, 0.95))
        optimizer.step()
        schedule.step()


class Line(lightning.LightningModule):
    """Notes the rate that every batch is trained with."""

    def __init__(self, updates: int, kind: Literal["adamw", "muon"]) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.config = OptimizerConfig(kind=kind, lr=1.0, warmup=0.2, min_ratio=0.1)
        self.updates = updates
        self.rates: list[float] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        (rate,) = {group["lr"] for group in self.trainer.optimizers[0].param_groups}
        self.rates.append(rate)
        return self.line(batch).square().mean()

    def configure_optimizers(self):
        return configure_optimizers(self.line, self.config, self.updates)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_rate_moves_with_updates_and_not_with_batches(
    accumulate: int, kind: Literal["adamw", "muon"], tmp_path
) -> None:
    updates = 10
    module = Line(updates, kind)
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
