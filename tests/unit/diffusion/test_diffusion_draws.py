"""Chance of pictures, each from its own seed."""

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from mentor.diffusion import Draws

SEEDS = [5, 0, 2**31 + 11, 7, 5]  # torch reads the last 32 bits of a seed
KINDS = ("uniform", "normal", "order")


def draw(draws: Draws, kind: str) -> Tensor:
    return draws.order(9) if kind == "order" else getattr(draws, kind)(3, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_depend_on_their_own_seed_alone(kind: str) -> None:
    together, alone = Draws(SEEDS), [Draws([seed]) for seed in SEEDS]
    assert len(together) == 5
    for _ in range(2):
        assert torch.equal(draw(together, kind), torch.cat([draw(one, kind) for one in alone]))


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_differ_and_equal_ones_do_not(kind: str) -> None:
    rows = draw(Draws(SEEDS), kind)
    assert torch.equal(rows[0], rows[4])
    assert not any(torch.equal(rows[i], rows[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("kind", KINDS)
def test_every_draw_is_new(kind: str) -> None:
    draws = Draws(SEEDS)
    first, second = draw(draws, kind), draw(draws, kind)
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_chance_of_others_is_left_alone(kind: str) -> None:
    before = torch.get_rng_state()
    first = draw(Draws([1]), kind)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(draw(Draws([1]), kind), first)


@pytest.mark.parametrize("count", [0, 1, 16])
def test_an_order_is_a_permutation(count: int) -> None:
    orders = Draws(SEEDS).order(count)
    assert orders.shape == (5, count) and orders.dtype == torch.long
    assert torch.equal(orders.sort(dim=1).values, torch.arange(count).expand(5, count))


def test_every_order_is_as_likely_as_the_others() -> None:
    orders = Draws(range(6000)).order(3)
    counts = (orders * torch.tensor([9, 3, 1])).sum(dim=1).unique(return_counts=True)[1]
    assert len(counts) == 6 and counts.min() > 880 and counts.max() < 1120


def test_uniform_numbers_lie_between_0_and_1() -> None:
    numbers = Draws([1, 2]).uniform(20_000)
    assert numbers.shape == (2, 20_000) and numbers.dtype == torch.float32
    assert numbers.min() >= 0 and numbers.max() < 1
    assert all(kstest(row.numpy(), "uniform").pvalue > 1e-3 for row in numbers)


def test_normal_numbers_are_normal() -> None:
    numbers = Draws([1, 2]).normal(20_000)
    assert numbers.shape == (2, 20_000) and numbers.dtype == torch.float32
    assert all(kstest(row.numpy(), "norm").pvalue > 1e-3 for row in numbers)


def test_seeds_next_to_each_other_have_nothing_in_common() -> None:
    first, second = Draws([10, 11]).normal(20_000)
    assert abs(torch.corrcoef(torch.stack((first, second)))[0, 1]) < 0.03
    assert all(kstest(Draws(range(5000)).normal(2)[:, at].numpy(), "norm").pvalue > 1e-3 for at in (0, 1))


def test_one_number_for_each_picture() -> None:
    assert Draws(SEEDS).uniform().shape == (5,)
