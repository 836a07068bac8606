"""A small network learns a distribution of two numbers, and samplers give it back."""

import math
from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from energies import energy_distance
from torch import Tensor, nn

from mentor.diffusion import DDPMConfig, FlowConfig, ProcessConfig, build_process, denoise
from mentor.nn.modulation import time_features

STEPS, BATCH, DRAWN, WIDTH, TIMES = 1200, 256, 1200, 96, 64
# Of energy distances. Fresh data stays below a tenth of it.
BOUND = 0.02
CASES = [
    (config, sampler)
    for config, samplers in (
        (FlowConfig(), ("euler", "heun", "dpm++")),
        (DDPMConfig(), ("ddim", "ddpm", "dpm++")),
        (DDPMConfig(prediction="v"), ("ddim", "ddpm", "euler")),
    )
    for sampler in samplers
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Several take longer over numbers this few, most of all where others work too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data(count: int, generator: torch.Generator) -> Tensor:
    """Eight small Gaussians on a circle, each heavier than the one before, so that the mean is not that of noise."""
    which = torch.multinomial(torch.arange(1.0, 9.0), count, replacement=True, generator=generator)
    angle = which * (2 * math.pi / 8)
    return 1.4 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(count, 2, generator=generator)


class Network(nn.Module):
    """An MLP of a point and its time."""

    def __init__(self, span: float) -> None:
        super().__init__()
        self.span = span
        self.layers = nn.Sequential(
            nn.Linear(2 + TIMES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 2)
        )

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        return self.layers(torch.cat([noisy, time_features(1000 * time / self.span, TIMES)], 1))


@lru_cache(maxsize=8)
def trained(config: ProcessConfig) -> Network:
    process, generator = build_process(config), torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(process.span)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        clean, noise = data(BATCH, generator), torch.randn(BATCH, 2, generator=generator)
        time = process.times(torch.rand(BATCH, generator=generator))
        predicted = network(process.noisy(clean, noise, time), time)
        loss = (predicted - process.target(clean, noise, time)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return network.requires_grad_(False)


@pytest.mark.parametrize(("config", "sampler"), CASES, ids=[f"{name}-{one!r}" for one, name in CASES])
def test_the_distribution_is_learned(config: ProcessConfig, sampler: str) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(DRAWN, 2, generator=generator)
    drawn = denoise(config, trained(config), start, sampler, 50, lambda: torch.randn(start.shape, generator=generator))
    distance = energy_distance(drawn, data(DRAWN, generator))
    assert distance < BOUND


def test_the_bound_tells_right_from_wrong() -> None:
    generator = torch.Generator().manual_seed(2)
    right, truth = data(DRAWN, generator), data(DRAWN, generator)
    noise = torch.randn(DRAWN, 2, generator=generator)
    spread = torch.linalg.cholesky(truth.T.cov())
    blurred = truth.mean(0) + noise @ spread.T
    assert energy_distance(right, truth) < BOUND / 10
    assert energy_distance(noise, truth) > 2 * BOUND
    assert energy_distance(blurred, truth) > 2 * BOUND
