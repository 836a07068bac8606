"""How a loss usually is, so that a sudden rise can be told from the ordinary up and down."""

import math
from typing import Any


class UsualLoss:
    """Running mean and variance of the loss of each task; tasks are of quite different difficulty.

    Args:
        sigmas: a loss so many standard deviations above the mean is a spike; 0 looks for none.
        window: losses that the running values look back, about; half as many come before the first judgement.
    """

    # Where losses hardly vary, a rise by less than this share of the mean is none.
    _LEAST = 0.01

    def __init__(self, sigmas: float, window: int) -> None:
        self._sigmas, self._window = sigmas, window
        self._seen: dict[str, tuple[int, float, float]] = {}

    def limit(self, task: str) -> float:
        """The loss from which on it would be a spike; infinity while too little is known."""
        count, mean, variance = self._seen.get(task, (0, 0.0, 0.0))
        if not self._sigmas or count < self._window // 2:
            return math.inf
        return mean + self._sigmas * max(math.sqrt(variance), self._LEAST * abs(mean))

    def add(self, task: str, loss: float) -> None:
        """Take a loss that was no spike into account."""
        count, mean, variance = self._seen.get(task, (0, 0.0, 0.0))
        # All count alike at first, then the older ones fade.
        share = max(1 / self._window, 1 / (count + 1))
        difference = loss - mean
        self._seen[task] = (
            count + 1,
            mean + share * difference,
            (1 - share) * (variance + share * difference * difference),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that is known, as plain values."""
        return {task: list(values) for task, values in self._seen.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._seen = {task: (int(count), mean, variance) for task, (count, mean, variance) in state.items()}
