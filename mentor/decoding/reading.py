"""What a model has read before it draws: the prompt of a picture, and what guidance compares it with."""

from dataclasses import dataclass

from mentor.conditioning import Condition
from mentor.decoding.guidance import bare_condition
from mentor.decoding.settings import SamplingConfig
from mentor.models.decoder import Decoder, Prefilled


@dataclass(frozen=True)
class Picture:
    """A picture about to be drawn: its seed, and what the model has read for each row it takes."""

    seed: int
    prompts: tuple[Prefilled, ...]


def read(decoder: Decoder, condition: Condition, config: SamplingConfig) -> list[tuple[Prefilled, ...]]:
    """What the model makes of each prompt: alone, then with guidance of nothing, then of its images alone."""
    parts = [decoder.prefill(condition)]
    if config.parts > 1:
        parts.append([decoder.null(prompt) for prompt in parts[0]])
    if config.parts > 2:
        bare = bare_condition(condition)
        shown = [prompt for prompt in bare.prompts if prompt]
        images = iter(decoder.prefill(Condition(shown, bare.codes)) if shown else ())
        # Of a prompt without images nothing is left.
        parts.append([next(images) if prompt else null for prompt, null in zip(bare.prompts, parts[1], strict=True)])
    return list(zip(*parts, strict=True))
