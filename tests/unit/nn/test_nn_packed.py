"""Packed products against the plain one, and rows that know nothing of each other."""

import pytest
import torch
from torch.nn import functional

from mentor.nn import packed
from mentor.nn.packed import Int8Linear, PackedLinear, WeightOnlyInt8Linear, has_fast_int8, pack_product

ROWS = (1, 2, 3, 4, 5, 8, 17, 40, 65, 300)
needs_int8 = pytest.mark.skipif(not has_fast_int8(), reason="the processor has no products of 8-bit integers")


@pytest.mark.parametrize("shape", [(24, 32), (640, 512)], ids=["small", "large enough to be filled up"])
@pytest.mark.parametrize("rows", ROWS)
def test_packed_float32_is_the_plain_product(shape: tuple[int, int], rows: int) -> None:
    weight, x = torch.randn(shape), torch.randn(rows, shape[1])
    ours = PackedLinear(weight, torch.float32)(x)
    torch.testing.assert_close(ours, functional.linear(x, weight), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda weight: PackedLinear(weight, torch.float32),
        lambda weight: PackedLinear(weight, torch.bfloat16),
        pytest.param(Int8Linear, marks=needs_int8),
    ],
    ids=["fp32", "bf16", "int8"],
)
def test_a_row_is_the_same_in_any_company(make) -> None:
    layer, x = make(torch.randn(640, 512)), torch.randn(300, 512)
    # One row is louder than all others: what is scaled by the whole batch would lose the rest.
    x[7] *= 1000
    whole = layer(x)
    for rows in ROWS:
        assert torch.equal(layer(x[:rows]), whole[:rows]), rows


def test_any_number_of_dimensions() -> None:
    weight, x = torch.randn(24, 32), torch.randn(2, 3, 32)
    ours = PackedLinear(weight, torch.float32)(x)
    torch.testing.assert_close(ours, functional.linear(x, weight), atol=1e-5, rtol=1e-5)


def test_bfloat16_takes_and_gives_float32_and_rounds_the_weights() -> None:
    weight, x = torch.randn(64, 32), torch.randn(5, 32)
    ours = PackedLinear(weight, torch.bfloat16)(x)
    expected = functional.linear(x.bfloat16(), weight.bfloat16()).float()
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=0.05, rtol=0.02)


@needs_int8
def test_eight_bits_come_within_a_hundredth() -> None:
    weight, x = torch.randn(640, 512) * torch.rand(640, 1), torch.randn(9, 512)
    expected = functional.linear(x, weight)
    assert (Int8Linear(weight)(x) - expected).norm() < 0.015 * expected.norm()
    assert Int8Linear(weight)(torch.zeros(2, 512)).abs().max() == 0


def test_weights_alone_in_eight_bits_come_within_a_hundredth() -> None:
    weight, x = torch.randn(640, 512), torch.randn(9, 512)
    expected = functional.linear(x, weight)
    layer = WeightOnlyInt8Linear(weight)
    assert layer.weight.dtype == torch.int8
    assert (layer(x) - expected).norm() < 0.01 * expected.norm()


@pytest.mark.skipif(not packed.can_pack(), reason="torch without oneDNN")
def test_few_numbers_of_rows_are_met() -> None:
    layer, met = PackedLinear(torch.randn(24, 32), torch.float32), set()
    product = layer.product
    assert product is not None

    def watched(x: torch.Tensor, *rest: object) -> torch.Tensor:
        met.add(len(x))
        return product(x, *rest)

    layer.product = watched
    for rows in range(1, 700):
        layer(torch.zeros(rows, 32))
    assert len(met) <= 22, met


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_packed_products_the_plain_one_stands_in(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    weight, x = torch.randn(24, 32), torch.randn(3, 32)
    ours = pack_product(weight, precision)(x)
    monkeypatch.setattr(packed, "can_pack", lambda: False)
    torch.testing.assert_close(pack_product(weight, precision)(x), ours, atol=1e-2, rtol=1e-2)
    assert not packed.has_fast_bf16()
