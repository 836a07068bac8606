"""What a generator of each kind is trained to do, as a loss for every example."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mentor.conditioning import Condition
from mentor.diffusion import Draws
from mentor.models import AnyGenerator, CodeGenerator, ContinuousGenerator, DiffusionTransformer


@dataclass(frozen=True)
class Target:
    """What a generator is to draw.

    Attributes:
        ids: codes of the pictures.
        latents: continuous ones, or code vectors, as the generator has it; None where it draws codes.
        focus: share of each pixel, or cell, that the named object fills.
        seeds: of each example's chance: which noise, which tokens are hidden.
    """

    ids: Int[Tensor, "b gy gx"]
    latents: Float[Tensor, "b c gy gx"] | None
    focus: Float[Tensor, "b y x"]
    seeds: Sequence[int]


def quantities(generator: AnyGenerator) -> tuple[str, ...]:
    """Names of what `score` gives."""
    return ("loss", "accuracy") if isinstance(generator, CodeGenerator) else ("loss",)


def score(
    generator: AnyGenerator, condition: Condition, target: Target, focus_weight: float, smoothing: float = 0.0
) -> dict[str, Float[Tensor, "b"]]:
    """Each example's weighted loss: cross entropy (nats a token), or mean squared error; of codes the accuracy too.

    Args:
        generator: what is trained.
        condition: the prompts.
        target: what they ask for.
        focus_weight: see `cell_weights`.
        smoothing: share of a code's probability that is spread over all.
    """
    weights = cell_weights(target.focus, generator.spec.grid, focus_weight)
    if isinstance(generator, CodeGenerator):
        logits = generator(condition, target.ids).float()
        entropy = token_entropy(logits, target.ids, smoothing)
        right = (logits.argmax(dim=-1) == rearrange(target.ids, "b gy gx -> b (gy gx)")).float()
        return {"loss": (entropy * weights).mean(dim=1), "accuracy": right.mean(dim=1)}
    assert target.latents is not None
    draws = Draws(target.seeds, target.latents.device)
    match generator:
        case ContinuousGenerator():
            losses, counted = generator.losses(condition, target.latents, draws)
            weights = weights * counted
        case DiffusionTransformer():
            losses = generator.losses(condition, target.latents, draws)
        case _:
            assert_never(generator)
    return {"loss": (losses * weights).sum(dim=1) / weights.sum(dim=1)}


def example_seeds(seed: int, moment: int | str, keys: Sequence[str]) -> list[int]:
    """A seed for each example, by the run's seed, the update's number and the example's key alone."""
    return [random.Random(f"{seed}/{moment}/{key}/noise").getrandbits(63) for key in keys]


def token_entropy(
    logits: Float[Tensor, "b t v"], ids: Int[Tensor, "b gy gx"], label_smoothing: float = 0.0
) -> Float[Tensor, "b t"]:
    """Cross entropy of every token, computed in float32."""
    flat = functional.cross_entropy(
        rearrange(logits.float(), "b t v -> (b t) v"),
        rearrange(ids, "b gy gx -> (b gy gx)"),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return rearrange(flat, "(b t) -> b t", b=ids.shape[0])


def cell_weights(focus: Float[Tensor, "b y x"], grid: tuple[int, int], focus_weight: float) -> Float[Tensor, "b t"]:
    """Weight of each cell: 1 + focus_weight * (share of the cell that the object fills), with mean 1 in every example.

    `focus` is that of pixels, or of the cells already.

    The mean is taken in each example and not over the batch, so that the loss does not depend on how examples are
    shared out to processes or to accumulated batches.
    """
    share = reduce(focus, "b (gy y) (gx x) -> b (gy gx)", "mean", gy=grid[0], gx=grid[1])
    weights = 1 + focus_weight * share
    return weights / weights.mean(dim=1, keepdim=True)
