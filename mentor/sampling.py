"""From prompts to codes: the decode loop, for one batch (`sample`) and for a stream of pictures (`stream`)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mentor.conditioning import Condition
from mentor.decoding.filters import LogitsProcessor, draw, standard_processors, uniforms
from mentor.decoding.graphs import GraphRunner
from mentor.decoding.guidance import combine, guided_span
from mentor.decoding.reading import Picture, read
from mentor.decoding.settings import SamplingConfig
from mentor.decoding.window import speculate
from mentor.models import Generator
from mentor.models.decoder import Decoder, Prefilled
from mentor.nn.cache import WORTHWHILE

OnStep = Callable[[int, int], None]
Watch = Callable[[Int[Tensor, "b t"], int], None]


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
    generator: Generator | Decoder,
    condition: Condition,
    seeds: Sequence[int],
    config: SamplingConfig,
    processors: Sequence[LogitsProcessor] = (),
    on_step: OnStep | None = None,
    watch: Watch | None = None,
) -> Int[Tensor, "b gy gx"]:
    """Codes of one picture for each prompt of `condition`.

    Args:
        generator: the model in eval mode, or a decoder of it.
        condition: prompts and the codes of their references. A prompt that occurs several times, as the same object, is
            read once.
        seeds: one for each prompt. Its picture depends on it alone, not on who else is in the batch.
        config: how tokens are drawn.
        processors: applied to the guided logits before temperature, top-k and top-p.
        on_step: called after each token with (tokens done, tokens in all).
        watch: called after each token with the codes of all pictures so far and how many of them are drawn; what
            stands behind has no meaning. Reading them makes a GPU wait. Not called with `config.speculative`.
    """
    decoder = generator if isinstance(generator, Decoder) else Decoder(generator)
    with decoder.generator.head.fixed():
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
    generator: Generator | Decoder,
    requests: Iterable[Request],
    config: SamplingConfig,
    slots: int,
    processors: Sequence[LogitsProcessor] = (),
    on_step: OnStep | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[Request, Int[Tensor, "gy gx"]]]:
    """Requests and their codes, each as soon as its picture is finished (continuous batching).

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
    """
    decoder = generator if isinstance(generator, Decoder) else Decoder(generator)
    filters = [*processors, *standard_processors(config)]
    pictures = _read_ahead(decoder, requests, config)
    side = decoder.spec.grid[0]
    with decoder.generator.head.fixed():
        if config.speculative > 1:
            for request, ids in speculate(decoder, pictures, slots, config, filters, on_step):
                yield request, rearrange(ids, "(gy gx) -> gy gx", gy=side)
            return
        while batch := list(islice(pictures, slots)):
            drawn = _make_batch(decoder, [picture for _, picture in batch], config, processors).run(on_step, watch)
            for (request, _), ids in zip(batch, drawn, strict=True):
                yield request, rearrange(ids, "(gy gx) -> gy gx", gy=side)


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
) -> "_Batch":
    """A batch of these pictures; on a GPU the last one again if they fit, since its steps are recorded already."""
    kept = decoder.kept
    if isinstance(kept, _Batch) and not processors and kept.config == config and kept.fits(pictures):
        kept.begin(pictures)
        return kept
    # Let go of first: both together might be more than the memory holds.
    kept = decoder.kept = None
    batch = _Batch(decoder, pictures, config, [*processors, *standard_processors(config)])
    decoder.kept = batch if decoder.records and not processors else None
    return batch


class _Batch:
    """Pictures that are drawn token by token, all at the same place.

    Args:
        decoder: the model.
        pictures: with neighbours of one prompt, that prompt is kept once for all of them.
        config: how tokens are drawn.
        filters: applied to the guided logits.
    """

    def __init__(
        self, decoder: Decoder, pictures: Sequence[Picture], config: SamplingConfig, filters: Sequence[LogitsProcessor]
    ) -> None:
        self.decoder, self.config, self.filters = decoder, config, filters
        self.graphs = GraphRunner(decoder.device) if decoder.device.type == "cuda" else None
        self.recorded = torch.compile(self.step, fullgraph=True) if decoder.compiled else self.step
        self.tokens = decoder.spec.tokens
        self.span = guided_span(config, self.tokens) if config.parts > 1 else (0, 0)
        parts = list(zip(*(picture.prompts for picture in pictures), strict=True))
        self.parts = parts if self.span[0] < self.span[1] else parts[:1]
        self.sharing = [_sharing(part) for part in self.parts]
        # What is not guided all along has conditions that rest.
        apart = self.span != (0, self.tokens) and len(self.parts) > 1
        self.cache = decoder.make_cache(self._prefixes(), self.tokens, self.sharing, apart)
        self.ids = torch.zeros(len(pictures), self.tokens, dtype=torch.long, device=decoder.device)
        self.draws = uniforms([picture.seed for picture in pictures], self.tokens, decoder.device)

    def _prefixes(self) -> list[list[Prefilled]]:
        """For each block of the cache the prompt of each row, or of each group of rows that share one."""
        return [list(part[:: shared or 1]) for part, shared in zip(self.parts, self.sharing, strict=True)]

    def fits(self, pictures: Sequence[Picture]) -> bool:
        """Whether these pictures could take the place of those that are here."""
        parts = list(zip(*(picture.prompts for picture in pictures), strict=True))[: len(self.parts)]
        if len(pictures) != len(self.ids) or [_sharing(part) for part in parts] != self.sharing:
            return False
        return self.cache.fits([max(prompt.cache.length for prompt in part) for part in parts])

    def begin(self, pictures: Sequence[Picture]) -> None:
        """Take other pictures, that fit, into the very tensors of those that are here."""
        self.parts = list(zip(*(picture.prompts for picture in pictures), strict=True))[: len(self.parts)]
        for part, prompts in enumerate(self._prefixes()):
            for group, prompt in enumerate(prompts):
                self.cache.enter(part, group, prompt.cache)
        self.draws.copy_(uniforms([picture.seed for picture in pictures], self.tokens, self.decoder.device))

    def run(self, on_step: OnStep | None, watch: Watch | None) -> Int[Tensor, "b t"]:
        """All codes."""
        first, last = self.span
        guided = first == 0 < last
        logits = [torch.stack([prompt.logits for prompt in part]) for part in self.parts[: None if guided else 1]]
        self.choose(logits, 0)
        for position in range(self.tokens):
            if position:
                if position == first > 1 and len(self.parts) > 1:
                    # The other conditions have not seen the tokens before the span.
                    others = self.cache.conditions(1, self.cache.parts)
                    self.decoder.step(self.ids[:, : position - 1], 0, others, position - 1, tail=1)
                guided = first <= position < last
                if self.graphs is None:
                    self.step(position, guided, position)
                else:
                    end = self.graphs.reach(position, self.tokens)
                    self.graphs.run((guided, end), lambda at, g=guided, e=end: self.recorded(at, g, e), position)
            if on_step is not None:
                on_step(position + 1, self.tokens)
            if watch is not None:
                watch(self.ids, position + 1)
        return self.ids.clone()

    def step(self, position: int | Int[Tensor, "1"], guided: bool, end: int) -> None:
        """Choose the token at `position`, from the one before; `end` tokens are read."""
        cache = self.cache if guided else self.cache.conditions(0, 1)
        before = position - 1
        if isinstance(before, Tensor):
            previous = self.ids.index_select(1, before)
            before = before.expand(len(self.ids))
        else:
            previous = self.ids[:, before : before + 1]
        logits = self.decoder.step(previous, before, cache, end)[:, -1]
        self.choose(logits.chunk(cache.parts), position)

    def choose(self, parts: Sequence[Float[Tensor, "b v"]], position: int | Int[Tensor, "1"]) -> None:
        """Write the token at `position`, given its logits under each condition."""
        logits = guide(parts, self.config, self.filters)
        if self.config.temperature == 0:
            chosen = logits.argmax(dim=-1)
        elif isinstance(position, int):
            chosen = draw(logits, self.draws[:, position])
        else:
            chosen = draw(logits, self.draws.index_select(1, position).squeeze(1))
        if isinstance(position, int):
            self.ids[:, position] = chosen
        else:
            self.ids.index_copy_(1, position, chosen.unsqueeze(1))


def guide(
    parts: Sequence[Float[Tensor, "b v"]], config: SamplingConfig, filters: Sequence[LogitsProcessor]
) -> Float[Tensor, "b v"]:
    """The logits to draw from, in float32: guided, then filtered."""
    logits = combine([part.float() for part in parts], config.guidance, config.guidance_images)
    for process in filters:
        logits = process(logits)
    return logits


def _sharing(prompts: Sequence[Prefilled]) -> int:
    """How many neighbouring rows have one prompt, the same number everywhere; 0 where copies are better."""
    changes = [i for i in range(1, len(prompts)) if prompts[i] is not prompts[i - 1]]
    run = changes[0] if changes else len(prompts)
    even = len(prompts) % run == 0 and changes == list(range(run, len(prompts), run))
    return run if even and run > 1 and prompts[0].cache.length >= WORTHWHILE else 0
