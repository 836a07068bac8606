"""Speculative drawing: pictures at places of their own, each several tokens at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mentor.decoding.filters import LogitsProcessor, invert
from mentor.decoding.guidance import combine, guided_span
from mentor.decoding.reading import Picture
from mentor.decoding.settings import SamplingConfig
from mentor.decoding.speculative import Drafts, first_drafts, settle
from mentor.models.decoder import Decoder

Key = TypeVar("Key")


def speculate(
    decoder: Decoder,
    pictures: Iterable[tuple[Key, Picture]],
    slots: int,
    config: SamplingConfig,
    filters: Sequence[LogitsProcessor],
    on_step: Callable[[int, int], None] | None,
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
        pictures: Sequence[tuple[Key, Picture]],
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

    def _begin(self, row: int, picture: Picture) -> tuple[Tensor, Tensor]:
        """Draw the first token of a picture; guesses for those behind it."""
        generator = self.generators[row].manual_seed(picture.seed)
        uniform = torch.rand(1, self.count, generator=generator).to(self.decoder.device)
        parts = [prompt.first.view(1, 1, -1) for prompt in picture.prompts]
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

    def fits(self, picture: Picture) -> bool:
        """Whether the cache has room for the picture's prompts."""
        return self.cache.fits([prompt.cache.length for prompt in picture.prompts])

    def enter(self, row: int, key: Key, picture: Picture) -> None:
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
