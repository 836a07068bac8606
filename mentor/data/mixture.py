"""Who comes when, in exact proportion: endless patterns of choices, and the mixture of tasks over the steps."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mentor.data.seeds import seed_from
from mentor.errors import UserError

PERIOD = 1000


def thousandths(weights: Mapping[str, float]) -> list[int]:
    """The share of each weight in whole thousandths, together 1,000; largest remainders are rounded up.

    Raises:
        UserError: a weight is less than a thousandth of all together.
    """
    total = math.fsum(weights.values())
    # Rounding takes away the noise of binary fractions: 32.3 of 32,300 is a thousandth.
    exact = [round(PERIOD * weight / total, 9) if total > 0 else 0.0 for weight in weights.values()]
    for share, (name, weight) in zip(exact, weights.items(), strict=True):
        if not share >= 1:
            raise UserError(
                f"the weight {weight:g} of {name} is less than a thousandth of all weights together ({total:g}), "
                f"the least that can be kept to: raise it or leave it out"
            )
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: (shares[index] - exact[index], index))
    for index in by_remainder[: PERIOD - sum(shares)]:
        shares[index] += 1
    return shares


class Pattern:
    """An endless sequence of choices that repeats every `PERIOD` places and holds each choice as its weight says.

    Within a period it follows Tijdeman's rule for sharing one machine among several: at no place is any choice a
    whole place away from its share, so none of them clumps.

    Args:
        weights: choice number i has the i-th weight; the names serve for refusals only.
        shift: at which place of the period the sequence begins.
    """

    def __init__(self, weights: Mapping[str, float], shift: int) -> None:
        shares = thousandths(weights)
        self._counts = np.array(shares)
        self._choices = np.roll(np.array(_balanced(shares)), -shift)
        self._earlier = np.empty(PERIOD, dtype=np.int64)
        for choice, count in enumerate(shares):
            self._earlier[self._choices == choice] = np.arange(count)

    def which(self, numbers: np.ndarray) -> np.ndarray:
        """The choice at each place."""
        return self._choices[numbers % PERIOD]

    def before(self, numbers: np.ndarray) -> np.ndarray:
        """How many places before each place hold the same choice."""
        periods, places = numbers // PERIOD, numbers % PERIOD
        return periods * self._counts[self._choices[places]] + self._earlier[places]


def _balanced(shares: Sequence[int]) -> list[int]:
    """The choices of one period, by Tijdeman's rule; whole numbers throughout, so no rounding can tip it."""
    counts, choices = [0] * len(shares), []
    unit = max(2, 2 * len(shares) - 2)
    for place in range(1, PERIOD + 1):
        # Due are the choices whose share has run ahead of their count; the one whose deadline is nearest comes first.
        due = [i for i, share in enumerate(shares) if unit * (share * place - PERIOD * counts[i]) >= PERIOD]
        chosen = min(due, key=lambda i: ((unit - 1 + unit * counts[i]) / shares[i], i))
        counts[chosen] += 1
        choices.append(chosen)
    return choices


class Mixture:
    """The task of every step: each window of `PERIOD` steps holds each task exactly as often as its weight says.

    Args:
        weights: task -> weight, in any unit; kept to in whole thousandths.
        seed: chooses where in the pattern training begins.
        warmup: number of first steps that are all of `warmup_task`.
        warmup_task: see there.

    Raises:
        UserError: a weight is too small.
    """

    def __init__(self, weights: Mapping[str, float], seed: int, warmup: int = 0, warmup_task: str = "") -> None:
        self._mixed = sorted(weights)
        self.tasks: tuple[str, ...] = tuple(sorted({*weights, warmup_task} if warmup else weights))
        self._warmup, self._warmup_task = warmup, warmup_task
        named = {f"the task {task!r}": weights[task] for task in self._mixed}
        self._pattern = Pattern(named, seed_from("mixture", seed) % PERIOD)

    def at(self, step: int) -> tuple[str, int]:
        """The task of a step, and how many earlier steps had the same task."""
        if step < self._warmup:
            return self._warmup_task, step
        place = np.array([step - self._warmup])
        task = self._mixed[self._pattern.which(place).item()]
        return task, self._pattern.before(place).item() + (self._warmup if task == self._warmup_task else 0)
