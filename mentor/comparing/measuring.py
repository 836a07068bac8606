"""A run measured with several seeds, and how long it takes to draw a picture."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mentor.data.storage.shards import ShardSet
from mentor.decoding.settings import SamplingConfig
from mentor.evaluation.benchmarks import (
    ORDERING,
    Case,
    Contestant,
    Results,
    draw,
    evaluate,
    load_contestant,
    make_examples,
    make_judge,
)
from mentor.evaluation.config import EvaluationConfig, TaskSampling
from mentor.evaluation.metrics import product
from mentor.evaluation.oracles import SceneOracle
from mentor.models.packing import choose_precision, pack

# What curves and plots show: one measure a task.
MEASURES = {
    "recover/psnr_gain": "Recovery (dB)",
    "subject/cp_pf": "Subject (CP x PF)",
    "text_to_image/prompt_following": "Text to image",
    "segment/iou": "Segmentation (IoU)",
}
ROUNDS = 3

Report = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One evaluation, without the pictures.

    Attributes:
        metrics: as `Results.metrics`.
        keys: of each task's examples, in order.
        scores: of each task and each of its measures a number an example.
    """

    metrics: Mapping[str, float]
    keys: Mapping[str, list[str]]
    scores: Mapping[str, Mapping[str, np.ndarray]]


def prepare(contestant: Contestant, config: EvaluationConfig) -> Contestant:
    """The contestant, changed in place: it draws as fast as the settings' precision allows."""
    if contestant.generator is not None:
        pack(contestant.generator, choose_precision(config.precision, contestant.device))
    return contestant


def load(folder: Path, config: EvaluationConfig) -> Contestant:
    """The release in a folder, ready to be measured."""
    return prepare(load_contestant(folder, config.device, config.adapters), config)


def measure(
    contestant: Contestant, shards: ShardSet, config: EvaluationConfig, shown: int
) -> tuple[Measured, dict[str, list[Case]]]:
    """One evaluation, and the first `shown` cases of each task with their pictures."""
    results = evaluate(contestant, shards, config)
    return without_pictures(results), {task: found[:shown] for task, found in results.cases.items()}


def without_pictures(results: Results) -> Measured:
    """The numbers of an evaluation, which take little room."""
    keys = {task: [case.key for case in cases] for task, cases in results.cases.items()}
    scores = {
        task: {
            name: np.array([case.scores[name] for case in cases], np.float64)
            for name in cases[0].scores
            if name not in ORDERING
        }
        for task, cases in results.cases.items()
    }
    return Measured(dict(results.metrics), keys, scores)


def with_sampling(config: EvaluationConfig, changes: Mapping[str, Any]) -> EvaluationConfig:
    """The settings with these changes to how every task's pictures are drawn.

    Raises:
        pydantic.ValidationError: a change is none that sampling knows.
    """
    tasks = {
        task: SamplingConfig(**(settings | dict(changes))) for task, settings in config.sampling.model_dump().items()
    }
    return config.model_copy(update={"sampling": TaskSampling(**tasks)})


def seconds_per_picture(
    contestant: Contestant, task: str, shards: ShardSet, config: EvaluationConfig, batch: int
) -> float:
    """Seconds that a picture takes in a batch of so many: the median of some rounds after one to warm up.

    Where there are fewer examples they come again, so that batches are of the same size for all.
    """
    wanted = config.model_copy(
        update={"counts": config.counts.model_copy(update={task: batch}), "batch_size": batch, "seed": 0}
    )
    found = make_examples(task, shards, wanted, contestant.image_size)
    examples = [found[index % len(found)] for index in range(batch)]
    seconds: list[float] = []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        draw(contestant, task, examples, config.sampling_of(task), wanted, lambda *_: None)
        seconds.append((time.perf_counter() - began) / batch)
    return statistics.median(seconds[1:])


class Yardstick:
    """The measures that curves and plots show, on examples and with judges that are made once for all runs.

    Args:
        shards: the held-out records.
        config: settings of an evaluation.
        count: examples of each task, at most as many as the settings have.
        image_size: pixels of a picture's side.
    """

    def __init__(self, shards: ShardSet, config: EvaluationConfig, count: int, image_size: int) -> None:
        wanted = [task for task in dict.fromkeys(key.partition("/")[0] for key in MEASURES) if task in config.tasks]
        counts = {task: min(count, getattr(config.counts, task)) for task in wanted}
        small = config.model_copy(update={"counts": config.counts.model_copy(update=counts)})
        scenes = SceneOracle(image_size)
        self._examples = {
            task: make_examples(task, shards, small, image_size) for task, number in counts.items() if number
        }
        self._judges = {task: make_judge(task, scenes, examples, small) for task, examples in self._examples.items()}

    @property
    def tasks(self) -> list[str]:
        """The tasks that are measured."""
        return list(self._examples)

    def measure(self, contestant: Contestant, config: EvaluationConfig) -> dict[str, float]:
        """Each measure of a contestant that draws as these settings say."""
        found: dict[str, float] = {}
        for task, examples in self._examples.items():
            outputs = draw(contestant, task, examples, config.sampling_of(task), config, lambda *_: None)
            means = {name: float(np.mean(values)) for name, values in self._judges[task](examples, outputs).items()}
            if {"cp", "pf"} <= means.keys():
                means["cp_pf"] = product(means["cp"], means["pf"])
            found |= {f"{task}/{name}": value for name, value in means.items()}
        return {key: found[key] for key in MEASURES if key in found}
