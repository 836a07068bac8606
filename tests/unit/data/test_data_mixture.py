"""Patterns and mixtures: exact in every window, counted without walking, quantised by a stated rule."""

import time
from collections import Counter

import numpy as np
import pytest

from mentor.data.mixture import PERIOD, Mixture, Pattern, thousandths
from mentor.errors import UserError

WEIGHTS = {"reconstruct": 2.0, "segment": 1.0, "subject": 1.0}
FIVE = {"a": 0.3, "b": 0.45, "c": 0.15, "d": 0.051, "e": 0.049}
LOPSIDED = {"a": 998.0, "b": 1.0, "c": 1.0}
THIRDS = {"a": 1.0, "b": 1.0, "c": 1.0}


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        (WEIGHTS, [500, 250, 250]),
        (FIVE, [300, 450, 150, 51, 49]),
        (LOPSIDED, [998, 1, 1]),
        (THIRDS, [334, 333, 333]),
        ({"a": 2.0, "b": 1.0}, [667, 333]),
        ({"a": 32267.7, "b": 32.3}, [999, 1]),
        ({"a": 0.7}, [1000]),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_window_of_a_thousand_steps_holds_exactly_the_thousandths(weights, shares, seed):
    mixture = Mixture(weights, seed)
    tasks = [mixture.at(step)[0] for step in range(3 * PERIOD)]
    expected = dict(zip(weights, shares, strict=True))
    window = Counter(tasks[:PERIOD])
    for start in range(2 * PERIOD):
        assert window == expected, start
        window[tasks[start]] -= 1
        window[tasks[start + PERIOD]] += 1


@pytest.mark.parametrize("weights", [WEIGHTS, FIVE, LOPSIDED, THIRDS])
def test_no_choice_is_ever_a_whole_place_away_from_its_share(weights):
    choices = Pattern(weights, shift=0).which(np.arange(2 * PERIOD))
    for choice, share in enumerate(thousandths(weights)):
        ahead = PERIOD * np.cumsum(choices == choice) - share * np.arange(1, 2 * PERIOD + 1)
        assert np.abs(ahead).max() < PERIOD


@pytest.mark.parametrize("weight", [0.0009, 1e-30, 0.0])
def test_a_weight_too_small_to_keep_to_is_named(weight):
    with pytest.raises(
        UserError, match=rf"the weight {weight:g} of the task 'b' is less than a thousandth.*: raise it"
    ):
        Mixture({"a": 1.0, "b": weight}, 0)


def test_a_weight_a_hair_under_a_thousandth_is_refused_even_where_its_remainder_is_the_largest():
    with pytest.raises(UserError, match=r"of b is less than a thousandth of all weights together \(1000\)"):
        thousandths({"a": 999.001, "b": 0.999})


@pytest.mark.parametrize("weights", [WEIGHTS, FIVE, THIRDS])
def test_the_mixture_counts_earlier_steps_of_a_task(weights):
    mixture = Mixture(weights, 3)
    counts: Counter[str] = Counter()
    for step in range(2300):
        task, earlier = mixture.at(step)
        assert earlier == counts[task]
        counts[task] += 1


def test_the_mixture_depends_on_the_seed_but_not_on_the_order_of_the_weights():
    starts = {tuple(Mixture(WEIGHTS, seed).at(step)[0] for step in range(8)) for seed in range(10)}
    assert len(starts) > 1
    turned = Mixture(dict(reversed(THIRDS.items())), 5)
    assert [turned.at(step) for step in range(99)] == [Mixture(THIRDS, 5).at(step) for step in range(99)]


def test_warmup_steps_are_of_one_task_and_then_the_mixture_holds():
    mixture = Mixture({"segment": 1, "text_to_image": 1}, 0, warmup=30, warmup_task="reconstruct")
    assert mixture.tasks == ("reconstruct", "segment", "text_to_image")
    tasks = [mixture.at(step) for step in range(130)]
    assert tasks[:30] == [("reconstruct", number) for number in range(30)]
    assert Counter(task for task, _ in tasks[30:]) == {"segment": 50, "text_to_image": 50}


def test_a_warmup_task_that_is_in_the_mixture_too_goes_on_where_the_warmup_left_it():
    mixture = Mixture({"segment": 1, "reconstruct": 1}, 0, warmup=30, warmup_task="reconstruct")
    steps = [mixture.at(step) for step in range(2030)]
    assert [earlier for task, earlier in steps if task == "reconstruct"] == list(range(1030))
    assert [earlier for task, earlier in steps if task == "segment"] == list(range(1000))


def test_a_step_far_out_takes_no_time():
    mixture = Mixture(FIVE, 0, warmup=7, warmup_task="a")
    started = time.process_time()
    task, earlier = mixture.at(10**12 + 7)
    assert time.process_time() - started < 0.1
    first, once = mixture.at(7)
    assert task == first
    assert earlier == once + 10**9 * dict(zip(FIVE, thousandths(FIVE), strict=True))[task]


def test_a_pattern_answers_for_many_places_at_once():
    pattern = Pattern({"x": 3, "y": 1, "z": 2}, shift=124)
    choices = pattern.which(np.arange(5000))
    counts = Counter()
    for place, before in enumerate(pattern.before(np.arange(5000)).tolist()):
        assert before == counts[choices[place]]
        counts[choices[place]] += 1
    scattered = np.array([4999, 0, 77, 2345, 77])
    assert pattern.which(scattered).tolist() == choices[scattered].tolist()
    unshifted = Pattern({"x": 3, "y": 1, "z": 2}, shift=0).which(np.arange(124, 124 + PERIOD))
    assert unshifted.tolist() == choices[:PERIOD].tolist()
