"""Logits processors, and draws that depend on one number each."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mentor.decoding.settings import SamplingConfig

LogitsProcessor = Callable[[Float[Tensor, "b v"]], Float[Tensor, "b v"]]


def standard_processors(config: SamplingConfig) -> list[LogitsProcessor]:
    """Temperature, top-k and top-p as logits processors, in this order; none of what has no effect."""
    processors: list[LogitsProcessor] = []
    if config.temperature not in (0, 1):
        processors.append(lambda logits: logits / config.temperature)
    if config.top_k:
        processors.append(lambda logits: keep_top_k(logits, config.top_k))
    if config.top_p < 1:
        processors.append(lambda logits: keep_top_p(logits, config.top_p))
    return processors


def keep_top_k(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b v"]:
    """The logits with all but the `k` largest of each row at minus infinity (ties with the k-th stay)."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """The logits with all at minus infinity but the fewest likeliest that together reach `p` (arXiv 1904.09751)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))


def draw(logits: Float[Tensor, "b v"], uniform: Float[Tensor, "b"]) -> Int[Tensor, "b"]:
    """One token a row by inversion: the first whose cumulative probability exceeds `uniform` in [0, 1).

    One number a token, drawn beforehand from the row's own seed, makes a row independent of its neighbours.
    """
    return invert(logits.softmax(dim=-1), uniform)


def invert(weights: Float[Tensor, "b v"], uniform: Float[Tensor, "b"]) -> Int[Tensor, "b"]:
    """One token a row, each as likely as its share of the row's weights; a token of weight 0 is never taken.

    The sums go over runs of tokens first and then over the tokens of one run, in float64: a third of the time of one
    running sum over all, and no rounding that grows with the vocabulary.
    """
    rows, codes = weights.shape
    run = max(1, round(codes**0.5))
    if codes % run:
        weights = torch.nn.functional.pad(weights, (0, -codes % run))
    runs = weights.unflatten(-1, (-1, run))
    ends = runs.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    # Scaled by the total, so that rounding can never point past the last token that has any weight.
    target = uniform.double().unsqueeze(-1) * ends[:, -1:]
    chosen = torch.searchsorted(ends, target, right=True)
    inner = runs[torch.arange(rows, device=weights.device), chosen.squeeze(-1).clamp(max=runs.shape[1] - 1)]
    inner_ends = inner.cumsum(dim=-1, dtype=torch.float64)
    rest = target - (ends.gather(-1, chosen.clamp(max=runs.shape[1] - 1)) - inner_ends[:, -1:])
    # By rounding the rest may be the run's whole weight or a little less than nothing; the run was chosen, so one of
    # its tokens that have weight is taken.
    last = torch.where(inner > 0, torch.arange(run, device=weights.device), -1).amax(dim=-1, keepdim=True)
    place = torch.searchsorted(inner_ends, rest.clamp(min=0), right=True).minimum(last)
    return (chosen * run + place).squeeze(-1).clamp(max=codes - 1)


def uniforms(seeds: Sequence[int], count: int, device: torch.device) -> Float[Tensor, "b n"]:
    """Numbers in [0, 1) for each seed, the same on every device."""
    return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(device)
