"""Do the settings of drawing fit the generator that is to draw?"""

from collections.abc import Sequence
from typing import assert_never

from mentor.decoding.settings import SamplingConfig
from mentor.diffusion import check_sampler
from mentor.errors import UserError
from mentor.models.heads import ARHeadConfig, DiffusionHeadConfig, DiTConfig, HeadConfig

# Values that leave a setting without effect.
_NEUTRAL = {"top_k": 0, "top_p": 1.0, "speculative": 0, "temperature": 1.0}
_OF_DENOISING = ("sampler", "steps")
_OF_CODES = ("top_k", "top_p", "speculative")


def check_fit(config: SamplingConfig, head: HeadConfig, tokens: int) -> None:
    """Nothing, where every setting that has an effect means something to the generator.

    Args:
        config: how pictures are to be drawn.
        head: what the generator draws by.
        tokens: of a picture.

    Raises:
        UserError: one means nothing there, or is out of range.
    """
    match head:
        case ARHeadConfig():
            _refuse(config, (*_OF_DENOISING, "tokens_per_step"), "a model that draws codes")
        case DiTConfig():
            _refuse(config, (*_OF_CODES, "tokens_per_step"), "a diffusion transformer")
            _check_denoising(config, head)
        case DiffusionHeadConfig(order="raster"):
            _refuse(config, (*_OF_CODES, "tokens_per_step"), "a model that draws one continuous token after the other")
            _check_denoising(config, head)
        case DiffusionHeadConfig():
            _refuse(config, _OF_CODES, "a model that draws continuous tokens")
            _check_denoising(config, head)
            if config.tokens_per_step is not None and config.tokens_per_step > tokens:
                raise UserError(
                    f"tokens_per_step {config.tokens_per_step} is more than the {tokens} tokens that a picture of this "
                    f"model has: take 1 to {tokens}"
                )
        case _:
            assert_never(head)


def _refuse(config: SamplingConfig, names: Sequence[str], what: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value != _NEUTRAL.get(name):
            raise UserError(f"{name} {value} means nothing to {what}: leave it out")


def _check_denoising(config: SamplingConfig, head: DiffusionHeadConfig | DiTConfig) -> None:
    sampler = config.sampler or head.default_sampler
    check_sampler(head.process, sampler, config.steps or head.steps, config.temperature)
