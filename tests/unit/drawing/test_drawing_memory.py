"""How many pictures at a time: the estimate, its bounds, and the errors that speak of memory."""

import pytest
import torch

from mentor.decoding.settings import SamplingConfig
from mentor.drawing import memory
from mentor.drawing.memory import decoder_bytes, fitting, picture_bytes, ran_out
from mentor.drawing.model import Model
from mentor.errors import UserError

MILD = SamplingConfig()


def test_what_a_picture_takes_grows_with_its_rows_its_prompt_and_its_window(model: Model) -> None:
    alone, guided = SamplingConfig(guidance=1), SamplingConfig(guidance=2, guidance_images=3)
    one = picture_bytes(model, alone, 20)
    backbone = model.release.generator.backbone
    cache = 2 * backbone.config.layers * backbone.kv_heads * backbone.head_width * (20 + 16) * 4
    assert cache < one < 40 * cache
    assert picture_bytes(model, guided, 20) == 3 * one
    assert picture_bytes(model, alone, 21) > one
    assert picture_bytes(model, SamplingConfig(guidance=1, speculative=8), 20) > one
    assert decoder_bytes(model) >= 8 * 8 * 8 * 4, "a map of 8 channels at half the size, for one"


@pytest.mark.parametrize(("free", "expected"), [(0, 64), (1, 1), (2**50, 64)])
def test_the_estimate_stays_within_its_bounds(
    model: Model, monkeypatch: pytest.MonkeyPatch, free: int, expected: int
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda *_: free)
    assert fitting(model, MILD, [20]) == expected
    assert fitting(model, MILD, [20], most=5) == min(5, expected)


def test_half_of_what_is_free_is_left_and_the_longest_prompt_counts(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, fixed = picture_bytes(model, MILD, 30), decoder_bytes(model)
    monkeypatch.setattr(memory, "free_memory", lambda *_: 2 * (10 * one + fixed))
    assert fitting(model, MILD, [3, 30, 7]) == 10
    assert fitting(model, SamplingConfig(guidance=1), [30]) == 20
    monkeypatch.setattr(memory, "free_memory", lambda *_: 8 * (10 * one + fixed))
    assert fitting(model, MILD, [30], sharing=4) == 10


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (UserError("not enough memory"), False),
    ],
)
def test_errors_about_memory_are_told_from_others(error: BaseException, expected: bool) -> None:
    assert ran_out(error) is expected


def test_what_torch_really_says_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert ran_out(caught.value)
