"""A comparison from the run folders to its numbers."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from mentor import __version__
from mentor.comparing.budget import Budget, make_budget, ratios, unfairness
from mentor.comparing.course import load_snapshot, snapshots
from mentor.comparing.measuring import (
    Measured,
    Report,
    Yardstick,
    load,
    measure,
    seconds_per_picture,
    with_sampling,
)
from mentor.comparing.pictures import Row, side_by_side
from mentor.comparing.runs import Trained, open_data, read_runs
from mentor.comparing.scores import Scores, beside, score_all
from mentor.comparing.sweeps import front, in_words, sweep_of
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError, check_output
from mentor.evaluation.benchmarks import Case, Contestant, load_contestant, parameters_by_part
from mentor.evaluation.config import EvaluationConfig
from mentor.evaluation.settings import read_settings

TASKS = ("reconstruct", "segment", "text_to_image", "recover", "subject")
TIMED = "subject"  # whose pictures a sweep is timed with
# Settings of an evaluation that a comparison sets itself, and the options that say how.
OWN = {"model": "runs", "data": "data", "output": "output", "seed": "seeds", "device": "device"}


@dataclass(frozen=True)
class Options:
    """What is compared, and how thoroughly.

    Attributes:
        runs: run folders, each as FOLDER or NAME=FOLDER.
        output: folder of the results.
        data: folder of the shards; None takes the runs'.
        seeds: each chooses other examples and draws other pictures.
        counts: examples of each task and seed.
        curve_counts: examples of each point of curves and plots; 0 leaves both out.
        pictures: prompts of each task whose pictures are shown.
        batch: pictures at once when time is taken.
        device: cpu or cuda.
        settings: of the evaluation, as `key=value`.
    """

    runs: Sequence[str]
    output: Path
    data: str | None = None
    seeds: Sequence[int] = (0, 1, 2)
    counts: int = 64
    curve_counts: int = 32
    pictures: int = 6
    batch: int = 16
    device: str = "cpu"
    settings: Sequence[str] = ()


@dataclass(frozen=True)
class CoursePoint:
    """What a run was worth after so many seconds of compute."""

    seconds: float
    label: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class SweepPoint:
    """What a way of drawing is worth, and seconds a picture; `refused` says why it could not be tried."""

    changes: Mapping[str, Any]
    seconds: float
    metrics: Mapping[str, float]
    refused: str = ""

    @property
    def label(self) -> str:
        """The changes in words."""
        return in_words(self.changes)


@dataclass(frozen=True)
class Comparison:
    """All that was found; lists have one entry a run, in order.

    Attributes:
        names: of the runs.
        budgets: what they cost.
        warnings: what is not fair.
        scores: of every measure.
        beside: means of the first run's metrics, for floors, ceilings, chance and doing nothing.
        seconds: a picture of each task takes.
        courses: quality over training time.
        sweeps: quality over sampling time.
        rows: pictures side by side.
        settings: of the evaluations.
        facts: date, data, versions, seeds, numbers of examples.
    """

    names: list[str]
    budgets: list[Budget]
    warnings: list[str]
    scores: Scores
    beside: Mapping[str, float]
    seconds: list[dict[str, float]]
    courses: list[list[CoursePoint]]
    sweeps: list[list[SweepPoint]]
    rows: list[Row]
    settings: list[dict[str, Any]]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What has been read and found in order, before any work."""

    runs: list[Trained]
    shards: ShardSet
    configs: list[EvaluationConfig]


def make_plan(options: Options) -> Plan:
    """Runs, data and settings, all of which fit together.

    Raises:
        UserError: they do not, or an option is out of range.
    """
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise UserError(f"--seeds {' '.join(map(str, options.seeds))}: give one or more different numbers")
    for name, least in (("counts", 2), ("curve_counts", 0), ("pictures", 0), ("batch", 1)):
        if getattr(options, name) < least:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {getattr(options, name)} must be {least} or more")
    for setting in options.settings:
        name = setting.partition("=")[0]
        if name in OWN:
            raise UserError(f"{setting}: a comparison sets {name} itself; use --{OWN[name]}")
    runs = read_runs(options.runs)
    shards = open_data(runs, options.data)
    configs = [read_config_of(run, shards, options) for run in runs]
    check_output(options.output)
    return Plan(runs, shards, configs)


def read_config_of(run: Trained, shards: ShardSet, options: Options) -> EvaluationConfig:
    """The settings that a run is evaluated with; how it draws follows from what it is.

    Raises:
        UserError: a setting is unknown or wrong.
    """
    counts = [f"counts.{task}={options.counts}" for task in ("tokenizer", *TASKS)]
    folders = [f"model={run.last.release_folder}", f"data={shards.root}", f"output={options.output}"]
    own = [f"seed={options.seeds[0]}", f"device={options.device}"]
    return read_settings([*counts, *options.settings, *own, *folders])


def work_of(plan: Plan, options: Options) -> int:
    """How many times `compare` will report."""
    curves = 0
    if options.curve_counts:
        curves = sum(len(snapshots(run)) + len(sweep_of(run.head)) for run in plan.runs)
    return len(plan.runs) * (len(options.seeds) + 1) + curves


def count_budgets(plan: Plan) -> list[Budget]:
    """What each run cost."""
    return [
        make_budget(run, parameters_by_part(load_contestant(run.last.release_folder, "cpu", config.adapters)))
        for run, config in zip(plan.runs, plan.configs, strict=True)
    ]


def compare(plan: Plan, budgets: list[Budget], options: Options, command: str, report: Report) -> Comparison:
    """Every number and picture; `report` is told what was done each time that something was.

    Raises:
        UserError: a checkpoint or a shard is damaged, or a task has no usable record.
    """
    measured: list[list[Measured]] = []
    cases: list[dict[str, list[Case]]] = []
    seconds: list[dict[str, float]] = []
    sweeps: list[list[SweepPoint]] = []
    courses: list[list[CoursePoint]] = []
    yardstick = Yardstick(plan.shards, plan.configs[0], options.curve_counts, plan.runs[0].image_size)
    for run, config in zip(plan.runs, plan.configs, strict=True):
        contestant = load(run.last.release_folder, config)
        found, shown = measure_seeds(run, contestant, plan.shards, config, options, report)
        measured.append(found)
        cases.append(shown)
        tasks = config.tasks
        seconds.append(
            {task: seconds_per_picture(contestant, task, plan.shards, config, options.batch) for task in tasks}
        )
        report(f"{run.name}: time of a picture")
        curves = bool(yardstick.tasks)
        sweeps.append(sweep(run, contestant, yardstick, plan, config, options, report) if curves else [])
        del contestant
        courses.append(course(run, yardstick, config, report) if curves else [])
    return Comparison(
        names=[run.name for run in plan.runs],
        budgets=budgets,
        warnings=unfairness(budgets),
        scores=score_all(measured),
        beside=beside(measured[0]),
        seconds=seconds,
        courses=courses,
        sweeps=sweeps,
        rows=side_by_side(cases),
        settings=[config.model_dump(mode="json") for config in plan.configs],
        facts=facts_of(plan, options, command),
    )


def measure_seeds(
    run: Trained, contestant: Contestant, shards: ShardSet, config: EvaluationConfig, options: Options, report: Report
) -> tuple[list[Measured], dict[str, list[Case]]]:
    """The evaluations of a run, one a seed, and the pictures of the first that are shown."""
    found, kept = [], {}
    for number, seed in enumerate(options.seeds):
        shown = options.pictures if not number else 0
        result, cases = measure(contestant, shards, config.model_copy(update={"seed": seed}), shown)
        found.append(result)
        kept = kept or cases
        report(f"{run.name}: seed {seed}")
    return found, kept


def sweep(
    run: Trained,
    contestant: Contestant,
    yardstick: Yardstick,
    plan: Plan,
    config: EvaluationConfig,
    options: Options,
    report: Report,
) -> list[SweepPoint]:
    """Quality and seconds a picture for every way of drawing of the run's kind."""
    points = []
    timed = TIMED if TIMED in yardstick.tasks else yardstick.tasks[0]
    for changes in sweep_of(run.head):
        try:
            tried = with_sampling(config, changes)
            metrics = yardstick.measure(contestant, tried)
            seconds = seconds_per_picture(contestant, timed, plan.shards, tried, options.batch)
            points.append(SweepPoint(changes, seconds, metrics))
        except (UserError, ValidationError) as error:
            points.append(SweepPoint(changes, math.nan, {}, " ".join(str(error).split())))
        report(f"{run.name}: {in_words(changes)}")
    return points


def course(run: Trained, yardstick: Yardstick, config: EvaluationConfig, report: Report) -> list[CoursePoint]:
    """Quality of all that is kept of a run."""
    points = []
    for snapshot in snapshots(run):
        metrics = yardstick.measure(load_snapshot(run, snapshot, config), config)
        points.append(CoursePoint(snapshot.seconds, snapshot.label, metrics))
        report(f"{run.name}: {snapshot.label}")
    return points


def facts_of(plan: Plan, options: Options, command: str) -> dict[str, Any]:
    """What one needs to know to judge the numbers, and to make them again."""
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "data": f"{plan.shards.root}, {len(plan.shards):,} held-out records",
        "fingerprint of the data": plan.shards.fingerprint,
        "seeds": list(options.seeds),
        "examples of each task and seed": options.counts,
        "examples of each point of curves": options.curve_counts,
        "pictures at once when time is taken": options.batch,
        "device": f"{options.device} ({name}, {torch.get_num_threads()} threads)",
        "versions": f"mentor {__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}",
    }


def best_points(comparison: Comparison, key: str) -> set[tuple[int, int]]:
    """(run, point) of the sweeps that none beats in both seconds and the measure."""
    places = [
        (number, index)
        for number, points in enumerate(comparison.sweeps)
        for index, point in enumerate(points)
        if key in point.metrics
    ]
    points = [
        (comparison.sweeps[run][index].seconds, comparison.sweeps[run][index].metrics[key]) for run, index in places
    ]
    return {places[index] for index in front(points)}


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers as plain containers; what is not a number is null."""
    named = dict(zip(comparison.names, range(len(comparison.names)), strict=True))
    content = {
        "facts": dict(comparison.facts),
        "runs": {name: asdict(comparison.budgets[place]) for name, place in named.items()},
        "ratios": {
            amount: dict(zip(comparison.names, values, strict=True))
            for amount, values in ratios(comparison.budgets).items()
        },
        "warnings": comparison.warnings,
        "measures": {
            key: {
                name: asdict(scores[place]) | {"clear_difference": scores[place].clear} for name, place in named.items()
            }
            for key, scores in comparison.scores.items()
        },
        "first_run_beside": dict(comparison.beside),
        "seconds_per_picture": {name: comparison.seconds[place] for name, place in named.items()},
        "quality_over_training": {
            name: [asdict(point) for point in comparison.courses[place]] for name, place in named.items()
        },
        "quality_over_sampling": {
            name: [
                asdict(point)
                | {"best_in": [key for key in point.metrics if (place, index) in best_points(comparison, key)]}
                for index, point in enumerate(comparison.sweeps[place])
            ]
            for name, place in named.items()
        },
        "settings": {name: comparison.settings[place] for name, place in named.items()},
    }
    return plain(content)


def plain(value: Any) -> Any:
    """The value with lists for tuples and None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
