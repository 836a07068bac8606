"""How far a mean over examples can be trusted: bootstrap over the examples, the same draws for all runs."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

ROUNDS = 4000
LEVEL = 0.95

Interval = tuple[float, float]


class Bootstrap:
    """Draws examples with replacement, again and again, and says what the means over the draws are.

    Rows of one record, which several seeds may use, come or stay away together: they are no independent witnesses.
    All values are resampled by the same draws, so that differences between runs are those of pairs.

    Args:
        keys: the record of each row.
        seed: decides the draws.
        rounds: how many there are.
    """

    def __init__(self, keys: Sequence[str], seed: int = 0, rounds: int = ROUNDS) -> None:
        found, self._group = np.unique(np.asarray(keys), return_inverse=True)
        rng = np.random.default_rng(seed)
        count = len(found)
        self._times = rng.multinomial(count, np.full(count, 1 / count), size=rounds).astype(np.float64)
        self._rows = self._times @ np.bincount(self._group, minlength=count)

    def means(self, values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "rounds"]:
        """The mean of a row's value in each round."""
        sums = np.bincount(self._group, weights=np.asarray(values, np.float64), minlength=self._times.shape[1])
        return self._times @ sums / self._rows


def interval(means: Float[np.ndarray, "rounds"], level: float = LEVEL) -> Interval:
    """Between which values the middle `level` of the rounds lies."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def clear(difference: Interval) -> bool:
    """Whether a difference is one: 0 lies outside of its interval."""
    low, high = difference
    return low > 0 or high < 0
