"""From noise to samples, by diffusers' schedulers."""

import copy
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from mentor.diffusion.processes import DDPMConfig, FlowConfig, ProcessConfig, schedule_of
from mentor.errors import UserError

SAMPLERS = ("euler", "heun", "dpm++", "ddim", "ddpm")
# The one that adds noise in every step.
ANCESTRAL = "ddpm"
# Steps of a training with flow matching, as diffusers counts them.
_FLOW_STEPS = 1000

Predict = Callable[[Float[Tensor, "b *n"], Float[Tensor, "b"]], Float[Tensor, "b *n"]]


def check_sampler(config: ProcessConfig, sampler: str, steps: int, temperature: float = 1.0) -> None:
    """Nothing, where samples can be drawn so.

    Args:
        config: the noise that the model was trained with.
        sampler: see `SAMPLERS`.
        steps: of denoising.
        temperature: of the noise that is added in every step.

    Raises:
        UserError: the sampler does not fit the process, the steps are none or too many, or no noise is added that could
            have a temperature.
    """
    if sampler not in config.samplers:
        raise UserError(
            f"sampler {sampler} does not fit {config.called}: choose {', '.join(config.samplers[:-1])} "
            f"or {config.samplers[-1]}"
        )
    least, most = _bounds(config, sampler)
    if not least <= steps <= most:
        raise UserError(
            f"steps {steps}: denoising takes {least} to {most} of them with sampler {sampler} (10 to 50 are usual)"
        )
    if temperature != 1 and sampler != ANCESTRAL:
        choose = f"take sampler {ANCESTRAL}, or temperature 1" if ANCESTRAL in config.samplers else "take temperature 1"
        raise UserError(f"temperature {temperature:g} scales noise that sampler {sampler} does not add: {choose}")


def calls(sampler: str, steps: int) -> int:
    """How often `denoise` asks the network: heun corrects every step but its last with a second call."""
    return 2 * steps - 1 if sampler == "heun" else steps


@torch.no_grad()
def denoise(
    config: ProcessConfig,
    predict: Predict,
    start: Float[Tensor, "b *n"],
    sampler: str,
    steps: int,
    fresh: Callable[[], Float[Tensor, "b *n"]] | None = None,
    temperature: float = 1.0,
    on_step: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "b *n"]:
    """Clean samples.

    Args:
        config: the noise that the network was trained with.
        predict: the network: noisy samples, as training makes them at these times, to what it was trained to predict.
        start: noise of variance 1.
        sampler: see `SAMPLERS`.
        steps: of denoising; heun asks the network about twice in each.
        fresh: more of such noise, for the sampler that adds some in every step.
        temperature: its standard deviation (arXiv 2406.11838, section 3.2).
        on_step: called with (calls of the network done, calls in all).

    Raises:
        UserError: see `check_sampler`.
    """
    check_sampler(config, sampler, steps, temperature)
    # What a scheduler remembers of earlier steps is made anew by `set_timesteps`.
    scheduler = copy.copy(_scheduler(config, sampler))  # pyright: ignore[reportArgumentType]
    _set_times(scheduler, config, sampler, steps, start.device)
    sample = start * getattr(scheduler, "init_noise_sigma", 1.0)
    times = scheduler.timesteps
    # Asked of once: each question to a tensor makes an accelerator wait.
    for number, time in enumerate(times.tolist()):
        noisy = (
            scheduler.scale_model_input(sample, times[number]) if hasattr(scheduler, "scale_model_input") else sample
        )
        predicted = predict(noisy, torch.full((len(sample),), float(time), device=sample.device))
        extra: dict[str, Any] = {}
        if sampler == ANCESTRAL:
            assert fresh is not None, "this sampler adds noise"
            extra = {"eta": _eta(config), "variance_noise": temperature * fresh()}
        sample = scheduler.step(predicted, times[number], sample, return_dict=False, **extra)[0]
        if on_step is not None:
            on_step(number + 1, len(times))
    return sample


def _bounds(config: ProcessConfig, sampler: str) -> tuple[int, int]:
    """The least and the most steps that a scheduler can take."""
    match config:
        case FlowConfig():
            return 1, _FLOW_STEPS
        case DDPMConfig(prediction="epsilon"):
            # They begin a little before the last step of all (see `_scheduler`): a single one would begin at the first,
            # which hands the noise back, and dpm++ has none left for as many as there are.
            return 2, config.steps - (sampler == "dpm++")
        case DDPMConfig():
            return 1, config.steps
        case _:
            assert_never(config)


def _eta(config: ProcessConfig) -> float:
    """Share of the posterior's standard deviation that the ancestral sampler adds."""
    # Where nothing of the sample is left, all noise is new, and the rest of the old is the root of a number that
    # rounding can bring below 0.
    return 1 - 1e-6 if isinstance(config, DDPMConfig) and config.zero_snr else 1.0


def _set_times(scheduler: Any, config: ProcessConfig, sampler: str, steps: int, device: torch.device) -> None:
    if isinstance(config, FlowConfig) and sampler == "euler":
        # Even steps down to a clean sample; by itself it would end with one from a thousandth of noise.
        scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)], device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        # They would look for the first time in their table, where with a shift it may stand twice, rounded.
        scheduler.set_begin_index(0)


@lru_cache(maxsize=32)
def _scheduler(config: ProcessConfig, sampler: str) -> Any:
    """Diffusers' scheduler, in which nothing is remembered yet."""
    # Imported here: it takes seconds, and only those who denoise need it.
    diffusers: Any = import_module("diffusers.schedulers")
    match config:
        case FlowConfig():
            match sampler:
                case "euler":
                    return diffusers.FlowMatchEulerDiscreteScheduler(shift=config.shift)
                case "heun":
                    return diffusers.FlowMatchHeunDiscreteScheduler(shift=config.shift)
                case _:
                    return diffusers.DPMSolverMultistepScheduler(
                        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config.shift
                    )
        case DDPMConfig():
            schedule = schedule_of(config)
            # At the last step of all nearly nothing of a sample is left, and what the noise says of it is multiplied by
            # thousands; so a model that predicts noise begins a little before.
            schedule["timestep_spacing"] = "leading" if config.prediction == "epsilon" else "trailing"
            match sampler:
                case "ddim" | "ddpm":
                    return diffusers.DDIMScheduler(**schedule, clip_sample=False)
                case "euler":
                    return diffusers.EulerDiscreteScheduler(**schedule)
                case "heun":
                    return diffusers.HeunDiscreteScheduler(**schedule, use_karras_sigmas=True)
                case _:
                    return diffusers.DPMSolverMultistepScheduler(**schedule)
        case _:
            assert_never(config)
