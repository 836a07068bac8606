"""Whole pictures denoised by a diffusion transformer."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mentor.decoding.batches import OnStep
from mentor.decoding.guidance import combine
from mentor.decoding.reading import Picture
from mentor.decoding.settings import SamplingConfig
from mentor.diffusion import Draws, denoise
from mentor.models import DiffusionTransformer
from mentor.models.decoder import Decoder
from mentor.nn.context import ContextCache


def denoise_pictures(
    decoder: Decoder, pictures: Sequence[Picture], config: SamplingConfig, on_step: OnStep | None = None
) -> Float[Tensor, "b t c"]:
    """The pictures' tokens; their prompts are read already, and each step sees the pictures alone.

    Args:
        decoder: of a diffusion transformer.
        pictures: see there.
        config: how they are drawn.
        on_step: called with (steps done, steps in all).
    """
    generator = decoder.generator
    assert isinstance(generator, DiffusionTransformer)
    process, settings = generator.head.process, generator.head.config
    rows, shape = len(pictures), (decoder.spec.tokens, decoder.spec.code_width)
    draws = Draws([picture.seed for picture in pictures], decoder.device)
    parts = list(zip(*(picture.prompts for picture in pictures), strict=True))
    cache = ContextCache([prompt.cache for part in parts for prompt in part], shape[0])
    first, last = config.guidance_interval

    def predict(noisy: Tensor, time: Tensor) -> Tensor:
        way = 1 - float(time[0]) / process.span
        used = len(parts) if first <= way < last else 1
        predicted = generator.denoise(noisy.repeat(used, 1, 1), time.repeat(used), cache.first(used * rows))
        return combine(predicted.float().chunk(used), config.guidance, config.guidance_images)

    return denoise(
        settings.process,
        predict,
        draws.normal(*shape),
        config.sampler or settings.default_sampler,
        config.steps or settings.steps,
        fresh=lambda: draws.normal(*shape),
        temperature=config.temperature,
        on_step=on_step,
    )
