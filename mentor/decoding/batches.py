"""Pictures that are drawn token by token, all at the same place."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mentor.decoding.filters import LogitsProcessor, draw, uniforms
from mentor.decoding.graphs import GraphRunner
from mentor.decoding.guidance import combine, guided_span
from mentor.decoding.reading import Picture
from mentor.decoding.settings import SamplingConfig
from mentor.models.decoder import Decoder, Prefilled
from mentor.nn.cache import WORTHWHILE

OnStep = Callable[[int, int], None]
Watch = Callable[[Int[Tensor, "b t"], int], None]


class TokenBatch(ABC):
    """Pictures that are drawn token by token, all at the same place.

    Args:
        decoder: the model.
        pictures: with neighbours of one prompt, that prompt is kept once for all of them.
        config: how tokens are drawn.
        drawn: gets the tokens of all pictures.
        graphs: records the steps on a GPU.
    """

    def __init__(
        self,
        decoder: Decoder,
        pictures: Sequence[Picture],
        config: SamplingConfig,
        drawn: Tensor,
        graphs: GraphRunner | None = None,
    ) -> None:
        self.decoder, self.config, self.drawn, self.graphs = decoder, config, drawn, graphs
        self.recorded = torch.compile(self.step, fullgraph=True) if decoder.compiled and graphs else self.step
        self.tokens = decoder.spec.tokens
        self.span = guided_span(config, self.tokens) if config.parts > 1 else (0, 0)
        parts = list(zip(*(picture.prompts for picture in pictures), strict=True))
        self.parts = parts if self.span[0] < self.span[1] else parts[:1]
        self.sharing = [_sharing(part) for part in self.parts]
        # What is not guided all along has conditions that rest.
        apart = self.span != (0, self.tokens) and len(self.parts) > 1
        self.cache = decoder.make_cache(self._prefixes(), self.tokens, self.sharing, apart)

    def _prefixes(self) -> list[list[Prefilled]]:
        """For each block of the cache the prompt of each row, or of each group of rows that share one."""
        return [list(part[:: shared or 1]) for part, shared in zip(self.parts, self.sharing, strict=True)]

    def fits(self, pictures: Sequence[Picture]) -> bool:
        """Whether these pictures could take the place of those that are here."""
        parts = list(zip(*(picture.prompts for picture in pictures), strict=True))[: len(self.parts)]
        if len(pictures) != len(self.drawn) or [_sharing(part) for part in parts] != self.sharing:
            return False
        return self.cache.fits([max(prompt.cache.length for prompt in part) for part in parts])

    def begin(self, pictures: Sequence[Picture]) -> None:
        """Take other pictures, that fit, into the very tensors of those that are here."""
        self.parts = list(zip(*(picture.prompts for picture in pictures), strict=True))[: len(self.parts)]
        for part, prompts in enumerate(self._prefixes()):
            for group, prompt in enumerate(prompts):
                self.cache.enter(part, group, prompt.cache)

    def run(self, on_step: OnStep | None, watch: Watch | None) -> Tensor:
        """All tokens."""
        first, last = self.span
        guided = first == 0 < last
        firsts = [torch.stack([prompt.first for prompt in part]) for part in self.parts[: None if guided else 1]]
        self.choose(firsts, 0)
        for position in range(self.tokens):
            if position:
                if position == first > 1 and len(self.parts) > 1:
                    # The other conditions have not seen the tokens before the span.
                    others = self.cache.conditions(1, self.cache.parts)
                    self.decoder.step(self.drawn[:, : position - 1], 0, others, position - 1, tail=1)
                guided = first <= position < last
                if self.graphs is None:
                    self.step(position, guided, position)
                else:
                    end = self.graphs.reach(position, self.tokens)
                    self.graphs.run((guided, end), lambda at, g=guided, e=end: self.recorded(at, g, e), position)
            if on_step is not None:
                on_step(position + 1, self.tokens)
            if watch is not None:
                watch(self.drawn, position + 1)
        return self.drawn.clone()

    def step(self, position: int | Int[Tensor, "1"], guided: bool, end: int) -> None:
        """Choose the token at `position`, from the one before; `end` tokens are read."""
        cache = self.cache if guided else self.cache.conditions(0, 1)
        before = position - 1
        if isinstance(before, Tensor):
            previous = self.drawn.index_select(1, before)
            before = before.expand(len(self.drawn))
        else:
            previous = self.drawn[:, before : before + 1]
        read = self.decoder.step(previous, before, cache, end)[:, -1]
        self.choose(read.chunk(cache.parts), position)

    @abstractmethod
    def choose(self, parts: Sequence[Float[Tensor, "b v"]], position: int | Int[Tensor, "1"]) -> None:
        """Write the token at `position`, given what is read out for it under each condition."""


class CodeBatch(TokenBatch):
    """Pictures of codes.

    Args:
        decoder: the model.
        pictures: see there.
        config: how tokens are drawn.
        filters: applied to the guided logits.
    """

    def __init__(
        self, decoder: Decoder, pictures: Sequence[Picture], config: SamplingConfig, filters: Sequence[LogitsProcessor]
    ) -> None:
        tokens, device = decoder.spec.tokens, decoder.device
        self.filters = filters
        self.draws = uniforms([picture.seed for picture in pictures], tokens, device)
        drawn = torch.zeros(len(pictures), tokens, dtype=torch.long, device=device)
        graphs = GraphRunner(device) if device.type == "cuda" else None
        super().__init__(decoder, pictures, config, drawn, graphs)

    def begin(self, pictures: Sequence[Picture]) -> None:
        """Take other pictures, that fit, into the very tensors of those that are here."""
        super().begin(pictures)
        self.draws.copy_(uniforms([picture.seed for picture in pictures], self.tokens, self.decoder.device))

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
            self.drawn[:, position] = chosen
        else:
            self.drawn.index_copy_(1, position, chosen.unsqueeze(1))


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
