"""Chance of pictures, each from a seed of its own: it depends neither on the neighbours nor on the device."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Draws:
    """A source of random numbers for each picture of a batch.

    Args:
        seeds: of each picture.
        device: where the numbers are wanted; they are drawn on the CPU, which gives the same ones everywhere.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def uniform(self, *shape: int) -> Float[Tensor, "b *shape"]:
        """Numbers in [0, 1), so many for each picture."""
        return self._each(lambda generator: torch.rand(shape, generator=generator, device="cpu"))

    def normal(self, *shape: int) -> Float[Tensor, "b *shape"]:
        """Numbers of mean 0 and variance 1, so many for each picture."""
        return self._each(lambda generator: torch.randn(shape, generator=generator, device="cpu"))

    def order(self, count: int) -> Int[Tensor, "b n"]:
        """The numbers below `count` in a random order, for each picture."""
        return self._each(lambda generator: torch.randperm(count, generator=generator, device="cpu"))

    def _each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self._generators]).to(self.device)
