"""Attention, its two kernels, and rotary positions."""

import pytest
import torch

from mentor.nn.attention import attend
from mentor.nn.layers import RMSNorm, swiglu_hidden
from mentor.nn.rope import apply_rotary, rotary_table, turn_as_complex, turn_as_real


def test_plain_and_fused_attention_agree_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 16, generator=generator).bfloat16() for _ in range(3))
    mask = (torch.rand(2, 1, 9, 9, generator=generator) > 0.4) | torch.eye(9, dtype=torch.bool)
    plain = attend(q, k, v, mask)  # gradients on: the products spelled out
    with torch.no_grad():
        fused = attend(q, k, v, mask)
    assert torch.allclose(plain.float(), fused.float(), atol=2e-2)


def test_masked_keys_have_no_influence() -> None:
    q, k, v = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    mask = torch.tensor([True, True, False, True, False]).view(1, 1, 1, 5)
    before = attend(q, k, v, mask)
    k[:, :, [2, 4]], v[:, :, [2, 4]] = 50.0, -50.0
    assert torch.equal(before, attend(q, k, v, mask))


def test_grouped_heads_equal_repeated_heads() -> None:
    q, k, v = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    repeated = attend(q, k[:, [0, 0, 1, 1]], v[:, [0, 0, 1, 1]], None)
    assert torch.allclose(attend(q, k, v, None), repeated)


def test_rotary_products_depend_on_distance_only() -> None:
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(at: tuple[int, int], other: tuple[int, int]) -> float:
        tables = [rotary_table(torch.tensor([[place]]).float(), 16, 100.0) for place in (at, other)]
        return (apply_rotary(q, tables[0]) * apply_rotary(k, tables[1])).sum().item()

    assert product((1, 5), (3, 2)) == pytest.approx(product((4, 6), (6, 3)), abs=1e-4)
    assert product((1, 5), (3, 2)) != pytest.approx(product((1, 5), (2, 3)), abs=1e-3)


def test_turns_by_complex_and_by_real_numbers_agree() -> None:
    x, table = torch.randn(2, 3, 5, 16), rotary_table(torch.randint(0, 9, (2, 5, 2)).float(), 16, 100.0)
    pairs = x.unflatten(-1, (-1, 2))
    torch.testing.assert_close(turn_as_real(pairs, table), turn_as_complex(pairs, table))
    assert apply_rotary(x.to("meta"), table.to("meta")).shape == x.shape


def test_feed_forward_widths_follow_llamagen() -> None:
    assert [swiglu_hidden(width) for width in (768, 1024, 1280, 1536)] == [2048, 2816, 3584, 4096]


def test_rms_norm_and_its_gradients_equal_torch() -> None:
    x = torch.randn(3, 4, 32, requires_grad=True)
    norm = RMSNorm(32)
    torch.nn.init.normal_(norm.weight)
    wanted = torch.randn(3, 4, 32)
    ours = norm(x)
    theirs = torch.nn.functional.rms_norm(x, (32,), norm.weight, 1e-5)
    assert torch.allclose(ours, theirs, atol=1e-6)
    ours_grads = torch.autograd.grad((ours * wanted).sum(), (x, norm.weight))
    theirs_grads = torch.autograd.grad((theirs * wanted).sum(), (x, norm.weight))
    for mine, other in zip(ours_grads, theirs_grads, strict=True):
        assert torch.allclose(mine, other, atol=1e-4)


def test_rms_norm_without_gradients_is_the_same() -> None:
    x, norm = torch.randn(3, 4, 32), RMSNorm(32)
    torch.nn.init.normal_(norm.weight)
    with torch.no_grad():
        fused = norm(x)
        assert norm(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), fused)
