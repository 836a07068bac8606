"""Intervals against scipy and by hand, scores, fronts, sweeps."""

import numpy as np
import pytest
from scipy import stats

from mentor.comparing.intervals import Bootstrap, clear, interval
from mentor.comparing.measuring import Measured
from mentor.comparing.scores import beside, is_measure, score_all
from mentor.comparing.sweeps import SWEEPS, front, in_words, sweep_of
from mentor.errors import UserError


def test_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=60)
    ours = interval(Bootstrap([str(row) for row in range(60)], seed=0, rounds=20_000).means(values))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_means_are_those_of_rows_drawn_by_hand() -> None:
    keys, values = ["a", "b", "a", "c"], np.array([1.0, 5.0, 3.0, 10.0])
    rng = np.random.default_rng(7)
    times = rng.multinomial(3, [1 / 3] * 3, size=50)
    by_hand = []
    for a, b, c in times:
        drawn = [1.0, 3.0] * a + [5.0] * b + [10.0] * c
        by_hand.append(sum(drawn) / len(drawn))
    assert Bootstrap(keys, seed=7, rounds=50).means(values) == pytest.approx(by_hand)


def test_rows_of_one_record_are_no_witnesses_of_their_own() -> None:
    values = np.random.default_rng(3).normal(size=20)
    keys = [str(row) for row in range(20)]
    once = interval(Bootstrap(keys).means(values))
    thrice = interval(Bootstrap(keys * 3).means(np.tile(values, 3)))
    assert thrice == pytest.approx(once)


def test_a_difference_is_clear_where_0_is_outside() -> None:
    assert clear((0.1, 0.2))
    assert clear((-0.2, -0.1))
    assert not clear((-0.1, 0.1))
    assert not clear((0.0, 0.0))


def measured(cp: list[float], pf: list[float], keys: str = "abcdefgh") -> Measured:
    metrics = {
        "tokenizer/psnr": 20.0 + cp[0],
        "subject/count": len(cp),
        "subject/cp": float(np.mean(cp)),
        "subject/cp_ceiling": 1.0,
        "subject/cp_error": 0.1,
        "subject/pf": float(np.mean(pf)),
        "subject/cp_pf": float(np.mean(cp) * np.mean(pf)),
        "subject/imbalance": 0.5,
        "seconds/total": 3.0,
    }
    return Measured(metrics, {"subject": list(keys[: len(cp)])}, {"subject": {"cp": np.array(cp), "pf": np.array(pf)}})


def test_scores_of_two_runs() -> None:
    first = [measured([1, 0, 0, 0], [1, 1, 0, 0]), measured([0, 0, 1, 1], [1, 1, 1, 1], "efgh")]
    other = [measured([1, 1, 1, 1], [1, 1, 1, 1]), measured([1, 1, 1, 1], [1, 1, 1, 1], "efgh")]
    scores = score_all([first, other])
    assert list(scores) == ["tokenizer/psnr", "subject/cp", "subject/pf", "subject/cp_pf", "subject/imbalance"]
    own, better = scores["subject/cp_pf"]
    assert own.value == pytest.approx(3 / 8 * 6 / 8), "the product of the means, not the mean of the products"
    assert own.seeds == pytest.approx((1 / 4 * 2 / 4, 2 / 4))
    assert own.interval is not None
    assert own.value is not None
    assert own.interval[0] < own.value < own.interval[1]
    assert (own.difference, own.difference_interval, own.clear) == (0.0, (0.0, 0.0), False)
    assert better.value == 1.0
    assert better.interval == (1.0, 1.0)
    assert better.difference == pytest.approx(1 - own.value)
    assert better.clear
    # Paired: the interval of the difference is the other's turned round, where one of both never varies.
    assert better.difference_interval == pytest.approx((1 - own.interval[1], 1 - own.interval[0]))
    plain = scores["tokenizer/psnr"][0]
    assert (plain.value, plain.seeds, plain.interval, plain.clear) == (20.5, (21.0, 20.0), None, False)
    assert beside(first)["subject/cp_ceiling"] == 1.0


def test_pairs_tell_more_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    keys = [str(row) for row in range(200)]

    def run(shift: float) -> list[Measured]:
        values = hard + shift + rng.normal(size=200) * 0.1
        return [Measured({"segment/iou": values.mean()}, {"segment": keys}, {"segment": {"iou": values}})]

    one, other = score_all([run(0.0), run(0.1)])["segment/iou"]
    assert one.interval[1] > other.interval[0], "the intervals overlap by far"
    assert other.clear


def test_runs_on_different_examples_are_a_fault_of_ours() -> None:
    with pytest.raises(RuntimeError, match="different examples"):
        score_all([[measured([1, 0], [1, 0])], [measured([1, 0], [1, 0], "xy")]])


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("subject/cp", True),
        ("recover/psnr_gain", True),
        ("recover/psnr_gain_nothing", False),
        ("reconstruct/ceiling_psnr", False),
        ("subject/candidates", False),
        ("segment/count", False),
        ("seconds/total", False),
    ],
)
def test_what_is_a_measure(key: str, expected: bool) -> None:
    assert is_measure(key) is expected


def test_front_holds_what_nothing_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (0.5, 0.1), (4.0, 0.9), (4.0, 0.8), (3.0, 0.9), (1.0, 0.5)]
    assert front(points) == [2, 0, 6, 5], "twins both stay"
    assert front([]) == []
    assert front([(1.0, 1.0)]) == [0]


def test_every_kind_has_its_sweep() -> None:
    assert sweep_of({"kind": "ar"}) == [{}, {"guidance": 1.0}, {"speculative": 8}]
    assert [changes["steps"] for changes in sweep_of({"kind": "dit"})] == [1, 2, 4, 8, 16, 32]
    assert len(sweep_of({"kind": "diffusion", "order": "raster"})) == 3
    masked = sweep_of({"kind": "diffusion", "order": "random"})
    assert len(masked) == 9
    assert {changes["tokens_per_step"] for changes in masked} == {2, 4, 12}
    assert in_words({"steps": 4, "tokens_per_step": 16}) == "steps 4, tokens_per_step 16"
    assert in_words({}) == "as it is evaluated"
    with pytest.raises(UserError, match="the head 'new' has no table of samplings: known are ar, dit, diffusion"):
        sweep_of({"kind": "new"})
    assert set(SWEEPS) == {"ar", "dit", "diffusion"}
