"""Where code vectors lie, and which of them is near: on the unit sphere, or anywhere in space."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


class Geometry(Protocol):
    """What a codebook of vectors needs to know of the place they live in."""

    @property
    def best(self) -> float:
        """The likeness of a vector and itself; no likeness is greater."""
        ...

    def place(self, vectors: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The vectors where codes can lie."""
        ...

    def likeness(self, placed: Float[Tensor, "n c"], codes: Float[Tensor, "v c"]) -> Float[Tensor, "n v"]:
        """How near each code is to each placed vector: the nearest has the greatest likeness."""
        ...

    def middle(
        self, sums: Float[Tensor, "v c"], counts: Float[Tensor, "v"], before: Float[Tensor, "v c"]
    ) -> Float[Tensor, "v c"]:
        """The middles of clusters, from the sum and number of the vectors in each; `before` where there is none."""
        ...


@dataclass(frozen=True)
class Sphere:
    """Vectors of length 1, compared by the cosine of the angle between them (ViT-VQGAN, arXiv 2110.04627)."""

    best: float = 1.0

    def place(self, vectors: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The vectors scaled to length 1."""
        return F.normalize(vectors, dim=-1)

    def likeness(self, placed: Float[Tensor, "n c"], codes: Float[Tensor, "v c"]) -> Float[Tensor, "n v"]:
        """The cosines."""
        return placed @ codes.T

    def middle(
        self, sums: Float[Tensor, "v c"], counts: Float[Tensor, "v"], before: Float[Tensor, "v c"]
    ) -> Float[Tensor, "v c"]:
        """The directions of the sums."""
        # Vectors that cancel out leave no direction; such a centre stays.
        moved = sums.norm(dim=-1, keepdim=True) > 1e-6
        return torch.where(moved, F.normalize(sums, dim=-1), before)


@dataclass(frozen=True)
class Space:
    """Vectors as they are, compared by the distance between them (VQ-VAE, arXiv 1711.00937)."""

    best: float = 0.0

    def place(self, vectors: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The very vectors."""
        return vectors

    def likeness(self, placed: Float[Tensor, "n c"], codes: Float[Tensor, "v c"]) -> Float[Tensor, "n v"]:
        """Half the squared distances, negative."""
        own, theirs = (x.square().sum(dim=-1) / 2 for x in (placed, codes))
        return placed @ codes.T - own.unsqueeze(1) - theirs

    def middle(
        self, sums: Float[Tensor, "v c"], counts: Float[Tensor, "v"], before: Float[Tensor, "v c"]
    ) -> Float[Tensor, "v c"]:
        """The means."""
        return torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp(min=1).unsqueeze(1), before)
