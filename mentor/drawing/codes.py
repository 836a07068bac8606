"""The one place where drawing meets the sampler: requests go in, the codes or latents of their pictures come out."""

from collections.abc import Callable, Iterable, Iterator

from jaxtyping import Float, Int
from torch import Tensor

from mentor.decoding.settings import SamplingConfig
from mentor.drawing.model import Model
from mentor.sampling import Request, stream

OnIds = Callable[[Request, Int[Tensor, "n"]], None]


def codes_of(
    model: Model,
    requests: Iterable[Request],
    config: SamplingConfig,
    slots: int,
    on_tokens: Callable[[int], None] | None = None,
    on_ids: OnIds | None = None,
) -> Iterator[tuple[Request, Int[Tensor, "gy gx"] | Float[Tensor, "c gy gx"]]]:
    """Each request with its picture's codes, or latents, as soon as they are drawn.

    Args:
        model: what draws.
        requests: asked for when there is room for them.
        config: how tokens are drawn.
        slots: pictures that are drawn at a time, at most.
        on_tokens: called as tokens are drawn, with how many there are, of all pictures together.
        on_ids: called after it, for each picture in the making, with its codes so far; not where several tokens are
            tried at once, nor where there are no codes.
    """
    work = _Work(model.tokens, on_tokens, on_ids)
    drawn = stream(
        model.decoder,
        work.begin(requests),
        config,
        slots,
        on_step=None if on_tokens is None else work.step,
        watch=None if on_ids is None else work.watch,
    )
    for request, picture in drawn:
        work.end(request)
        yield request, picture


class _Work:
    """The pictures in the making, in the order in which they began."""

    def __init__(self, tokens: int, on_tokens: Callable[[int], None] | None, on_ids: OnIds | None) -> None:
        self._tokens, self._on_tokens, self._on_ids = tokens, on_tokens, on_ids
        self._open: dict[int, Request] = {}
        self._finished = 0
        self._told = 0

    def begin(self, requests: Iterable[Request]) -> Iterator[Request]:
        """The requests, noted as they are taken."""
        for request in requests:
            self._open[id(request)] = request
            yield request

    def end(self, request: Request) -> None:
        """A picture is finished."""
        del self._open[id(request)]
        self._finished += 1

    def step(self, done: int, _: int) -> None:
        """Every picture in the making has so many tokens at least."""
        # Where pictures begin at different times, a new one makes the least fall.
        self._told = max(self._told, self._finished * self._tokens + done * len(self._open))
        if self._on_tokens is not None:
            self._on_tokens(self._told)

    def watch(self, ids: Int[Tensor, "b t"], count: int) -> None:
        """Every picture in the making has these tokens."""
        if self._on_ids is not None:
            for request, row in zip(list(self._open.values()), ids, strict=True):
                self._on_ids(request, row[:count])
