"""From prompts to codes: the decode loop, for one batch (`sample`) and for a stream of pictures (`stream`)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mentor.conditioning import Condition
from mentor.decoding.filters import LogitsProcessor, draw, invert, standard_processors, uniforms
from mentor.decoding.graphs import GraphRunner
from mentor.decoding.guidance import bare_condition, combine, guided_span
from mentor.decoding.settings import SamplingConfig
from mentor.decoding.speculative import Drafts, first_drafts, settle
from mentor.models import Generator
from mentor.models.decoder import Decoder, Prefilled
from mentor.nn.cache import WORTHWHILE

OnStep = Callable[[int, int], None]
Watch = Callable[[Int[Tensor, "b t"], int], None]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Request:
    """A picture that is asked for.

    Attributes:
        condition: one prompt with the codes of its references; what has the same object is read once.
        seed: the picture depends on it alone, not on who else is in the batch.
    """

    condition: Condition
    seed: int


@dataclass(frozen=True)
class _Picture:
    """A picture about to be drawn: its seed, and what the model has read for each row it takes."""

    seed: int
    prompts: tuple[Prefilled, ...]


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
        pictures = [_Picture(*pair) for pair in zip(seeds, read(decoder, condition, config), strict=True)]
        filters = [*processors, *standard_processors(config)]
        if config.speculative > 1:
            drawn = dict(_speculate(decoder, enumerate(pictures), len(pictures), config, filters, on_step))
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
            for request, ids in _speculate(decoder, pictures, slots, config, filters, on_step):
                yield request, rearrange(ids, "(gy gx) -> gy gx", gy=side)
            return
        while batch := list(islice(pictures, slots)):
            drawn = _make_batch(decoder, [picture for _, picture in batch], config, processors).run(on_step, watch)
            for (request, _), ids in zip(batch, drawn, strict=True):
                yield request, rearrange(ids, "(gy gx) -> gy gx", gy=side)


def read(decoder: Decoder, condition: Condition, config: SamplingConfig) -> list[tuple[Prefilled, ...]]:
    """What the model makes of each prompt: alone, then with guidance of nothing, then of its images alone."""
    parts = [decoder.prefill(condition)]
    if config.parts > 1:
        parts.append([decoder.null] * len(condition.prompts))
    if config.parts > 2:
        parts.append(decoder.prefill(bare_condition(condition)))
    return list(zip(*parts, strict=True))


def _read_ahead(
    decoder: Decoder, requests: Iterable[Request], config: SamplingConfig
) -> Iterator[tuple[Request, _Picture]]:
    last: Condition | None = None
    prompts: tuple[Prefilled, ...] = ()
    for request in requests:
        if request.condition is not last:
            (prompts,) = read(decoder, request.condition, config)
            last = request.condition
        yield request, _Picture(request.seed, prompts)


def _make_batch(
    decoder: Decoder, pictures: Sequence[_Picture], config: SamplingConfig, processors: Sequence[LogitsProcessor]
) -> "_Batch":
    """A batch of these pictures; on a GPU the last one again if they fit, since its steps are recorded already."""
    kept = decoder.kept
    if isinstance(kept, _Batch) and not processors and kept.config == config and kept.fits(pictures):
        kept.begin(pictures)
        return kept
    # Let go of first: both together might be more than the memory holds.
    del kept
    decoder.kept = None
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
        self, decoder: Decoder, pictures: Sequence[_Picture], config: SamplingConfig, filters: Sequence[LogitsProcessor]
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

    def fits(self, pictures: Sequence[_Picture]) -> bool:
        """Whether these pictures could take the place of those that are here."""
        parts = list(zip(*(picture.prompts for picture in pictures), strict=True))[: len(self.parts)]
        if len(pictures) != len(self.ids) or [_sharing(part) for part in parts] != self.sharing:
            return False
        return self.cache.fits([max(prompt.cache.length for prompt in part) for part in parts])

    def begin(self, pictures: Sequence[_Picture]) -> None:
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


def _speculate(
    decoder: Decoder,
    pictures: Iterable[tuple[Key, _Picture]],
    slots: int,
    config: SamplingConfig,
    filters: Sequence[LogitsProcessor],
    on_step: OnStep | None,
) -> Iterator[tuple[Key, Int[Tensor, "t"]]]:
    """Keys and codes of pictures, each when it is finished; its slot is given to the next one."""
    pending = iter(pictures)
    batch = list(islice(pending, slots))
    while batch:
        window = _Window(decoder, batch, config, filters)
        batch = []
        while window.keys:
            finished = window.advance()
            if on_step is not None:
                on_step(min(window.settled), decoder.spec.tokens)
            for row in finished:
                yield window.keys[row], window.ids[row, : decoder.spec.tokens].clone()
            for row in list(finished):
                following = batch or list(islice(pending, 1))
                if following and window.fits(following[0][1]):
                    window.enter(row, *following[0])
                    finished.remove(row)
                    following = []
                # One that does not fit opens the next window, when this one has come to its end.
                batch = following
            window.leave(finished)
        batch.extend(islice(pending, slots - len(batch)))


class _Window(Generic[Key]):
    """Pictures that are drawn several tokens at a time, each at a place of its own.

    Args:
        decoder: the model.
        pictures: keys to know them by, and the pictures.
        config: how tokens are drawn.
        filters: applied to the guided logits.
    """

    def __init__(
        self,
        decoder: Decoder,
        pictures: Sequence[tuple[Key, _Picture]],
        config: SamplingConfig,
        filters: Sequence[LogitsProcessor],
    ) -> None:
        self.decoder, self.config, self.filters = decoder, config, filters
        self.tokens, self.count = decoder.spec.tokens, config.speculative
        self.span = guided_span(config, self.tokens)
        self.keys = [key for key, _ in pictures]
        parts = list(zip(*(picture.prompts for _, picture in pictures), strict=True))
        self.cache = decoder.make_cache(parts, self.tokens + self.count, [0] * len(parts))
        # Past the last token anything may be written.
        self.ids = torch.zeros(len(pictures), self.tokens + self.count, dtype=torch.long, device=decoder.device)
        self.settled = [1] * len(pictures)
        self.generators = [torch.Generator() for _ in pictures]
        firsts = [self._begin(row, picture) for row, (_, picture) in enumerate(pictures)]
        self.drafts = Drafts(*(torch.cat(part) for part in zip(*firsts, strict=True)))

    def _begin(self, row: int, picture: _Picture) -> tuple[Tensor, Tensor]:
        """Draw the first token of a picture; guesses for those behind it."""
        generator = self.generators[row].manual_seed(picture.seed)
        uniform = torch.rand(1, self.count, generator=generator).to(self.decoder.device)
        parts = [prompt.logits.view(1, 1, -1) for prompt in picture.prompts]
        predicted = self._predict(parts, torch.zeros(1, dtype=torch.long, device=self.decoder.device))[:, 0]
        self.ids[row, 0] = invert(predicted, uniform[:, 0])[0]
        drafts = first_drafts(predicted, uniform[:, 1:])
        return drafts.ids, drafts.probabilities

    def _predict(self, parts: Sequence[Float[Tensor, "b n v"]], first: Int[Tensor, "b"]) -> Float[Tensor, "b n v"]:
        """Probabilities of the tokens from place `first` of each row on."""
        count = parts[0].shape[1]
        start, end = self.span
        guided = combine([part.float() for part in parts], self.config.guidance, self.config.guidance_images)
        if len(parts) > 1 and (start > 0 or end < self.tokens):
            at = first.unsqueeze(-1) + torch.arange(count, device=first.device)
            guided = torch.where(((at >= start) & (at < end)).unsqueeze(-1), guided, parts[0].float())
        logits = guided.flatten(0, 1)
        for process in self.filters:
            logits = process(logits)
        if self.config.temperature == 0:
            chosen = torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
            return chosen.unflatten(0, (-1, count))
        return logits.softmax(dim=-1).unflatten(0, (-1, count))

    def advance(self) -> list[int]:
        """Settle at least one more token of every picture; the rows that are finished by it."""
        settled = torch.tensor(self.settled, device=self.decoder.device)
        previous = self.ids.gather(1, settled.unsqueeze(-1) - 1)
        inputs = torch.cat((previous, self.drafts.ids), dim=1)
        end = max(self.settled) - 1 + self.count
        logits = self.decoder.step(inputs, settled - 1, self.cache, end)
        predicted = self._predict(logits.chunk(self.cache.parts), settled)
        uniform = torch.stack([torch.rand(2 * self.count, generator=generator) for generator in self.generators])
        tokens, counts, self.drafts = settle(self.drafts, predicted, uniform.to(self.decoder.device))
        self.ids.scatter_(1, settled.unsqueeze(-1) + torch.arange(self.count, device=settled.device), tokens)
        self.settled = [min(place, self.tokens) for place in (settled + counts).tolist()]
        return [row for row, place in enumerate(self.settled) if place == self.tokens]

    def fits(self, picture: _Picture) -> bool:
        """Whether the cache has room for the picture's prompts."""
        return self.cache.fits([prompt.cache.length for prompt in picture.prompts])

    def enter(self, row: int, key: Key, picture: _Picture) -> None:
        """Begin another picture in the place of a finished one."""
        self.keys[row], self.settled[row] = key, 1
        for part, prompt in enumerate(picture.prompts):
            self.cache.enter(part, row, prompt.cache)
        ids, probabilities = self._begin(row, picture)
        self.drafts.ids[row], self.drafts.probabilities[row] = ids[0], probabilities[0]

    def leave(self, rows: Sequence[int]) -> None:
        """Take no more time for these rows."""
        if not rows:
            return
        stay = [row for row in range(len(self.keys)) if row not in rows]
        self.keys = [self.keys[row] for row in stay]
        self.settled = [self.settled[row] for row in stay]
        self.generators = [self.generators[row] for row in stay]
        index = torch.tensor(stay, dtype=torch.long, device=self.decoder.device)
        self.ids = self.ids.index_select(0, index)
        self.drafts = Drafts(self.drafts.ids.index_select(0, index), self.drafts.probabilities.index_select(0, index))
        self.cache.select(index)
