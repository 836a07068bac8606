"""Measure a release on held-out data and write metrics.json, report.html and sample sheets."""

import io
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from mentor.config import flatten
from mentor.data.storage.shards import ShardSet
from mentor.errors import check_output, run_main
from mentor.evaluation.benchmarks import Contestant, Results, evaluate, load_contestant, parameters_by_part
from mentor.evaluation.config import EvaluationConfig
from mentor.evaluation.curves import find_runs, read_run
from mentor.evaluation.files import write_files
from mentor.evaluation.headlines import HEADLINES
from mentor.evaluation.pictures import contact_sheet
from mentor.evaluation.report import About, render_report, shown
from mentor.evaluation.settings import read_settings
from mentor.hub import spelled
from mentor.models.packing import choose_precision, pack


def write_results(results: Results, html: str, output: Path) -> None:
    """Write metrics.json, report.html and a sheet of samples for each task, each file whole or not at all.

    Raises:
        UserError: a file cannot be written.
    """
    files: dict[str | Path, bytes] = {"report.html": html.encode()}
    for task, cases in results.cases.items():
        buffer = io.BytesIO()
        contact_sheet(cases[:24]).save(buffer, "PNG")
        files[Path("samples") / f"{task}.png"] = buffer.getvalue()
    # The numbers last: where they are, all the rest is too.
    files["metrics.json"] = (json.dumps(results.metrics, indent=2) + "\n").encode()
    write_files(files, output, "output=DIR")


def describe(contestant: Contestant, shards: ShardSet, config: EvaluationConfig) -> dict[str, Any]:
    """What a report says of model, data and settings."""
    parts = parameters_by_part(contestant)
    facts: dict[str, Any] = {
        "model": spelled(contestant.folder),
        "fingerprint of the weights": contestant.config["fingerprint"],
        **{f"adapter {number}": place for number, place in enumerate(config.adapters, 1)},
        "picture size": f"{contestant.image_size} px",
        "tokens": f"{(contestant.image_size // contestant.image_tokenizer.factor) ** 2} of "
        f"{contestant.image_tokenizer.vocab_size:,} codes",
        **{f"parameters, {name}": f"{count:,}" for name, count in parts.items()},
        "data": f"{shards.root}, {len(shards):,} held-out records",
        "recipe": shards.manifest["recipe"].get("name", "?"),
        "fingerprint of the data": shards.fingerprint,
        "seed": config.seed,
        "precision of the generator's weights": choose_precision(config.precision, contestant.device),
    }
    if contestant.generator is not None:
        for task in config.tasks:
            changed = config.sampling_of(task).model_dump(exclude_none=True)
            facts[f"sampling, {task}"] = ", ".join(f"{name} {value}" for name, value in changed.items())
    training = contestant.config.get("training") or {}
    facts |= {f"training, {name}": value for name, value in flatten(training).items() if value not in (None, {}, [])}
    return facts


def show(results: Results, console: Console) -> None:
    """Print the leading numbers beside their floors, ceilings, chance and doing nothing."""
    table = Table(
        Column("measure", no_wrap=True, min_width=30),
        "value",
        "floor",
        "",
        "ceiling",
        "chance",
        "nothing",
        box=None,
        padding=(0, 1, 0, 0),  # the whole is no wider than 80 columns
    )
    for headline in HEADLINES:
        if headline.key not in results.metrics:
            continue
        passed = headline.passed(results.metrics)
        verdict = {True: "[green]reached[/]", False: "[red]not reached[/]", None: ""}[passed]
        beside = [shown(headline.beside(results.metrics, suffix)) for suffix in ("ceiling", "chance", "nothing")]
        value, least = shown(results.metrics[headline.key]), shown(headline.least(results.metrics))
        table.add_row(headline.key, value, least, verdict, *beside)
    console.print(table)


def run(config: EvaluationConfig, command: str) -> Results:
    """Measure, write and show; the results."""
    output = Path(config.output)
    contestant = load_contestant(Path(config.model), config.device, config.adapters)
    shards = ShardSet(Path(config.data), "heldout")
    folders = find_runs(contestant.folder) if config.runs is None else [Path(run) for run in config.runs]
    runs = [read_run(folder) for folder in folders]
    check_output(output)
    facts = describe(contestant, shards, config)
    if contestant.generator is not None:
        pack(contestant.generator, choose_precision(config.precision, contestant.device))
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def report(task: str, done: int, total: int) -> None:
            if task not in bars:
                bars[task] = progress.add_task(task, total=total)
            progress.update(bars[task], completed=done)

        results = evaluate(contestant, shards, config, report)
    about = About(
        title=f"mentor: {spelled(contestant.folder)}",
        command=command,
        facts=facts,
        runs=runs,
        shown=config.shown,
        extremes=config.extremes,
    )
    write_results(results, render_report(results, about), output)
    show(results, console)
    console.print(f"report: {output / 'report.html'}", highlight=False, soft_wrap=True)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    run(read_settings(given), shlex.join(["python", "-m", "mentor.evaluate", *given]))


if __name__ == "__main__":
    run_main(main)
