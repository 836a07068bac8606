import math
import random

import numpy as np
import pytest

from mentor.training.spikes import UsualLoss


def test_mean_and_deviation_are_those_of_all_losses_at_first() -> None:
    chance = random.Random(0)
    drawn = [chance.gauss(2, 0.3) for _ in range(40)]
    usual = UsualLoss(sigmas=5, window=50)
    for loss in drawn:
        usual.add("a", loss)
    assert usual.limit("a") == pytest.approx(np.mean(drawn) + 5 * np.std(drawn))


def test_later_the_older_losses_fade() -> None:
    usual = UsualLoss(sigmas=4, window=20)
    for loss in [10.0] * 30 + [1.0] * 400:
        usual.add("a", loss)
    assert usual.limit("a") == pytest.approx(1.04, abs=1e-3), "the least deviation is a hundredth of the mean"


def test_nothing_is_a_spike_while_little_is_known_or_none_is_looked_for() -> None:
    usual, never = UsualLoss(6, 20), UsualLoss(0, 20)
    for number in range(40):
        assert math.isinf(usual.limit("a")) == (number < 10)
        usual.add("a", 1.0)
        never.add("a", 1.0)
    assert math.isinf(never.limit("a"))
    assert math.isinf(usual.limit("b")), "each task has a range of its own"


def test_what_is_known_comes_back() -> None:
    usual, again = UsualLoss(6, 20), UsualLoss(6, 20)
    for number in range(30):
        usual.add("a", float(number))
    again.load_state_dict(usual.state_dict())
    assert again.limit("a") == usual.limit("a")
