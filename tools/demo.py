"""The whole path at demo size: shards, image tokenizer, stage 1, stage 2, pictures, evaluation, report.

    python tools/demo.py [--experiment NAME] [--recipe NAME] [key=value ...]

Every phase is one of the public commands and is printed before it runs. What is finished is kept: after an
interruption the same command goes on where it was, and when all is done it says so at once.
"""

import argparse
import json
from pathlib import Path

from phases import TOOLS, Phase, Progress, in_words, run_phase, write_json
from rich.console import Console
from rich.table import Table

from mentor.errors import Arguments, UserError, run_main
from mentor.evaluation.headlines import HEADLINES

ALL = "all"


def make_phases(experiment: str, recipe: str, settings: list[str], progress: Progress) -> list[Phase]:
    """All commands in order; `settings` are the recipe's."""
    shards, run = Path("data") / recipe, Path("runs") / experiment
    release, pictures = run / "2" / "release", run / "pictures"

    def train(stage: str) -> tuple[str, ...]:
        return "-m", "mentor.train", f"stage={stage}", f"experiment={experiment}"

    def draw() -> tuple[str, ...]:
        prompt = save_reference(shards, pictures / "reference.png")
        files = ("--image", str(pictures / "reference.png"), "--model", str(release), "--output", str(pictures))
        settings = ("--num-images", "4", "--guidance", "2", "--temperature", "0.7", "--seed", "0", "--grid")
        return "-m", "mentor.generate", prompt, *files, *settings, "--overwrite"

    def evaluate() -> tuple[str, ...]:
        spent = f"seconds_before={sum(progress.seconds.values()):.0f}"
        return "-m", "mentor.evaluate", f"model={release}", f"data={shards}", f"output={run}", spent

    return [
        Phase("shards", lambda: (str(TOOLS / "make_shards.py"), recipe, f"output={shards}", *settings), 20),
        Phase("image tokenizer", lambda: train("tokenizer"), 375),
        Phase("stage 1", lambda: train("1"), 380),
        Phase("stage 2", lambda: train("2"), 425),
        Phase("pictures", draw, 5),
        Phase("evaluation", evaluate, 45),
    ]


def save_reference(shards: Path, path: Path) -> str:
    """Write a picture of a subject that training has never seen to `path`; a prompt that asks for it in another scene.

    Raises:
        UserError: no held-out record of one object has another view of it, or the picture cannot be written.
    """
    # Imported here, so that a finished demo says so without waiting for torch.
    from PIL import Image

    from mentor.data.storage.shards import ShardSet

    heldout = ShardSet(shards, "heldout")
    for shard, count in enumerate(heldout.counts):
        for position in range(count):
            record = heldout.record(shard, position)
            if record.views and len(record.objects) == 1:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(record.views[0].image).save(path)
                return f"The {record.objects[0].name} in <image>.\n {record.captions[0]}"
    raise UserError(f"no held-out record in {shards} has a second view of its subject: make the shards anew")


def show_numbers(console: Console, metrics: dict[str, float]) -> None:
    """Print the leading numbers beside the least they should be."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for headline in (each for each in HEADLINES if each.key in metrics and each.unit != "s"):
        least, passed = headline.least(metrics), headline.passed(metrics)
        verdict = {True: "[green]reached[/]", False: "[red]not reached[/]", None: ""}[passed]
        floor = "" if least is None else f"at least {least:.2f}"
        table.add_row(headline.key, f"{metrics[headline.key]:.3f}", floor, verdict, headline.title)
    console.print(table)


def show_places(console: Console, run: Path, seconds: float) -> None:
    """Print how long it took and where everything is."""
    console.print(f"[bold]done[/] in {in_words(seconds)} of work", highlight=False)
    release = run / "2" / "release"
    for what, path in (("report", run / "report.html"), ("metrics", run / "metrics.json"), ("model", release)):
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run what is not finished yet, then show the results."""
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--experiment", default="demo", metavar="NAME", help="a name in configs/experiment (default: demo)"
    )
    parser.add_argument("--recipe", default="emoji", metavar="NAME", help="a name in data_recipes (default: emoji)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the recipe, such as limit=300")
    options = parser.parse_args()
    console = Console(soft_wrap=True)
    run = Path("runs") / options.experiment
    progress = Progress(run / "demo.json")
    results = [run / "metrics.json", run / "report.html"]
    if ALL in progress.finished and all(path.is_file() for path in results):
        console.print(f"Finished earlier; to start again remove {run} and data/{options.recipe}.", highlight=False)
        show_numbers(console, json.loads(results[0].read_text(encoding="utf-8")))
        show_places(console, run, sum(progress.seconds.values()))
        return
    phases = make_phases(options.experiment, options.recipe, options.settings, progress)
    for number, phase in enumerate(phases, start=1):
        left = in_words(progress.left(phases))
        console.print(f"\n[bold]{number}/{len(phases)} {phase.title}[/]: about {left} left in all", highlight=False)
        run_phase(phase, progress, console)
    metrics = json.loads(results[0].read_text(encoding="utf-8"))
    write_json(results[0], metrics | {"seconds/total": round(sum(progress.seconds.values()), 1)})
    progress.finish(ALL)
    console.print()
    show_places(console, run, sum(progress.seconds.values()))


if __name__ == "__main__":
    run_main(main)
