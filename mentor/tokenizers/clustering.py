"""Choosing code vectors by data: vectors drawn from all processes, and k-means on the unit sphere."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, distributed
from torch.nn import functional as F


def world_size() -> int:
    """Processes that train together, 1 when alone."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of every process's `values`, in place; the same on all of them."""
    if world_size() > 1:
        distributed.all_reduce(values)
    return values


def draw_for_clustering(vectors: Float[Tensor, "n c"], most: int) -> Float[Tensor, "m c"]:
    """About as many vectors as all processes have together, `most` at most; the same on all of them."""
    total = int(sum_over_processes(torch.tensor(len(vectors), device=vectors.device)))
    return draw_vectors(vectors, min(most, total))


def draw_vectors(
    vectors: Float[Tensor, "n c"], count: int, weights: Float[Tensor, "n"] | None = None
) -> Float[Tensor, "m c"]:
    """At least `count` vectors drawn from all processes' `vectors`; the same on all of them.

    Each process gives its share in random order, whatever number of vectors it has; where it has too few they repeat.

    Args:
        vectors: what to draw from.
        count: how many.
        weights: how likely each is to come first, above 0; all alike if left out.
    """
    processes = world_size()
    share = -(-count // processes)
    weights = vectors.new_ones(len(vectors)) if weights is None else weights
    order = torch.multinomial(weights, min(share, len(vectors)))
    order = order.repeat(-(-share // len(vectors)))[:share]
    drawn = vectors.detach()[order].contiguous()
    if processes == 1:
        return drawn
    gathered = [torch.empty_like(drawn) for _ in range(processes)]
    distributed.all_gather(gathered, drawn)
    # Interleaved, so that the first few come from all processes alike.
    return rearrange(torch.stack(gathered), "p n c -> (n p) c")


def spherical_kmeans(
    vectors: Float[Tensor, "n c"], clusters: int, rounds: int = 10
) -> tuple[Float[Tensor, "v c"], Float[Tensor, "v"]]:
    """Unit vectors in the middle of clusters of `vectors`, and the share of vectors in each cluster.

    Starts from the first `clusters` vectors (pass them in random order). A cluster that loses all its vectors moves to
    the vector that is farthest from its own centre.
    """
    vectors = F.normalize(vectors.float(), dim=-1)
    centres = vectors[torch.arange(clusters, device=vectors.device) % len(vectors)].clone()
    counts = vectors.new_zeros(clusters)
    for _ in range(rounds):
        similarity, nearest = (vectors @ centres.T).max(dim=-1)
        counts = torch.bincount(nearest, minlength=clusters).to(vectors.dtype)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        empty = (counts == 0).nonzero().squeeze(1)
        farthest = similarity.argsort()[: len(empty)]
        sums[empty[: len(farthest)]] = vectors[farthest]
        # Vectors that cancel out leave no direction; such a centre stays.
        moved = sums.norm(dim=-1, keepdim=True) > 1e-6
        centres = torch.where(moved, F.normalize(sums, dim=-1), centres)
    if world_size() > 1:
        distributed.broadcast(centres, src=0)
        distributed.broadcast(counts, src=0)
    return centres, counts / len(vectors)
