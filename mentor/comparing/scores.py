"""Every measure of every run: its value, how far it can be trusted, and whether it differs from the first run's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mentor.comparing.intervals import Bootstrap, Interval, clear, interval
from mentor.comparing.measuring import Measured
from mentor.data.order import seed_from
from mentor.evaluation.metrics import product

# Keys that end so stand beside a measure and are none themselves.
BESIDE = ("truth", "ceiling", "chance", "nothing", "error")
NO_MEASURES = ("count", "candidates", "total", "ceiling_psnr")
PRODUCT = "cp_pf"

Rounds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Score:
    """A measure of a run.

    Attributes:
        value: the mean over the examples of all seeds.
        seeds: the value of each seed.
        interval: in which the value lies with 95 %; None where the measure is no mean over examples.
        difference: the value less the first run's.
        difference_interval: in which that lies with 95 %.
    """

    value: float | None
    seeds: tuple[float, ...]
    interval: Interval | None = None
    difference: float | None = None
    difference_interval: Interval | None = None

    @property
    def clear(self) -> bool:
        """Whether it surely differs from the first run's."""
        return self.difference_interval is not None and clear(self.difference_interval)


Scores = dict[str, list[Score]]


def score_all(runs: Sequence[Sequence[Measured]], seed: int = 0) -> Scores:
    """Every measure with its score for each run.

    Args:
        runs: for each run its evaluations, one a seed, on the same examples as those of the other runs.
        seed: decides the draws of the bootstrap.

    Raises:
        RuntimeError: the runs were measured on different examples.
    """
    first = runs[0]
    for other in runs[1:]:
        if [one.keys for one in other] != [one.keys for one in first]:
            raise RuntimeError("the runs were measured on different examples")
    table: Scores = {}
    drawn: set[str] = set()
    for task in first[0].keys:
        keys = [key for one in first for key in one.keys[task]]
        bootstrap = Bootstrap(keys, seed_from("bootstrap", seed, task) % 2**63)
        rows = [rounds_of(run, task, bootstrap) for run in runs]
        for name in rows[0]:
            key = f"{task}/{name}"
            drawn.add(key)
            table[key] = [score(run, key, row[name], rows[0][name]) for run, row in zip(runs, rows, strict=True)]
    for key in first[0].metrics:
        if key not in drawn and is_measure(key):
            table[key] = [plain_score(run, key) for run in runs]
    return {key: table[key] for key in first[0].metrics if key in table}


def rounds_of(run: Sequence[Measured], task: str, bootstrap: Bootstrap) -> dict[str, np.ndarray]:
    """Of each measure of a task its value, and then that of every round of the bootstrap."""
    found: dict[str, np.ndarray] = {}
    for name in run[0].scores[task]:
        values = np.concatenate([one.scores[task][name] for one in run])
        found[name] = np.concatenate(([values.mean()], bootstrap.means(values)))
    if {"cp", "pf"} <= found.keys():
        found[PRODUCT] = product(found["cp"], found["pf"])  # type: ignore[arg-type, assignment]  # numbers or arrays
    return found


def score(run: Sequence[Measured], key: str, rounds: np.ndarray, first: np.ndarray) -> Score:
    """A measure that is a mean over examples, or made of such means."""
    difference = rounds - first
    return Score(
        float(rounds[0]),
        tuple(one.metrics[key] for one in run),
        interval(rounds[1:]),
        float(difference[0]),
        interval(difference[1:]),
    )


def plain_score(run: Sequence[Measured], key: str) -> Score:
    """A measure of the whole, of which there is no more than a mean over the seeds."""
    values = tuple(one.metrics[key] for one in run if key in one.metrics)
    return Score(float(np.mean(values)) if values else None, values)


def beside(run: Sequence[Measured]) -> dict[str, float]:
    """Means over the seeds of all metrics of a run: floors, ceilings, chance and doing nothing are read from them."""
    names = dict.fromkeys(name for one in run for name in one.metrics)
    return {name: float(np.mean([one.metrics[name] for one in run if name in one.metrics])) for name in names}


def is_measure(key: str) -> bool:
    """Whether a key of the metrics is a measure and not what stands beside one."""
    name = key.partition("/")[2]
    return name not in NO_MEASURES and name.rpartition("_")[2] not in BESIDE
