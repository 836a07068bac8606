"""How a clean sample becomes noise in training, and what a network is to predict of it. Schedules are diffusers'."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Annotated, Any, Literal, assert_never

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from mentor.config import Config

# Names of diffusers' schedules, first and last variance. Its schedulers do not agree on what they are by themselves.
_SCHEDULES = {
    "cosine": ("squaredcos_cap_v2", 1e-4, 0.02),  # which takes no notice of the two
    "linear": ("linear", 1e-4, 0.02),
    "scaled_linear": ("scaled_linear", 0.00085, 0.012),
}


class FlowConfig(Config):
    """Rectified flow (arXiv 2209.03003): a straight line from sample to noise, along which the direction is predicted.

    Attributes:
        time_mean: training times are logit-normal (arXiv 2403.03206, section 3.1): the mean of their logits.
        time_std: standard deviation of their logits.
        shift: how much longer than in the middle a sample is kept noisy; more than 1 for large pictures, in training as
            in drawing.
    """

    kind: Literal["flow"] = "flow"
    time_mean: float = 0.0
    time_std: float = Field(default=1.0, gt=0)
    shift: float = Field(default=1.0, gt=0)

    @property
    def samplers(self) -> tuple[str, ...]:
        """Those that fit, the usual one first."""
        return ("euler", "heun", "dpm++")

    @property
    def called(self) -> str:
        """What the process is called in messages."""
        return "a flow model"


class DDPMConfig(Config):
    """Denoising diffusion (arXiv 2006.11239) of unit variance at all times.

    Attributes:
        prediction: the noise ("epsilon"), or "v" (arXiv 2202.00512, appendix D).
        schedule: of the noise, by diffusers' names without their endings.
        steps: in training.
        zero_snr: let nothing of the sample be left in the last step (arXiv 2305.08891).
    """

    kind: Literal["ddpm"] = "ddpm"
    prediction: Literal["epsilon", "v"] = "epsilon"
    schedule: Literal["cosine", "linear", "scaled_linear"] = "cosine"
    steps: int = Field(default=1000, gt=1)
    zero_snr: bool = False

    @model_validator(mode="after")
    def _check_prediction(self) -> "DDPMConfig":
        if self.zero_snr and self.prediction == "epsilon":
            raise ValueError(
                "zero_snr leaves nothing of the sample in the last step, of which epsilon then says nothing: "
                "take prediction=v, or zero_snr=false"
            )
        return self

    @property
    def samplers(self) -> tuple[str, ...]:
        """Those that fit, the usual one first."""
        # Heun's has no scale for a step in which there is noise alone.
        return ("ddim", "ddpm", "dpm++", "euler") + (() if self.zero_snr else ("heun",))

    @property
    def called(self) -> str:
        """What the process is called in messages."""
        return f"a model that predicts {self.prediction}" + (" with zero_snr" if self.zero_snr else "")


ProcessConfig = Annotated[FlowConfig | DDPMConfig, Field(discriminator="kind")]


class Process(ABC):
    """Between clean samples of mean 0 and variance 1 and noise.

    Times are in diffusers' unit: from 0, where a sample is clean, to `span`, where it is noise.
    """

    span: float

    @abstractmethod
    def times(self, uniform: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Times to train at, for numbers in [0, 1): so an example's time depends on its own chance alone."""

    @abstractmethod
    def noisy(self, clean: Float[Tensor, "b *n"], noise: Float[Tensor, "b *n"], time: Float[Tensor, "b"]) -> Tensor:
        """What is left of clean samples at these times."""

    @abstractmethod
    def target(self, clean: Float[Tensor, "b *n"], noise: Float[Tensor, "b *n"], time: Float[Tensor, "b"]) -> Tensor:
        """What is to be predicted of them."""

    @abstractmethod
    def clean(self, noisy: Float[Tensor, "b *n"], predicted: Float[Tensor, "b *n"], time: Float[Tensor, "b"]) -> Tensor:
        """The clean samples that a prediction stands for."""


class FlowProcess(Process):
    """x_t = (1 - t) x + t e, of which e - x is predicted; times are a thousand times t."""

    span = 1000.0

    def __init__(self, config: FlowConfig) -> None:
        self.config = config

    def times(self, uniform: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Logit-normal times, shifted."""
        config = self.config
        normal = torch.special.ndtri(uniform.double().clamp(1e-7, 1 - 1e-7))
        time = torch.sigmoid(config.time_mean + config.time_std * normal)
        return (self.span * config.shift * time / (1 + (config.shift - 1) * time)).float()

    def noisy(self, clean: Float[Tensor, "b *n"], noise: Float[Tensor, "b *n"], time: Float[Tensor, "b"]) -> Tensor:
        """What is left of clean samples at these times."""
        return torch.lerp(clean, noise, _wide(time / self.span, clean))

    def target(self, clean: Float[Tensor, "b *n"], noise: Float[Tensor, "b *n"], time: Float[Tensor, "b"]) -> Tensor:
        """The direction from sample to noise."""
        return noise - clean

    def clean(self, noisy: Float[Tensor, "b *n"], predicted: Float[Tensor, "b *n"], time: Float[Tensor, "b"]) -> Tensor:
        """The clean samples that a prediction stands for."""
        return noisy - _wide(time / self.span, noisy) * predicted


class DDPMProcess(Process):
    """x_t = a_t x + s_t e with a_t^2 + s_t^2 = 1; times are the numbers of steps."""

    def __init__(self, config: DDPMConfig) -> None:
        self.config = config
        self.span = float(config.steps)

    @cached_property
    def _scheduler(self) -> Any:
        # Imported here: it takes seconds, and only those who have noise need it.
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        return DDPMScheduler(**schedule_of(self.config))

    def times(self, uniform: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Every step as often as the others."""
        return (uniform * self.config.steps).floor().clamp(max=self.config.steps - 1)

    def noisy(self, clean: Float[Tensor, "b *n"], noise: Float[Tensor, "b *n"], time: Float[Tensor, "b"]) -> Tensor:
        """What is left of clean samples at these times."""
        return self._scheduler.add_noise(clean, noise, time.long())

    def target(self, clean: Float[Tensor, "b *n"], noise: Float[Tensor, "b *n"], time: Float[Tensor, "b"]) -> Tensor:
        """The noise, or a_t e - s_t x."""
        if self.config.prediction == "epsilon":
            return noise
        return self._scheduler.get_velocity(clean, noise, time.long())

    def clean(self, noisy: Float[Tensor, "b *n"], predicted: Float[Tensor, "b *n"], time: Float[Tensor, "b"]) -> Tensor:
        """The clean samples that a prediction stands for."""
        left = self._scheduler.alphas_cumprod.to(noisy.device)[time.long()]
        signal, spread = _wide(left.sqrt(), noisy), _wide((1 - left).sqrt(), noisy)
        if self.config.prediction == "epsilon":
            return (noisy - spread * predicted) / signal
        return signal * noisy - spread * predicted


def schedule_of(config: DDPMConfig) -> dict[str, Any]:
    """The schedule as diffusers' schedulers are told of it."""
    name, first, last = _SCHEDULES[config.schedule]
    return {
        "num_train_timesteps": config.steps,
        "beta_schedule": name,
        "beta_start": first,
        "beta_end": last,
        "prediction_type": "v_prediction" if config.prediction == "v" else "epsilon",
        **({"rescale_betas_zero_snr": True} if config.zero_snr else {}),
    }


def build_process(config: ProcessConfig) -> Process:
    """The process that `config` describes."""
    match config:
        case FlowConfig():
            return FlowProcess(config)
        case DDPMConfig():
            return DDPMProcess(config)
        case _:
            assert_never(config)


def _wide(values: Float[Tensor, "b"], like: Tensor) -> Tensor:
    """A number for each sample, where it can be multiplied with samples."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
