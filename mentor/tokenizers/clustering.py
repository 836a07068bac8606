"""Choosing code vectors by data: vectors drawn from all processes, and k-means.

What is drawn does not depend on how many processes share the pictures: chance belongs to a picture (`Draws`), and the
vectors of all processes are one set.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from mentor.tokenizers.geometry import Geometry


def world_size() -> int:
    """Processes that train together, 1 when alone."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of every process's `values`, in place; the same on all of them."""
    if world_size() > 1:
        distributed.all_reduce(values)
    return values


@dataclass(frozen=True)
class Draws:
    """Random numbers for the vectors of pictures: the same for a picture, whichever process has it and beside which.

    Attributes:
        seed: of the training step; the same on all processes.
        places: for each picture of this process its number among those of all; no two have the same.
    """

    seed: str
    places: Sequence[int]

    @classmethod
    def own(cls) -> "Draws":
        """Chance from torch's global generator, for whoever has no step to name; all vectors count as one picture's."""
        rank = distributed.get_rank() if world_size() > 1 else 0
        return cls(f"{int(torch.randint(2**62, (), device='cpu'))}", (rank,))

    def normal(self, purpose: str, vectors: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Numbers from the standard normal distribution, as many as `vectors` has."""
        return self._numbers(purpose, vectors, torch.randn)

    def uniform(self, purpose: str, vectors: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Numbers from [0, 1), as many as `vectors` has."""
        return self._numbers(purpose, vectors, torch.rand)

    def exponential(self, purpose: str, vectors: Float[Tensor, "n c"]) -> Float[Tensor, "n"]:
        """A number a vector from the exponential distribution with mean 1; float64 on the CPU."""
        # In float32 two of some ten thousand would often be equal, and their order then that of the processes.
        wide = torch.empty(len(vectors), 1, dtype=torch.float64, device="cpu")
        return -torch.log1p(-self._numbers(purpose, wide, torch.rand)).squeeze(1)

    def _numbers(self, purpose: str, like: Tensor, draw: Callable[..., Tensor]) -> Tensor:
        # Always on the CPU, whose generator gives the same numbers on every machine.
        each = len(like) // max(1, len(self.places))
        parts = []
        for place in self.places:
            seed = random.Random(f"{self.seed}/{purpose}/{place}").getrandbits(63)
            generator = torch.Generator("cpu").manual_seed(seed)
            parts.append(draw(each, like.shape[1], generator=generator, dtype=like.dtype, device="cpu"))
        return torch.cat(parts).to(like.device)


def draw_vectors(
    vectors: Float[Tensor, "n c"], most: int, draws: Draws, weights: Float[Tensor, "n"] | None = None
) -> Float[Tensor, "m c"]:
    """Vectors drawn without replacement from those of all processes, in random order; the same on all of them.

    Each vector runs a time from the exponential distribution divided by its weight, and the first ones home are taken:
    a weighted draw whose result does not depend on who has which vector (Efraimidis and Spirakis 2006).

    Args:
        vectors: what to draw from; processes may have different numbers of them.
        most: how many; all where there are not so many.
        draws: the chance.
        weights: how likely each is to come first, above 0; all alike if left out.
    """
    times = draws.exponential("draw", vectors)
    if weights is not None:
        times = times / weights.to(times)
    here, order = times.topk(min(most, len(times)), largest=False)
    order = order.to(vectors.device)
    if world_size() == 1:
        return vectors.detach()[order]
    longest = torch.tensor(len(here), device=vectors.device)
    distributed.all_reduce(longest, distributed.ReduceOp.MAX)
    padded = torch.full((int(longest),), torch.inf, dtype=times.dtype, device=vectors.device)
    padded[: len(here)] = here.to(vectors.device)
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    distributed.all_gather(gathered, padded)
    first, best = torch.cat(gathered).sort()
    best = best[first.isfinite()][:most]
    # Each process fills in the rows of its own vectors, and sums with zeros change nothing.
    own = best // len(padded) == distributed.get_rank()
    drawn = vectors.new_zeros(len(best), vectors.shape[1])
    drawn[own] = vectors.detach()[order[best[own] % len(padded)]]
    return sum_over_processes(drawn)


def kmeans(
    vectors: Float[Tensor, "n c"], clusters: int, geometry: Geometry, rounds: int = 10
) -> tuple[Float[Tensor, "v c"], Float[Tensor, "v"]]:
    """The middles of clusters of `vectors`, and the share of vectors in each cluster.

    Starts from the first `clusters` vectors (pass them in random order). A cluster that loses all its vectors moves to
    the vector that is farthest from its own centre.
    """
    vectors = geometry.place(vectors.float())
    centres = vectors[torch.arange(clusters, device=vectors.device) % len(vectors)].clone()
    counts = vectors.new_zeros(clusters)
    for _ in range(rounds):
        likeness, nearest = geometry.likeness(vectors, centres).max(dim=-1)
        counts = torch.bincount(nearest, minlength=clusters).to(vectors.dtype)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        empty = (counts == 0).nonzero().squeeze(1)
        farthest = likeness.argsort()[: len(empty)]
        sums[empty[: len(farthest)]] = vectors[farthest]
        filled = counts.clone()
        filled[empty[: len(farthest)]] = 1
        centres = geometry.middle(sums, filled, centres)
    if world_size() > 1:
        distributed.broadcast(centres, src=0)
        distributed.broadcast(counts, src=0)
    return centres, counts / len(vectors)
