"""Finite scalar quantisation: a grid of levels instead of a codebook (arXiv 2309.15505)."""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from mentor.config import Config
from mentor.tokenizers.clustering import Draws
from mentor.tokenizers.quantizer import Quantizer, straight_through


class FSQConfig(Config):
    """A fixed grid; nothing in it learns and every code can be reached.

    Attributes:
        levels: values that each number of a code vector can take, three or more; the number of codes is their product.
    """

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(gt=2)], ...] = Field(default=(8, 8, 4, 4), min_length=1)


class FiniteScalarQuantizer(Quantizer):
    """Each number of the latent is bounded by tanh and rounded to one of its levels, which lie in [-1, 1]."""

    levels: Int[Tensor, "c"]
    strides: Int[Tensor, "c"]

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.config = config
        self.width = len(config.levels)
        self.vocab_size = math.prod(config.levels)
        strides = [math.prod(config.levels[:index]) for index in range(self.width)]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    @property
    def codebook(self) -> Float[Tensor, "v c"]:
        """All points of the grid; the first number runs fastest."""
        ids = torch.arange(self.vocab_size, device=self.levels.device).unsqueeze(1)
        return self._normalised((ids // self.strides % self.levels - self.levels // 2).float())

    def place(self, latents: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The vectors bounded so that rounding gives each level its share (the paper's appendix A.1)."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        # An even number of levels has no middle one: it is shifted by half a level.
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return self._normalised(torch.tanh(latents + torch.atanh(offset / half)) * half - offset)

    def nearest(self, placed: Float[Tensor, "n c"]) -> Int[Tensor, "n"]:
        """The grid points that the vectors are rounded to."""
        steps = torch.round(placed * (self.levels // 2)).long() + self.levels // 2
        return (steps * self.strides).sum(dim=-1)

    def blur(self, placed: Float[Tensor, "n c"], draws: Draws) -> Float[Tensor, "n c"]:
        """The vectors with even noise of one level's width."""
        return placed + self._normalised(draws.uniform("blur", placed) - 0.5)

    def quantize(self, latents: Float[Tensor, "n c"], draws: Draws | None) -> tuple[Tensor, Tensor, Tensor]:
        """Grid points and their ids; there is no loss."""
        placed = self.place(latents)
        ids = self.nearest(placed)
        return straight_through(self.codebook[ids], placed), ids, latents.new_zeros(())

    def _normalised(self, steps: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return steps / (self.levels // 2)
