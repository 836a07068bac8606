"""The loop over pictures: memory that runs out halves the batch and loses nothing; previews."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from batchjobs import watch_batches
from PIL import Image

from mentor.drawing import loop
from mentor.drawing.jobs import draw, plan
from mentor.drawing.model import Model
from mentor.errors import UserError
from mentor.generate import generate
from mentor.sampling import Request

GONE = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Lets the sampler draw so many pictures at a time; the list says how many each batch had."""
    asked: list[int] = []

    def limit(most: int) -> list[int]:
        def check(_: object, batch: list[Request]) -> None:
            asked.append(len(batch))
            if len(batch) > most:
                raise GONE

        watch_batches(monkeypatch, check)
        return asked

    return limit


def test_out_of_memory_halves_the_batch_and_goes_on(
    model: Model, scarce: Callable[[int], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = generate(model, "a mug", num_images=11)
    calls: list[tuple[int, int]] = []
    asked = scarce(2)
    pictures = generate(model, "a mug", num_images=11, batch_size=8, on_step=lambda *done: calls.append(done))
    assert [one.tobytes() for one in pictures] == [one.tobytes() for one in whole]
    assert asked == [8, 4, 2, 2, 2, 2, 2, 1], "what was found out in the first batch holds for the second"
    assert calls[-1] == (11 * 16, 11 * 16)
    assert capsys.readouterr().err.splitlines() == [
        "out of memory with 8 pictures at a time: going on with 4",
        "out of memory with 4 pictures at a time: going on with 2",
    ]


def test_a_batch_that_was_not_full_halves_what_it_held(model: Model, scarce: Callable[[int], list[int]]) -> None:
    asked = scarce(2)
    generate(model, "a mug", num_images=5, batch_size=32)
    assert asked == [5, 2, 2, 1]


def test_one_picture_that_does_not_fit_is_an_error_of_one_line(
    model: Model, scarce: Callable[[int], list[int]]
) -> None:
    scarce(0)
    with pytest.raises(UserError, match="not enough memory to draw one picture") as caught:
        generate(model, "a mug", num_images=4)
    assert "\n" not in str(caught.value)


def test_other_faults_are_not_taken_for_a_lack_of_memory(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("mentor.drawing.codes.stream", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        generate(model, "a mug")


def test_memory_that_runs_out_among_finished_pictures_repeats_only_the_others(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a sampler does that gives pictures one by one and takes new ones in their places."""
    drawn: list[int] = []
    failed = False

    def one_by_one(
        model: Model, requests: Iterator[Request], config: Any, slots: int, *rest: Any
    ) -> Iterator[tuple[Request, torch.Tensor]]:
        nonlocal failed
        held: list[Request] = []
        for request in requests:
            held.append(request)
            if len(held) < slots:
                continue
            if len(drawn) == 3 and not failed:
                failed = True
                raise torch.OutOfMemoryError("CUDA out of memory")
            first = held.pop(0)
            drawn.append(first.seed)
            rest[0](16 * len(drawn))
            yield first, torch.full((4, 4), first.seed % 16)
        for request in held:
            drawn.append(request.seed)
            rest[0](16 * (len(drawn) - 3))
            yield request, torch.full((4, 4), request.seed % 16)

    monkeypatch.setattr(loop, "codes_of", one_by_one)
    calls: list[tuple[int, int]] = []
    job = plan(model, "a mug", (), 10, 0, 4)
    job = type(job)(**{**vars(job), "batch_size": 10})
    room = loop.Room(4)
    watcher = loop.Watcher[int](lambda *done: calls.append(done), 160)
    condition = job.condition()
    pictures = dict(
        loop.draw_all(model, job.sampling, list(job.seeds), lambda seed: Request(condition, seed), room, watcher)
    )
    assert sorted(drawn) == list(range(10)) == sorted(pictures)
    assert room.slots == 2
    assert calls[-1] == (160, 160)


def test_memory_that_runs_out_over_the_references_is_no_end_either(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plan(model, "a mug", (), 3, 0)
    condition = job.condition()
    asked: list[int] = []

    def ask(seed: int) -> Request:
        asked.append(seed)
        if asked == [0, 1]:
            raise MemoryError
        return Request(condition, seed)

    drawn = loop.draw_all(model, job.sampling, list(job.seeds), ask, loop.Room(3), loop.Watcher[int]())
    assert sorted(seed for seed, _ in drawn) == [0, 1, 2]
    assert asked == [0, 1, 0, 1, 2]


def test_previews_come_every_so_many_tokens_with_the_pictures_index(model: Model) -> None:
    seen: list[tuple[int, Image.Image]] = []
    job = plan(model, "a mug", (), 3, 7, 2)
    pictures = list(draw(job, job.seeds, None, lambda index, picture: seen.append((index, picture)), 5))
    assert [index for index, _ in seen] == [0, 1] * 3 + [2] * 3
    for (_, whole), shown in zip(pictures, ([0, 2, 4], [1, 3, 5], [6, 7, 8]), strict=True):
        for count, at in zip((5, 10, 15), shown, strict=True):
            cells = np.array(seen[at][1]).reshape(4, 4, 4, 4, 3).swapaxes(1, 2).reshape(16, -1)
            assert (cells[count:] == 128).all() and (cells[:count] != 128).any(axis=1).all()
        # The last preview lacks one cell in the corner, of which the first one's decoding sees nothing much.
        difference = np.array(seen[shown[-1]][1], dtype=int)[:4, :4] - np.array(whole, dtype=int)[:4, :4]
        assert np.abs(difference).mean() < 8


def test_without_an_interval_there_are_no_previews(model: Model) -> None:
    generate(model, "a mug", on_picture=lambda *_: pytest.fail("shown"))
    with pytest.raises(UserError, match="preview_every -1"):
        generate(model, "a mug", preview_every=-1)
