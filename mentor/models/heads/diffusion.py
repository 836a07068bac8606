"""The diffusion head: the distribution of one continuous token, given a hidden state (arXiv 2406.11838, section 3)."""

from typing import Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from mentor.config import Config
from mentor.diffusion import ANCESTRAL, DDPMConfig, ProcessConfig, build_process, check_sampler
from mentor.nn.modulation import FEATURES, TimeEmbedding, modulate

LatentsChoice = Literal["continuous", "quantised"]


class DiffusionHeadConfig(Config):
    """A small MLP that denoises one token at a time.

    Attributes:
        order: "raster" writes token after token, each after all before it. "random" is masked generation: hidden tokens
            in any order, many at a time, and all tokens see each other.
        latents: what is predicted of the image tokenizer: latents as they are before they become codes ("continuous"),
            or code vectors ("quantised"), which is all that precomputed codes leave.
        process: the noise; epsilon with a cosine schedule is the paper's.
        width: of the MLP, 0 takes the one with which the generator has as many parameters as one with an AR head.
        blocks: residual blocks.
        repeats: times that are drawn for each token in training, for one pass of the backbone.
        sampler: how tokens are drawn where nobody says otherwise; None takes `ddpm`, whose noise has a temperature, or
            what the process has where that does not fit.
        steps: of denoising a token, likewise.
        mask_mean: of random order: share of tokens that is hidden in training, the mean of a normal distribution that
            is cut off at `mask_least` and 1.
        mask_std: its standard deviation.
        mask_least: the least share.
        tokens_per_step: of random order: tokens drawn at a time on average, where nobody says otherwise.
    """

    kind: Literal["diffusion"] = "diffusion"
    order: Literal["raster", "random"] = "raster"
    latents: LatentsChoice = "continuous"
    process: ProcessConfig = DDPMConfig(prediction="epsilon")
    width: int = Field(default=0, ge=0)
    blocks: int = Field(default=3, gt=0)
    repeats: int = Field(default=4, gt=0)
    sampler: str | None = None
    steps: int = Field(default=25, gt=0)
    mask_mean: float = 1.0
    mask_std: float = Field(default=0.25, gt=0)
    mask_least: float = Field(default=0.7, gt=0, le=1)
    tokens_per_step: int = Field(default=4, gt=0)

    @property
    def default_sampler(self) -> str:
        """The sampler where nobody says otherwise."""
        if self.sampler is not None:
            return self.sampler
        samplers = self.process.samplers
        return ANCESTRAL if ANCESTRAL in samplers else samplers[0]

    @model_validator(mode="after")
    def _check_sampler(self) -> "DiffusionHeadConfig":
        check_sampler(self.process, self.default_sampler, self.steps)
        return self


def mlp_parameters(config: DiffusionHeadConfig, latents: int, width: int, hidden: int) -> int:
    """Numbers that the head learns with a `hidden` width, for latents of so many numbers and states of `width`."""
    w = hidden
    enter = (latents + 1) * w + (width + 1) * w + (FEATURES + 1) * w + (w + 1) * w
    block = 3 * (w + 1) * w + 2 * (w + 1) * w + 2 * w
    return enter + config.blocks * block + 2 * (w + 1) * w + (w + 1) * latents


class ResidualBlock(nn.Module):
    """Normalised, modulated, through two layers, gated, added: an identity at first, since its gate is zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Float[Tensor, "n d"], told: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The tokens after this block, by what they are told of state and time."""
        shift, scale, gate = self.modulation(told).chunk(3, dim=-1)
        return x + gate * self.mlp(modulate(self.norm(x), shift, scale))


class DiffusionHead(nn.Module):
    """An MLP that predicts the noise (or what the process has in its place) in tokens, given their hidden states.

    Attributes:
        process: the noise.
    """

    def __init__(self, config: DiffusionHeadConfig, latents: int, width: int) -> None:
        super().__init__()
        assert config.width, "the width follows from others: `matched` fills it in"
        self.config = config
        self.process = build_process(config.process)
        self.enter = nn.Linear(latents, config.width)
        self.state = nn.Linear(width, config.width)
        self.time = TimeEmbedding(config.width)
        self.blocks = nn.ModuleList(ResidualBlock(config.width) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.leave = nn.Linear(config.width, latents)
        for layer in (self.modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, noisy: Float[Tensor, "n c"], time: Float[Tensor, "n"], states: Float[Tensor, "n w"]
    ) -> Float[Tensor, "n c"]:
        """The prediction for noisy tokens.

        Args:
            noisy: what the process makes of tokens at these times.
            time: in the process's unit.
            states: `condition` of the backbone's hidden states.
        """
        told = nn.functional.silu(self.time(time * (1000 / self.process.span)) + states)
        x = self.enter(noisy)
        for block in self.blocks:
            x = block(x, told)
        shift, scale = self.modulation(told).chunk(2, dim=-1)
        return self.leave(modulate(self.norm(x), shift, scale))

    def loss(
        self,
        clean: Float[Tensor, "n c"],
        states: Float[Tensor, "n d"],
        uniform: Float[Tensor, "n"],
        noise: Float[Tensor, "n c"],
    ) -> Float[Tensor, "n"]:
        """Mean squared error of the prediction of each token (equation 1).

        Args:
            clean: the true tokens.
            states: hidden states that are to tell of them.
            uniform: numbers in [0, 1) that the times are drawn by.
            noise: of variance 1.
        """
        time = self.process.times(uniform)
        noisy = self.process.noisy(clean, noise, time)
        predicted = self(noisy, time, self.condition(states))
        return (predicted.float() - self.process.target(clean, noise, time)).square().mean(dim=-1)

    def condition(self, states: Float[Tensor, "n d"]) -> Float[Tensor, "n w"]:
        """What the MLP is told of hidden states: the same at every step of a token."""
        return self.state(states)
