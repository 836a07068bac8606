"""The diffusion head alone: what a mean cannot say, it can (arXiv 2406.11838, section 3)."""

import pytest
import torch
from energies import energy_distance
from torch import Tensor, nn

from mentor.diffusion import DDPMConfig, FlowConfig, ProcessConfig, denoise
from mentor.models.heads import DiffusionHead, DiffusionHeadConfig
from mentor.models.heads.diffusion import mlp_parameters

CONDITIONS, LATENTS, WIDTH = 16, 8, 32


def modes(seed: int = 0) -> Tensor:
    """Two places for each of 16 conditions, about as far apart as latents of variance 1 are."""
    return torch.randn(CONDITIONS, 2, LATENTS, generator=torch.Generator().manual_seed(seed))


def draw(conditions: Tensor, generator: torch.Generator) -> Tensor:
    which = torch.randint(2, conditions.shape, generator=generator)
    spread = 0.1 * torch.randn(len(conditions), LATENTS, generator=generator)
    return modes()[conditions, which] + spread


def mean_distance(drawn: Tensor, data: Tensor) -> float:
    """Energy distance under each condition, on average; both have the conditions first."""
    return float(torch.stack([energy_distance(a, b) for a, b in zip(drawn, data, strict=True)]).mean())


def train(head: nn.Module, states: nn.Embedding, loss, steps: int = 1500) -> None:
    parameters = [*head.parameters(), *states.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        conditions = torch.randint(CONDITIONS, (512,), generator=generator)
        optimizer.zero_grad()
        loss(draw(conditions, generator), states(conditions), generator).backward()
        optimizer.step()
        schedule.step()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "sampler", "steps"),
    [(DDPMConfig(), "ddpm", 50), (DDPMConfig(prediction="v", zero_snr=True), "ddim", 50), (FlowConfig(), "euler", 50)],
)
def test_two_modes_under_each_condition_are_both_found(process: ProcessConfig, sampler: str, steps: int) -> None:
    torch.manual_seed(0)
    head = DiffusionHead(DiffusionHeadConfig(process=process, width=128), LATENTS, WIDTH)
    states = nn.Embedding(CONDITIONS, WIDTH)

    def loss(clean: Tensor, told: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(len(clean), generator=generator)
        return head.loss(clean, told, uniform, torch.randn(clean.shape, generator=generator)).mean()

    train(head, states, loss)
    generator = torch.Generator().manual_seed(2)
    conditions = torch.arange(CONDITIONS).repeat_interleave(400)
    with torch.no_grad():
        told = head.condition(states(conditions))
    start = torch.randn(len(conditions), LATENTS, generator=generator)
    drawn = denoise(
        process,
        lambda noisy, time: head(noisy, time, told),
        start,
        sampler,
        steps,
        fresh=lambda: torch.randn(start.shape, generator=generator),
    )
    data = draw(conditions, generator).unflatten(0, (CONDITIONS, -1))
    again = draw(conditions, generator).unflatten(0, (CONDITIONS, -1))
    distance = mean_distance(drawn.unflatten(0, (CONDITIONS, -1)), data)
    print(f"{process.kind} {sampler}: {distance:.4f}, of data to data {mean_distance(again, data):.4f}")
    assert distance < 0.02


@pytest.mark.slow
def test_a_head_that_predicts_the_mean_is_between_the_modes() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(WIDTH, 128), nn.SiLU(), nn.Linear(128, LATENTS))
    states = nn.Embedding(CONDITIONS, WIDTH)
    train(head, states, lambda clean, told, _: (head(told) - clean).square().mean(), steps=500)
    conditions = torch.arange(CONDITIONS).repeat_interleave(400)
    data = draw(conditions, torch.Generator().manual_seed(2)).unflatten(0, (CONDITIONS, -1))
    with torch.no_grad():
        drawn = head(states(conditions)).unflatten(0, (CONDITIONS, -1))
    assert mean_distance(drawn, data) > 1


def test_a_new_head_predicts_nothing_and_its_blocks_change_nothing() -> None:
    head = DiffusionHead(DiffusionHeadConfig(width=16), LATENTS, WIDTH)
    noisy, told = torch.randn(5, LATENTS), head.condition(torch.randn(5, WIDTH))
    assert head(noisy, torch.full((5,), 300.0), told).abs().max() == 0
    x = torch.randn(5, 16)
    assert all(torch.equal(block(x, told), x) for block in head.blocks)


@pytest.mark.parametrize(("width", "blocks"), [(16, 1), (40, 3), (128, 6)])
def test_the_count_of_parameters_is_that_of_the_head(width: int, blocks: int) -> None:
    config = DiffusionHeadConfig(width=width, blocks=blocks)
    head = DiffusionHead(config, LATENTS, WIDTH)
    assert mlp_parameters(config, LATENTS, WIDTH, width) == sum(weight.numel() for weight in head.parameters())
