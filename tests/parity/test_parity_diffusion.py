"""Noise and samplers against diffusers called by hand, and against formulas written with NumPy."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from scipy.stats import norm

from mentor.diffusion import DDPMConfig, FlowConfig, ProcessConfig, build_process, denoise
from mentor.nn.modulation import FEATURES, time_features

STEPS = 8
SCHEDULES = {
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}
DDPMS = [
    DDPMConfig(prediction=prediction, schedule=schedule) for prediction in ("epsilon", "v") for schedule in SCHEDULES
]
DDPMS += [DDPMConfig(prediction="v", schedule=schedule, zero_snr=True) for schedule in SCHEDULES]
every_ddpm = pytest.mark.parametrize("config", DDPMS, ids=repr)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(noisy: Any, time: Any) -> Any:
    """Any function of both."""
    return 0.5 * noisy + 0.1 * noisy**2 / (1 + noisy**2) + time / 2000


def ours(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return network(noisy, time[:, None])


def told(config: DDPMConfig) -> dict[str, Any]:
    prediction = "v_prediction" if config.prediction == "v" else "epsilon"
    return {**SCHEDULES[config.schedule], "prediction_type": prediction, "rescale_betas_zero_snr": config.zero_snr}


def left(config: DDPMConfig) -> np.ndarray:
    """What is left of a sample's variance after each step: the products of 1 - beta."""
    count, products = config.steps, []
    for step in range(count):
        if config.schedule == "cosine":
            first, second = (math.cos(((step + i) / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in (0, 1))
            beta = min(1 - second / first, 0.999)
        elif config.schedule == "linear":
            beta = 1e-4 + (0.02 - 1e-4) * step / (count - 1)
        else:
            low, high = math.sqrt(0.00085), math.sqrt(0.012)
            beta = (low + (high - low) * step / (count - 1)) ** 2
        products.append((products[-1] if products else 1.0) * (1 - beta))
    roots = np.sqrt(products)
    if config.zero_snr:
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return roots**2


@every_ddpm
def test_noise_and_targets_agree_with_a_loop_and_with_diffusers(config: DDPMConfig) -> None:
    process, library, products = build_process(config), DDPMScheduler(**told(config)), left(config)
    clean, noise, time = draw(0, 9, 3, 4), draw(1, 9, 3, 4), torch.tensor([0, 1, 10, 100, 300, 500, 800, 950, 999])
    noisy, target = process.noisy(clean, noise, time.float()), process.target(clean, noise, time.float())
    assert torch.equal(noisy, library.add_noise(clean, noise, time))
    velocity = library.get_velocity(clean, noise, time)
    assert torch.equal(target, velocity if config.prediction == "v" else noise)
    for row, step in enumerate(time.tolist()):
        signal, spread = math.sqrt(products[step]), math.sqrt(1 - products[step])
        x, e = clean[row].double().numpy(), noise[row].double().numpy()
        np.testing.assert_allclose(noisy[row], signal * x + spread * e, atol=2e-4)
        expected = signal * e - spread * x if config.prediction == "v" else e
        np.testing.assert_allclose(target[row], expected, atol=2e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_agrees_with_a_loop_and_with_diffusers(shift: float) -> None:
    process, library = build_process(FlowConfig(shift=shift)), FlowMatchEulerDiscreteScheduler(shift=shift)
    clean, noise, time = draw(0, 5, 3, 4), draw(1, 5, 3, 4), library.timesteps[[0, 100, 500, 900, 999]]
    noisy, target = process.noisy(clean, noise, time), process.target(clean, noise, time)
    torch.testing.assert_close(noisy, library.scale_noise(clean, time, noise))
    for row in range(5):
        x, e, share = clean[row].double().numpy(), noise[row].double().numpy(), time[row].item() / 1000
        np.testing.assert_allclose(noisy[row], (1 - share) * x + share * e, atol=1e-6)
        np.testing.assert_allclose(target[row], e - x, atol=1e-6)


@pytest.mark.parametrize("config", [FlowConfig(), FlowConfig(time_mean=-0.8, time_std=1.4, shift=2.5)], ids=repr)
def test_flow_times_have_the_quantiles_of_a_shifted_logit_normal(config: FlowConfig) -> None:
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = build_process(config).times(uniform).double().numpy() / 1000
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        plain = 1 / (1 + math.exp(-(config.time_mean + config.time_std * norm.ppf(share))))
        expected = config.shift * plain / (1 + (config.shift - 1) * plain)
        assert np.quantile(times, share) == pytest.approx(expected, abs=0.006)


def test_ddpm_times_are_even() -> None:
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    counts = build_process(DDPMConfig(steps=20)).times(uniform).long().bincount()
    np.testing.assert_allclose(counts / 10_000, np.ones(20), atol=0.04)


@pytest.mark.parametrize("width", [8, FEATURES])
def test_time_features_agree_with_a_loop_and_with_diffusers(width: int) -> None:
    time = torch.tensor([0.0, 0.25, 1.0, 37.5, 500.0, 999.0, 1000.0])
    features = time_features(time, width)
    library = get_timestep_embedding(time, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    # Angles of up to 1000 have an error of 6e-5 in single precision.
    torch.testing.assert_close(features, library, atol=2e-4, rtol=0)
    for row, now in enumerate(time.tolist()):
        angles = [now / 10000 ** (2 * j / width) for j in range(width // 2)]
        expected = [*map(math.cos, angles), *map(math.sin, angles)]
        np.testing.assert_allclose(features[row], expected, atol=2e-4)


def spacing(config: DDPMConfig) -> str:
    return "leading" if config.prediction == "epsilon" else "trailing"


def library_of(config: ProcessConfig, sampler: str) -> Any:
    if isinstance(config, FlowConfig):
        return {
            "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=config.shift),
            "heun": lambda: FlowMatchHeunDiscreteScheduler(shift=config.shift),
            "dpm++": lambda: DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config.shift
            ),
        }[sampler]()
    settings = {**told(config), "timestep_spacing": spacing(config)}
    if sampler == "heun":
        settings = {**settings, "use_karras_sigmas": True}
        del settings["rescale_betas_zero_snr"]
        return HeunDiscreteScheduler(**settings)
    if sampler in ("ddim", "ddpm"):
        return DDIMScheduler(**settings, clip_sample=False)
    return {"euler": EulerDiscreteScheduler, "dpm++": DPMSolverMultistepScheduler}[sampler](**settings)


PAIRS = [(config, sampler) for config in (FlowConfig(), FlowConfig(shift=3.0), *DDPMS) for sampler in config.samplers]


@pytest.mark.parametrize("steps", [2, STEPS])
@pytest.mark.parametrize(("config", "sampler"), PAIRS, ids=[f"{name}-{one!r}" for one, name in PAIRS])
def test_samplers_agree_with_diffusers_called_by_hand(config: ProcessConfig, sampler: str, steps: int) -> None:
    scheduler, start, noise = library_of(config, sampler), draw(0, 3, 5), draw(1, steps, 3, 5)
    if isinstance(config, FlowConfig) and sampler == "euler":
        scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
    else:
        scheduler.set_timesteps(steps)
    sample = start * getattr(scheduler, "init_noise_sigma", 1.0)
    for step, time in enumerate(scheduler.timesteps):
        noisy = scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else sample
        extra = {"eta": 1.0, "variance_noise": noise[step]} if sampler == "ddpm" else {}
        sample = scheduler.step(network(noisy, time.float()), time, sample, **extra).prev_sample
    fresh = iter(noise)
    drawn = denoise(config, ours, start, sampler, steps, fresh=lambda: next(fresh))
    # Where nothing of a sample is left, ours keeps a thousandth of the old noise, lest rounding makes it no number.
    loose = isinstance(config, DDPMConfig) and config.zero_snr and sampler == "ddpm"
    if sample.isfinite().all() or not loose:
        torch.testing.assert_close(drawn, sample, atol=5e-3 if loose else 1e-5, rtol=5e-3 if loose else 1e-5)
    assert drawn.isfinite().all()


def flow_by_hand(sampler: str, shift: float, x: np.ndarray) -> np.ndarray:
    if sampler == "heun":
        levels = np.append(np.linspace(1, 0.001, STEPS), 0)
    elif sampler == "euler":
        levels = np.linspace(1, 0, STEPS + 1)
    else:
        levels = np.append(np.linspace(0, 0.999, STEPS + 1)[:0:-1], 0)
    levels = shift * levels / (1 + (shift - 1) * levels)
    before: tuple[np.ndarray, float] | None = None
    for now, then in pairwise(levels):
        # dpm++ tells the network of whole times.
        slope = network(x, math.floor(1000 * now + 1e-6) if sampler == "dpm++" else 1000 * now)
        if sampler == "dpm++":
            clean = x - now * slope
            if then == 0:
                return clean
            width = math.log((1 - then) / then) - (math.log((1 - now) / now))
            guess = clean if before is None else clean + (clean - before[0]) * width / before[1] / 2
            x = then / now * x - (1 - then) * math.expm1(-width) * guess
            before = clean, width
        elif sampler == "heun" and then > 0:
            x = x + (then - now) * (slope + network(x + (then - now) * slope, 1000 * then)) / 2
        else:
            x = x + (then - now) * slope
    return x


# Heun's own settings shift the last level twice.
@pytest.mark.parametrize(("sampler", "shift"), [("euler", 1.0), ("euler", 3.0), ("heun", 1.0), ("dpm++", 1.0)])
def test_flow_samplers_agree_with_a_loop(sampler: str, shift: float) -> None:
    start = draw(0, 3, 5)
    drawn = denoise(FlowConfig(shift=shift), ours, start, sampler, STEPS)
    np.testing.assert_allclose(drawn, flow_by_hand(sampler, shift, start.double().numpy()), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("config", [one for one in DDPMS if not one.zero_snr], ids=repr)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler"])
def test_ddpm_samplers_agree_with_a_loop(config: DDPMConfig, sampler: str) -> None:
    start, noise, products = draw(0, 3, 5), draw(1, STEPS, 3, 5), left(config)
    fresh, x, wide = iter(noise), start.double().numpy(), 1000 // STEPS
    drawn = denoise(config, ours, start, sampler, STEPS, fresh=lambda: next(fresh))
    times = [wide * step for step in range(STEPS)] if config.prediction == "epsilon" else range(wide - 1, 1000, wide)
    for step, time in enumerate(reversed(times)):
        now, then = products[time], products[time - wide] if time >= wide else 1.0
        predicted = network(x, time)
        clean = (x - math.sqrt(1 - now) * predicted) / math.sqrt(now)
        if config.prediction == "v":
            clean = math.sqrt(now) * x - math.sqrt(1 - now) * predicted
        rest = (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
        # The posterior's standard deviation. Without it, Euler's steps in the ratio of noise to sample are DDIM's.
        std = math.sqrt((1 - then) / (1 - now) * (1 - now / then)) if sampler == "ddpm" else 0.0
        x = math.sqrt(then) * clean + math.sqrt(1 - then - std**2) * rest + std * noise[step].double().numpy()
    # Of a cosine nearly nothing is left in the last step, which single precision does not divide well.
    np.testing.assert_allclose(drawn, x, rtol=5e-3, atol=5e-3)
