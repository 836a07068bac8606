"""From prompts to codes or latents: for one batch of pictures (`sample`) and for a stream of them (`stream`)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import assert_never

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mentor.conditioning import Condition
from mentor.decoding.batches import CodeBatch, OnStep, Watch
from mentor.decoding.continuous import ContinuousBatch, draw_masked
from mentor.decoding.denoising import denoise_pictures
from mentor.decoding.filters import LogitsProcessor, standard_processors
from mentor.decoding.fitting import check_fit
from mentor.decoding.reading import Picture, read
from mentor.decoding.settings import SamplingConfig
from mentor.decoding.window import speculate
from mentor.models import AnyGenerator, CodeGenerator, ContinuousGenerator, DiffusionTransformer
from mentor.models.decoder import Decoder, Prefilled


@dataclass(frozen=True)
class Request:
    """A picture that is asked for.

    Attributes:
        condition: one prompt with the codes of its references; what has the same object is read once.
        seed: the picture depends on it alone, not on who else is in the batch.
    """

    condition: Condition
    seed: int


@torch.inference_mode()
def sample(
    generator: AnyGenerator | Decoder,
    condition: Condition,
    seeds: Sequence[int],
    config: SamplingConfig,
    processors: Sequence[LogitsProcessor] = (),
    on_step: OnStep | None = None,
    watch: Watch | None = None,
) -> Int[Tensor, "b gy gx"] | Float[Tensor, "b c gy gx"]:
    """One picture for each prompt of `condition`, as codes or as latents: what the generator draws.

    `ImageTokenizer.picture` decodes either.

    Args:
        generator: the model in eval mode, or a decoder of it.
        condition: prompts and the codes of their references. A prompt that occurs several times, as the same object, is
            read once.
        seeds: one for each prompt. Its picture depends on it alone, not on who else is in the batch.
        config: how tokens are drawn.
        processors: applied to the guided logits before temperature, top-k and top-p.
        on_step: called after each token with (tokens done, tokens in all).
        watch: called after each token with the codes of all pictures so far and how many of them are drawn; what
            stands behind has no meaning. Reading them makes a GPU wait. Not called with `config.speculative`, nor where
            anything but codes is drawn.

    Raises:
        UserError: a setting means nothing to this generator.
    """
    decoder = generator if isinstance(generator, Decoder) else Decoder(generator)
    check_fit(config, decoder.generator.config.head, decoder.spec.tokens)
    model = decoder.generator
    if not isinstance(model, CodeGenerator):
        pictures = [Picture(*pair) for pair in zip(seeds, read(decoder, condition, config), strict=True)]
        return _draw_latents(decoder, pictures, config, processors, on_step)
    with model.head.fixed():
        pictures = [Picture(*pair) for pair in zip(seeds, read(decoder, condition, config), strict=True)]
        filters = [*processors, *standard_processors(config)]
        if config.speculative > 1:
            drawn = dict(speculate(decoder, enumerate(pictures), len(pictures), config, filters, on_step))
            ids = torch.stack([drawn[index] for index in range(len(pictures))])
        else:
            ids = _make_batch(decoder, pictures, config, processors).run(on_step, watch)
    return rearrange(ids, "b (gy gx) -> b gy gx", gy=decoder.spec.grid[0])


@torch.inference_mode()
def stream(
    generator: AnyGenerator | Decoder,
    requests: Iterable[Request],
    config: SamplingConfig,
    slots: int,
    processors: Sequence[LogitsProcessor] = (),
    on_step: OnStep | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[Request, Int[Tensor, "gy gx"] | Float[Tensor, "c gy gx"]]]:
    """Requests and their codes or latents, each as soon as its picture is finished (continuous batching).

    At most `slots` pictures are drawn at a time, and a slot that becomes free takes the next request at once. Without
    `config.speculative` pictures that begin together end together. `on_step` counts tokens of the pictures in work.

    Args:
        generator: the model in eval mode, or a decoder of it.
        requests: taken only when there is a slot for them.
        config: how tokens are drawn, the same for all.
        slots: pictures that are drawn at a time.
        processors: as in `sample`.
        on_step: as in `sample`.
        watch: as in `sample`.

    Raises:
        UserError: a setting means nothing to this generator.
    """
    decoder = generator if isinstance(generator, Decoder) else Decoder(generator)
    check_fit(config, decoder.generator.config.head, decoder.spec.tokens)
    model = decoder.generator
    filters = [*processors, *standard_processors(config)]
    pictures = _read_ahead(decoder, requests, config)
    side = decoder.spec.grid[0]
    if not isinstance(model, CodeGenerator):
        while batch := list(islice(pictures, slots)):
            latents = _draw_latents(decoder, [picture for _, picture in batch], config, processors, on_step)
            yield from zip((request for request, _ in batch), latents, strict=True)
        return
    with model.head.fixed():
        if config.speculative > 1:
            for request, ids in speculate(decoder, pictures, slots, config, filters, on_step):
                yield request, rearrange(ids, "(gy gx) -> gy gx", gy=side)
            return
        while batch := list(islice(pictures, slots)):
            drawn = _make_batch(decoder, [picture for _, picture in batch], config, processors).run(on_step, watch)
            for (request, _), ids in zip(batch, drawn, strict=True):
                yield request, rearrange(ids, "(gy gx) -> gy gx", gy=side)


def _draw_latents(
    decoder: Decoder,
    pictures: Sequence[Picture],
    config: SamplingConfig,
    processors: Sequence[LogitsProcessor],
    on_step: OnStep | None,
) -> Float[Tensor, "b c gy gx"]:
    """The latents of pictures that are not made of codes."""
    if processors:
        raise ValueError("logits processors are for models that draw codes")
    count, model = decoder.spec.tokens, decoder.generator
    match model:
        case ContinuousGenerator(settings=settings) if settings.order == "random":
            tokens = draw_masked(decoder, pictures, config, on_step)
        case ContinuousGenerator():
            tokens = ContinuousBatch(decoder, pictures, config).run(on_step, None)
        case DiffusionTransformer():
            tell = None if on_step is None else (lambda done, total: on_step(count * done // total, count))
            tokens = denoise_pictures(decoder, pictures, config, tell)
        case CodeGenerator():
            raise ValueError("this model draws codes")
        case _:
            assert_never(model)
    return model.scale.latents(tokens, decoder.spec.grid[0])


def _read_ahead(
    decoder: Decoder, requests: Iterable[Request], config: SamplingConfig
) -> Iterator[tuple[Request, Picture]]:
    last: Condition | None = None
    prompts: tuple[Prefilled, ...] = ()
    for request in requests:
        if request.condition is not last:
            (prompts,) = read(decoder, request.condition, config)
            last = request.condition
        yield request, Picture(request.seed, prompts)


def _make_batch(
    decoder: Decoder, pictures: Sequence[Picture], config: SamplingConfig, processors: Sequence[LogitsProcessor]
) -> CodeBatch:
    """A batch of these pictures; on a GPU the last one again if they fit, since its steps are recorded already."""
    kept = decoder.kept
    if isinstance(kept, CodeBatch) and not processors and kept.config == config and kept.fits(pictures):
        kept.begin(pictures)
        return kept
    # Let go of first: both together might be more than the memory holds.
    kept = decoder.kept = None
    batch = CodeBatch(decoder, pictures, config, [*processors, *standard_processors(config)])
    decoder.kept = batch if decoder.records and not processors else None
    return batch
