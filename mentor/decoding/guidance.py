"""Guidance: several conditions of a picture, whose predictions become one."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mentor.conditioning import Condition, images_only
from mentor.decoding.settings import SamplingConfig


def combine(
    parts: Sequence[Float[Tensor, "b v"]], guidance: float, guidance_images: float | None
) -> Float[Tensor, "b v"]:
    """One prediction from those under the full prompt, the null condition and the images alone, as far as given.

    With one scale u + s (f - u); with a scale for images and one for text u + s_image (i - u) + s_text (f - i)
    (InstructPix2Pix, arXiv 2211.09800, equation 3).
    """
    if len(parts) == 1:
        return parts[0]
    full, null = parts[0], parts[1]
    if len(parts) == 2:
        return null.lerp(full, guidance)
    images = parts[2]
    assert guidance_images is not None
    return null + guidance_images * (images - null) + guidance * (full - images)


def bare_condition(condition: Condition) -> Condition:
    """The condition with the images of its prompts alone; a prompt in several rows stays one object."""
    bare = {id(prompt): images_only(prompt) for prompt in condition.prompts}
    return Condition([bare[id(prompt)] for prompt in condition.prompts], condition.codes)


def guided_span(config: SamplingConfig, tokens: int) -> tuple[int, int]:
    """First token with guidance and the one after the last."""
    first, last = config.guidance_interval
    return round(first * tokens), round(last * tokens)
