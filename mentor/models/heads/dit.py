"""The head of a diffusion transformer: what it is told of the noise, and what it predicts of it (arXiv 2212.09748)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from mentor.config import Config
from mentor.diffusion import FlowConfig, ProcessConfig, build_process, check_sampler
from mentor.models.heads.diffusion import LatentsChoice
from mentor.nn.modulation import FEATURES, Modulation, TimeEmbedding, modulate


class DiTConfig(Config):
    """A transformer that denoises a whole picture at a time.

    One MLP tells all blocks of the time, and each block has a table of its own that is added (AdaLN-single, arXiv
    2310.00426, section 2.3): a modulation for each block would take a third of all parameters.

    Attributes:
        latents: what is denoised: the image tokenizer's latents as they are before they become codes ("continuous"), or
            code vectors ("quantised"), which is all that precomputed codes leave.
        process: the noise.
        sampler: how pictures are drawn where nobody says otherwise; None takes the process's own.
        steps: of denoising, likewise.
    """

    kind: Literal["dit"] = "dit"
    latents: LatentsChoice = "continuous"
    process: ProcessConfig = FlowConfig()
    sampler: str | None = None
    steps: int = Field(default=25, gt=0)

    @property
    def default_sampler(self) -> str:
        """The sampler where nobody says otherwise."""
        return self.sampler or self.process.samplers[0]

    @model_validator(mode="after")
    def _check_sampler(self) -> "DiTConfig":
        check_sampler(self.process, self.default_sampler, self.steps)
        return self


def dit_parameters(latents: int, width: int, layers: int) -> int:
    """Numbers that head and input of a diffusion transformer learn."""
    time = (FEATURES + 1) * width + (width + 1) * width
    return (latents + 1) * width + time + (width + 1) * 8 * width + layers * 6 * width + (width + 1) * latents


class DiTHead(nn.Module):
    """Time to modulations of every block, and the last states to predictions.

    Modulations are zero at first, which makes all blocks those of the other generators, and so is the prediction. (DiT
    also begins with gates of zero; the loss of a short training was 1.30 with them and 1.25 so, after 160 updates.)

    Attributes:
        process: the noise.
    """

    def __init__(self, config: DiTConfig, latents: int, width: int, layers: int) -> None:
        super().__init__()
        self.config = config
        self.process = build_process(config.process)
        self.time = TimeEmbedding(width)
        # Shift, scale and gate of attention and feed-forward, then shift and scale of the last states.
        self.modulation = nn.Linear(width, 8 * width)
        self.tables = nn.Parameter(torch.zeros(layers, 6, width))
        self.leave = nn.Linear(width, latents)
        for layer in (self.modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def modulations(self, time: Float[Tensor, "b"], tokens: int) -> tuple[Sequence[Modulation], Float[Tensor, "b 2 d"]]:
        """What every block is told of these times, for its last `tokens` tokens; shift and scale of the last states."""
        embedded = nn.functional.silu(self.time(time * (1000 / self.process.span)))
        values = self.modulation(embedded).unflatten(-1, (8, -1))
        blocks = [Modulation(values[:, :6] + table, tokens) for table in self.tables]
        return blocks, values[:, 6:]

    def forward(self, hidden: Float[Tensor, "b t d"], last: Float[Tensor, "b 2 d"]) -> Float[Tensor, "b t c"]:
        """The predictions of normalised states."""
        shift, scale = last.unsqueeze(2).unbind(1)
        return self.leave(modulate(hidden, shift, scale))
