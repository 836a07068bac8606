"""Every sampler with every process that it fits, on a Gaussian, whose best prediction is known."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mentor.diffusion import ANCESTRAL, SAMPLERS, DDPMConfig, FlowConfig, ProcessConfig, calls, check_sampler, denoise
from mentor.diffusion.processes import DDPMProcess, build_process
from mentor.errors import UserError

MEAN, STD, ROWS = 0.7, 0.5, 4_000
PROCESSES = [
    FlowConfig(),
    FlowConfig(shift=3.0),
    DDPMConfig(),
    DDPMConfig(schedule="linear"),
    DDPMConfig(schedule="scaled_linear", prediction="v"),
    DDPMConfig(prediction="v"),
    DDPMConfig(prediction="v", zero_snr=True),
]
PAIRS = [(config, sampler) for config in PROCESSES for sampler in config.samplers]
every_pair = pytest.mark.parametrize(("config", "sampler"), PAIRS, ids=[f"{name}-{one!r}" for one, name in PAIRS])

Seen = list[tuple[float, torch.Tensor]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Several take longer over numbers this few, most of all where others work too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def source(seed: int, *shape: int) -> Callable[[], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


def scales(config: ProcessConfig, time: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares of sample and noise; between two steps diffusers goes evenly in the logarithm of their ratio."""
    process = build_process(config)
    if isinstance(config, FlowConfig):
        share = torch.tensor(time / 1000, dtype=torch.float64)
        return 1 - share, share
    assert isinstance(process, DDPMProcess)
    left = process._scheduler.alphas_cumprod.double().clamp(min=2.0**-24)
    logs = ((1 - left) / left).log() / 2
    low = int(time)
    ratio = torch.lerp(logs[low], logs[min(low + 1, config.steps - 1)], time - low).exp()
    return 1 / (1 + ratio**2).sqrt(), ratio / (1 + ratio**2).sqrt()


def best(config: ProcessConfig, seen: Seen | None = None) -> Any:
    """The prediction of least error for samples of this mean and deviation."""

    def predict(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        assert time.shape == noisy.shape[:1] and (time == time[0]).all() and time.dtype == torch.float32
        if seen is not None:
            seen.append((time[0].item(), noisy))
        signal, spread = scales(config, time[0].item())
        off = (noisy.double() - signal * MEAN) / (signal**2 * STD**2 + spread**2)
        clean, noise = MEAN + signal * STD**2 * off, spread * off
        if isinstance(config, FlowConfig):
            return (noise - clean).float()
        return (noise if config.prediction == "epsilon" else signal * noise - spread * clean).float()

    return predict


@every_pair
def test_the_gaussian_is_recovered(config: ProcessConfig, sampler: str) -> None:
    start = gaussian(ROWS, 2)
    drawn = denoise(config, best(config), start, sampler, 50, fresh=source(1, ROWS, 2))
    assert drawn.dtype == torch.float32 and drawn.shape == start.shape
    # The start itself is off by 0.7 and 0.5. What is left is the coarseness of 50 steps, most of all of first order.
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.04)
    assert drawn.std().item() == pytest.approx(STD, abs=0.07)


@every_pair
def test_the_network_sees_what_training_makes(config: ProcessConfig, sampler: str) -> None:
    seen: Seen = []
    denoise(config, best(config, seen), gaussian(ROWS, 1), sampler, 50, fresh=source(1, ROWS, 1))
    process, clean, noise = build_process(config), MEAN + STD * gaussian(ROWS, 1, seed=2), gaussian(ROWS, 1, seed=3)
    for time, noisy in seen:
        made = process.noisy(clean, noise, torch.full((ROWS,), time))
        assert noisy.mean().item() == pytest.approx(made.mean().item(), abs=0.1)
        assert noisy.std().item() == pytest.approx(made.std().item(), abs=0.1)
    times = [time for time, _ in seen]
    assert times == sorted(times, reverse=True)
    assert 0.9 * process.span < times[0] <= process.span and 0 <= times[-1] < 0.07 * process.span


@every_pair
def test_the_same_start_gives_the_same(config: ProcessConfig, sampler: str) -> None:
    predict, start = best(config), gaussian(4, 3, 2)
    first, second = (denoise(config, predict, start, sampler, 10, fresh=source(1, 4, 3, 2)) for _ in range(2))
    assert torch.equal(first, second)
    other = denoise(config, predict, start, sampler, 10, fresh=source(2, 4, 3, 2))
    assert torch.equal(first, other) == (sampler != ANCESTRAL)


@every_pair
def test_samples_do_not_depend_on_their_neighbours(config: ProcessConfig, sampler: str) -> None:
    start, noise = gaussian(4, 2), gaussian(10, 4, 2, seed=1)
    together = iter(noise)
    alone = iter(noise[:, 2:3])
    whole = denoise(config, best(config), start, sampler, 10, fresh=lambda: next(together))
    row = denoise(config, best(config), start[2:3], sampler, 10, fresh=lambda: next(alone))
    torch.testing.assert_close(whole[2:3], row)


@every_pair
def test_every_number_of_steps_ends_in_numbers(config: ProcessConfig, sampler: str) -> None:
    # Many steps, since times that are rounded then stand twice in a scheduler's table. Heun's take long to make.
    for steps in (2, 3, 7, 31) if sampler == "heun" else (2, 3, 7, 31, 999):
        drawn = denoise(config, lambda noisy, _: 0.5 * noisy, gaussian(2, 2), sampler, steps, source(1, 2, 2))
        assert drawn.isfinite().all()


@every_pair
def test_a_single_step_ends_in_numbers_where_it_may_be(config: ProcessConfig, sampler: str) -> None:
    if isinstance(config, DDPMConfig) and config.prediction == "epsilon":
        with pytest.raises(UserError, match=r"^steps 1: denoising takes 2 to "):
            check_sampler(config, sampler, 1)
        return
    drawn = denoise(config, best(config), gaussian(ROWS, 1), sampler, 1, source(1, ROWS, 1))
    assert drawn.isfinite().all()
    # From noise alone there is nothing better to say than the mean.
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert drawn.std().item() < 0.1


@every_pair
def test_calls_are_counted(config: ProcessConfig, sampler: str) -> None:
    seen: Seen = []
    told: list[tuple[int, int]] = []
    denoise(
        config, best(config, seen), gaussian(2, 1), sampler, 5, source(1, 2, 1), on_step=lambda *step: told.append(step)
    )
    assert len(seen) == calls(sampler, 5)
    assert told == [(number + 1, len(seen)) for number in range(len(seen))]


@pytest.mark.parametrize("config", [one for one in PROCESSES if ANCESTRAL in one.samplers])
def test_the_last_step_adds_no_noise(config: DDPMConfig) -> None:
    drawn: list[torch.Tensor] = []
    for last in (0.0, 100.0):
        left = iter([*gaussian(9, 4, 2, seed=1), torch.full((4, 2), last)])
        drawn.append(denoise(config, best(config), gaussian(4, 2), ANCESTRAL, 10, fresh=lambda left=left: next(left)))
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [one for one in PROCESSES if ANCESTRAL in one.samplers])
def test_temperature_narrows(config: DDPMConfig) -> None:
    stds = []
    for temperature in (0.5, 0.8, 1.0):
        drawn = denoise(config, best(config), gaussian(ROWS, 1), ANCESTRAL, 50, source(1, ROWS, 1), temperature)
        assert drawn.mean().item() == pytest.approx(MEAN, abs=0.05)
        stds.append(drawn.std().item())
    assert stds == sorted(stds) and stds[0] < 0.6 * stds[2] and stds[1] < 0.9 * stds[2]


def test_a_shift_spends_more_steps_on_noise() -> None:
    for sampler in FlowConfig().samplers:
        middles = []
        for shift in (1.0, 3.0):
            seen: Seen = []
            config = FlowConfig(shift=shift)
            denoise(config, best(config, seen), gaussian(2, 1), sampler, 20)
            middles.append(seen[len(seen) // 2][0])
        assert middles[0] < 600 and middles[1] > 700


def test_schedulers_are_not_mixed_up_by_calls_within_calls() -> None:
    config, start = DDPMConfig(prediction="v"), gaussian(2, 2)
    plain = denoise(config, best(config), start, "dpm++", 6)

    def predict(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        denoise(config, best(config), start, "dpm++", 3)
        return best(config)(noisy, time)

    assert torch.equal(denoise(config, predict, start, "dpm++", 6), plain)


def test_every_sampler_fits_something() -> None:
    assert {name for config in PROCESSES for name in config.samplers} == set(SAMPLERS)


@pytest.mark.parametrize(
    ("config", "sampler", "steps", "temperature", "message"),
    [
        (FlowConfig(), "ddim", 10, 1.0, "sampler ddim does not fit a flow model: choose euler, heun or dpm++"),
        (FlowConfig(), "plms", 10, 1.0, "sampler plms does not fit a flow model: choose euler, heun or dpm++"),
        (
            DDPMConfig(prediction="v", zero_snr=True),
            "heun",
            10,
            1.0,
            "sampler heun does not fit a model that predicts v with zero_snr: choose ddim, ddpm, dpm++ or euler",
        ),
        (
            FlowConfig(),
            "euler",
            0,
            1.0,
            "steps 0: denoising takes 1 to 1000 of them with sampler euler (10 to 50 are usual)",
        ),
        (
            FlowConfig(),
            "heun",
            1001,
            1.0,
            "steps 1001: denoising takes 1 to 1000 of them with sampler heun (10 to 50 are usual)",
        ),
        (
            DDPMConfig(steps=50),
            "ddim",
            51,
            1.0,
            "steps 51: denoising takes 2 to 50 of them with sampler ddim (10 to 50 are usual)",
        ),
        (
            DDPMConfig(),
            "ddim",
            1,
            1.0,
            "steps 1: denoising takes 2 to 1000 of them with sampler ddim (10 to 50 are usual)",
        ),
        (
            DDPMConfig(),
            "dpm++",
            1000,
            1.0,
            "steps 1000: denoising takes 2 to 999 of them with sampler dpm++ (10 to 50 are usual)",
        ),
        (
            FlowConfig(),
            "euler",
            10,
            0.5,
            "temperature 0.5 scales noise that sampler euler does not add: take temperature 1",
        ),
        (
            DDPMConfig(),
            "ddim",
            10,
            0.5,
            "temperature 0.5 scales noise that sampler ddim does not add: take sampler ddpm, or temperature 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    config: ProcessConfig, sampler: str, steps: int, temperature: float, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_sampler(config, sampler, steps, temperature)
    assert str(caught.value) == message
    with pytest.raises(UserError):
        denoise(config, best(config), gaussian(2, 1), sampler, steps, source(1, 2, 1), temperature)


def test_what_fits_is_not_refused() -> None:
    for config, sampler in PAIRS:
        check_sampler(config, sampler, 2)
    check_sampler(DDPMConfig(), ANCESTRAL, 1000, temperature=0.9)
    check_sampler(DDPMConfig(prediction="v"), "dpm++", 1)
