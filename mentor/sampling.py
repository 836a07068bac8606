"""From prompts to codes: guidance, temperature, top-k, top-p and the decode loop."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor

from mentor.conditioning import Condition, images_only
from mentor.config import Config
from mentor.models import Generator
from mentor.types import Codes, Prompt, prompt_images

LogitsProcessor = Callable[[Float[Tensor, "b v"]], Float[Tensor, "b v"]]


class SamplingConfig(Config):
    """How tokens are drawn.

    Attributes:
        guidance: how far to go from the unconditional towards the conditional prediction; 1 is no guidance.
        guidance_images: scale of its own for the reference images (then `guidance` is the text's); None: one for both.
        temperature: spread of the draw; 0 takes the likeliest token.
        top_k: draw from the k likeliest tokens only; 0 is all.
        top_p: draw from the likeliest tokens that together hold this share of the probability; 1 is all.
    """

    guidance: float = 2.0
    guidance_images: float | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if self.guidance < 0 or (self.guidance_images is not None and self.guidance_images < 0):
            raise ValueError("guidance must be 0 or more (1 is no guidance, 2 to 4 is usual)")
        if self.temperature < 0:
            raise ValueError(
                f"temperature {self.temperature} must be 0 (greedy) or more (1 draws as the model predicts)"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be above 0 and at most 1 (all tokens)")
        return self


@torch.inference_mode()
def sample(
    generator: Generator,
    condition: Condition,
    seeds: Sequence[int],
    config: SamplingConfig,
    processors: Sequence[LogitsProcessor] = (),
    on_step: Callable[[int, int], None] | None = None,
) -> Int[Tensor, "b gy gx"]:
    """Codes of one picture for each prompt of `condition`.

    Args:
        generator: the model, in eval mode.
        condition: prompts and the codes of their references.
        seeds: one for each prompt. Its picture depends on it alone, not on who else is in the batch.
        config: how tokens are drawn.
        processors: applied to the guided logits before temperature, top-k and top-p.
        on_step: called after each token with (tokens done, tokens in all).
    """
    tokens = generator.spec.tokens
    rows, combine = guidance_rows(condition, config)
    prefix = generator.conditioner(rows)
    device = prefix.embeddings.device
    length = prefix.embeddings.shape[1] + tokens - 1
    cache = generator.backbone.make_cache(len(rows.prompts), length, device, prefix.embeddings.dtype)
    draws = torch.stack([torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(
        device
    )
    filters = [*processors, *standard_processors(config)]
    copies = len(rows.prompts) // len(seeds)
    chosen: list[Tensor] = []
    with generator.head.fixed():
        logits = generator.prefill(prefix, cache)
        for position in range(tokens):
            if position:
                logits = generator.step(chosen[-1].repeat(copies), position, prefix.mask, cache)
            guided = combine(logits.float())
            for process in filters:
                guided = process(guided)
            chosen.append(draw(guided, draws[:, position]) if config.temperature > 0 else guided.argmax(dim=-1))
            if on_step is not None:
                on_step(position + 1, tokens)
    return rearrange(torch.stack(chosen, dim=1), "b (gy gx) -> b gy gx", gy=generator.spec.grid[0])


def guidance_rows(
    condition: Condition, config: SamplingConfig
) -> tuple[Condition, Callable[[Float[Tensor, "n v"]], Float[Tensor, "b v"]]]:
    """The rows that guidance needs, and the function that makes their logits one.

    With one scale: u + s (f - u), two rows a picture. With a scale for images and one for text:
    u + s_image (i - u) + s_text (f - i), three rows, where u is the null condition, i has the images only, f is the
    full prompt (InstructPix2Pix, arXiv 2211.09800, equation 3). Rows come in blocks: all f, then all u, then all i.
    """
    prompts = list(condition.prompts)
    count = len(prompts)
    scale = config.guidance
    image_scale = scale if config.guidance_images is None else config.guidance_images
    if scale == image_scale:
        if scale == 1:
            return condition, lambda logits: logits
        empty: list[Prompt] = [()] * count

        def combine_two(logits: Float[Tensor, "n v"]) -> Float[Tensor, "b v"]:
            full, null = logits.split(count)
            return null + scale * (full - null)

        return Condition(prompts + empty, condition.codes), combine_two

    def combine_three(logits: Float[Tensor, "n v"]) -> Float[Tensor, "b v"]:
        full, null, images = logits.split(count)
        return null + image_scale * (images - null) + scale * (full - images)

    bare = [images_only(prompt) for prompt in prompts]
    twice = condition.codes and _repeat(condition.codes, sum(len(prompt_images(prompt)) for prompt in prompts))
    return Condition(prompts + [()] * count + bare, twice), combine_three


def _repeat(codes: Codes, count: int) -> Codes:
    """The codes of the first `count` images, twice over."""
    return Codes(*(torch.cat((part[:count], part[:count])) for part in (codes.ids, codes.latents, codes.features)))


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
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the total, so that rounding can never point past the last token that has any probability.
    target = uniform.double().unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
