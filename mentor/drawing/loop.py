"""Pictures drawn one after the other, as many at a time as memory allows."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from mentor.decoding.settings import SamplingConfig
from mentor.drawing.codes import codes_of
from mentor.drawing.memory import ran_out
from mentor.drawing.model import Model
from mentor.drawing.pictures import decode_picture, partial_picture
from mentor.errors import UserError
from mentor.sampling import Request

T = TypeVar("T")


@dataclass
class Room:
    """How many pictures are drawn at a time.

    Attributes:
        most: what has been found to be possible once memory had run out.
    """

    slots: int
    most: int | None = None

    def fill(self, slots: int) -> None:
        """Draw so many at a time from now on, as far as that has not been too much before."""
        self.slots = slots if self.most is None else min(slots, self.most)

    def halve(self, tried: int) -> None:
        """Take half of what was too much.

        Raises:
            UserError: that was one picture.
        """
        if tried <= 1:
            raise UserError(
                "there is not enough memory to draw one picture at a time: end other programs, shorten the prompt, "
                "or take --precision bf16 or a smaller model"
            )
        self.slots = self.most = tried // 2
        print(f"out of memory with {tried} pictures at a time: going on with {self.slots}", file=sys.stderr, flush=True)


@dataclass
class Watcher(Generic[T]):
    """Who is told of pictures in the making.

    Attributes:
        on_step: called with (tokens done, tokens in all).
        total: tokens in all.
        on_picture: called with what is drawn and the picture so far, every `every` tokens; 0 is never.
    """

    on_step: Callable[[int, int], None] | None = None
    total: int = 0
    on_picture: Callable[[T, Image.Image], None] | None = None
    every: int = 0
    done: int = 0
    _shown: dict[int, int] = field(default_factory=dict)

    def reach(self, done: int) -> None:
        """So many tokens are drawn."""
        self.done = done
        if self.on_step is not None:
            self.on_step(self.done, self.total)

    def show(self, model: Model, thing: T, ids: Int[Tensor, "n"]) -> None:
        """Show a picture in the making, if it has come far enough since it was shown last."""
        if self.on_picture is None or not self.every or len(ids) >= model.tokens:
            return
        before = self._shown.get(id(thing), 0)
        if len(ids) // self.every > before // self.every:
            self._shown[id(thing)] = len(ids)
            self.on_picture(thing, partial_picture(model, ids))

    def forget(self, thing: T) -> None:
        """Nothing more is to be shown of it, or it begins anew."""
        self._shown.pop(id(thing), None)


@torch.inference_mode()
def draw_all(
    model: Model,
    config: SamplingConfig,
    things: Sequence[T],
    ask: Callable[[T], Request],
    room: Room,
    watcher: Watcher[T],
) -> Iterator[tuple[T, Image.Image]]:
    """Each thing with its picture, as soon as it is drawn; memory that runs out only takes time.

    Args:
        model: what draws.
        config: how, all of them.
        things: what the pictures are of.
        ask: the request for a thing's picture; called when its turn comes, and again if memory ran out over it.
        room: how many are drawn at a time.
        watcher: told of the way.
    """
    waiting = deque(things)
    while waiting:
        attempt = _Attempt(waiting, ask)
        start = watcher.done
        finished = 0
        try:
            drawn = codes_of(
                model,
                attempt.requests(),
                config,
                room.slots,
                lambda tokens, start=start: watcher.reach(start + tokens),
                None if watcher.on_picture is None else partial(attempt.show, model, watcher),
            )
            for request, grid in drawn:
                picture = decode_picture(model, grid)
                finished += 1
                thing = attempt.finish(request)
                watcher.forget(thing)
                yield thing, picture
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        else:
            continue
        # Only here, where the error holds none of its frames any more, is their memory free.
        for thing in attempt.give_up():
            watcher.forget(thing)
        watcher.done = start + finished * model.tokens
        model.decoder.kept = None
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        room.halve(min(room.slots, attempt.most))


class _Attempt(Generic[T]):
    """The pictures that are asked for until memory runs out.

    Attributes:
        most: so many were in the making at a time.
    """

    def __init__(self, waiting: deque[T], ask: Callable[[T], Request]) -> None:
        self._waiting = waiting
        self._ask = ask
        self._open: dict[int, tuple[Request, T]] = {}
        self.most = 1

    def requests(self) -> Iterator[Request]:
        """The requests, each made when it is asked for."""
        while self._waiting:
            self.most = max(self.most, len(self._open) + 1)
            request = self._ask(self._waiting[0])
            self._open[id(request)] = request, self._waiting.popleft()
            yield request

    def show(self, model: Model, watcher: Watcher[T], request: Request, ids: Int[Tensor, "n"]) -> None:
        """Show the picture of a request, as far as it has come."""
        watcher.show(model, self._open[id(request)][1], ids)

    def finish(self, request: Request) -> T:
        """What the request was for; it is done."""
        return self._open.pop(id(request))[1]

    def give_up(self) -> list[T]:
        """What was asked for and is not done; it waits again, before all others."""
        unfinished = [thing for _, thing in self._open.values()]
        self._waiting.extendleft(reversed(unfinished))
        self._open.clear()
        return unfinished
