"""Continuous tokens: each denoised by the head's small MLP, one after the other or many hidden ones at a time."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mentor.decoding.batches import OnStep, TokenBatch
from mentor.decoding.guidance import combine, guided_span
from mentor.decoding.reading import Picture
from mentor.decoding.settings import SamplingConfig
from mentor.diffusion import Draws, denoise
from mentor.models import ContinuousGenerator
from mentor.models.decoder import Decoder
from mentor.nn.context import ContextCache


class ContinuousBatch(TokenBatch):
    """Pictures of continuous tokens in raster order, over a cache.

    Args:
        decoder: of a generator of continuous tokens.
        pictures: see there.
        config: how tokens are drawn.
    """

    def __init__(self, decoder: Decoder, pictures: Sequence[Picture], config: SamplingConfig) -> None:
        assert isinstance(decoder.generator, ContinuousGenerator)
        self.generator = decoder.generator
        self.draws = Draws([picture.seed for picture in pictures], decoder.device)
        drawn = torch.zeros(len(pictures), decoder.spec.tokens, decoder.spec.code_width, device=decoder.device)
        super().__init__(decoder, pictures, config, drawn)

    def choose(self, parts: Sequence[Float[Tensor, "b d"]], position: int | Int[Tensor, "1"]) -> None:
        """Write the token at `position`, given the states that tell of it under each condition."""
        shape = (1, self.drawn.shape[2])
        tokens = draw_tokens(self.generator, [part.unsqueeze(1) for part in parts], shape, self.draws, self.config)
        self.drawn[:, position] = tokens.squeeze(1)


def draw_tokens(
    generator: ContinuousGenerator,
    parts: Sequence[Float[Tensor, "b m d"]],
    shape: tuple[int, int],
    draws: Draws,
    config: SamplingConfig,
) -> Float[Tensor, "b m c"]:
    """Tokens drawn by the head.

    Args:
        generator: the model.
        parts: the states that tell of them, under each condition.
        shape: how many tokens a picture gets, and of how many numbers.
        draws: the pictures' chance.
        config: sampler, steps, temperature and guidance.
    """
    head, settings = generator.head, generator.settings
    dtype = head.leave.weight.dtype
    told = torch.cat([head.condition(part.to(dtype)).flatten(0, 1) for part in parts])

    def predict(noisy: Tensor, time: Tensor) -> Tensor:
        predicted = head(noisy.repeat(len(parts), 1), time.repeat(len(parts)), told)
        return combine(predicted.float().chunk(len(parts)), config.guidance, config.guidance_images)

    drawn = denoise(
        settings.process,
        predict,
        draws.normal(*shape).flatten(0, 1),
        config.sampler or settings.default_sampler,
        config.steps or settings.steps,
        fresh=lambda: draws.normal(*shape).flatten(0, 1),
        temperature=config.temperature,
    )
    return drawn.unflatten(0, (-1, shape[0]))


def draw_masked(
    decoder: Decoder, pictures: Sequence[Picture], config: SamplingConfig, on_step: OnStep | None = None
) -> Float[Tensor, "b t c"]:
    """Pictures of continuous tokens in random order: all are hidden at first, and some are drawn in each step.

    Args:
        decoder: of a generator that was trained so.
        pictures: see there.
        config: how tokens are drawn.
        on_step: called with (tokens done, tokens in all).
    """
    generator = decoder.generator
    assert isinstance(generator, ContinuousGenerator)
    rows, count, width = len(pictures), decoder.spec.tokens, decoder.spec.code_width
    draws = Draws([picture.seed for picture in pictures], decoder.device)
    parts = list(zip(*(picture.prompts for picture in pictures), strict=True))
    first, last = guided_span(config, count)
    cache = ContextCache([prompt.cache for part in parts for prompt in part], count)
    order = draws.order(count)
    tokens = torch.zeros(rows, count, width, device=decoder.device)
    hidden = torch.ones(rows, count, dtype=torch.bool, device=decoder.device)
    done = 0
    for number in step_sizes(count, config.tokens_per_step or generator.settings.tokens_per_step):
        used = len(parts) if first <= done < last else 1
        states = generator.states(tokens.repeat(used, 1, 1), hidden.repeat(used, 1), cache.first(used * rows))
        places = order[:, done : done + number]
        chosen = states.gather(1, places.repeat(used, 1).unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        drawn = draw_tokens(generator, chosen.chunk(used), (number, width), draws, config)
        tokens.scatter_(1, places.unsqueeze(-1).expand(-1, -1, width), drawn)
        hidden.scatter_(1, places, False)
        done += number
        if on_step is not None:
            on_step(done, count)
    return tokens


def step_sizes(tokens: int, each: int) -> list[int]:
    """How many tokens are drawn in every step: few at first and many in the end, along a cosine (arXiv 2202.04200).

    Args:
        tokens: in all.
        each: in a step, on average; at least one in each.
    """
    steps = -(-tokens // each)
    sizes, left = [], tokens
    for step in range(1, steps + 1):
        rest = math.floor(tokens * math.cos(math.pi / 2 * step / steps)) if step < steps else 0
        # One in this step at least, and one for each that follows.
        rest = max(min(rest, left - 1), steps - step)
        sizes.append(left - rest)
        left = rest
    return sizes
