"""Trained generators of different kinds side by side: cost, quality, speed and pictures on one page.

    python tools/compare.py --runs RUN RUN ... [--output DIR] [--data DIR] [--seeds 0 1 2] [key=value ...]
    python tools/compare.py experiment=NAME [--recipe NAME] [--output DIR]

A RUN is the run folder of a finished training, or NAME=FOLDER. With an experiment all paths are trained first, by
public commands that are printed before they run. What is finished is kept: the same command goes on.
key=value are settings of the evaluation, such as counts.subject=32 or sampling.subject.guidance=2.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phases import TOOLS, Phase, Progress, in_words, run_phase
from rich.console import Console
from rich.table import Table

from mentor.config import config_folder, read_yaml
from mentor.errors import Arguments, UserError, run_main

NUMBERS = "compare.json"
ALL = "all"


@dataclass(frozen=True)
class Training:
    """One training of a path.

    Attributes:
        stage: a name in configs/stage, which is the run folder's name too.
        settings: what is said besides; a second training takes its model from the first.
        max_steps: updates, so that all paths take the same time; None leaves the experiment's.
        seconds: how long it takes on two cores, for the estimate of what is left.
    """

    stage: str
    settings: tuple[str, ...] = ()
    max_steps: int | None = None
    seconds: float = 300


@dataclass(frozen=True)
class Way:
    """A path from data to a model of one kind: its name, and its trainings, each from what the one before released."""

    name: str
    trainings: tuple[Training, ...]


# Updates by which all take about the same time on two cores, as measured where README's table is from. Two times are
# drawn for each continuous token in the place of four: its MLP is as large as the backbone here.
PATHS = (
    Way("ar", (Training("1", max_steps=360), Training("2", max_steps=360))),
    Way("diffusion", (Training("diffusion", max_steps=290), Training("diffusion_2", max_steps=290))),
    Way(
        "continuous",
        (Training("1", ("head=diffusion", "head.repeats=2"), max_steps=290), Training("2", max_steps=290)),
    ),
    Way(
        "masked",
        (Training("1", ("head=diffusion_masked", "head.repeats=2"), max_steps=290), Training("2", max_steps=290)),
    ),
)


def train_commands(way: Way, experiment: str) -> list[tuple[str, ...]]:
    """What stands after `python` for each training of a path."""
    folder = Path("runs") / experiment / way.name
    commands: list[tuple[str, ...]] = []
    before: Path | None = None
    for training in way.trainings:
        run = folder / training.stage
        command = ["-m", "mentor.train", f"stage={training.stage}", f"experiment={experiment}", f"run.dir={run}"]
        if before is not None:
            command.append(f"init_from={before / 'release'}")
        if training.max_steps is not None:
            command.append(f"trainer.max_steps={training.max_steps}")
        commands.append((*command, *training.settings))
        before = run
    return commands


def last_run(way: Way, experiment: str) -> str:
    """The run that is compared, with the path's name."""
    return f"{way.name}={Path('runs') / experiment / way.name / way.trainings[-1].stage}"


def make_phases(experiment: str, recipe: str, comparing: Sequence[str]) -> list[Phase]:
    """All commands in order; `comparing` is what the last one is told besides its runs."""
    shards = Path("data") / recipe
    make_shards = (str(TOOLS / "make_shards.py"), recipe, f"output={shards}")
    tokenizer = ("-m", "mentor.train", "stage=tokenizer", f"experiment={experiment}")
    phases = [Phase("shards", lambda: make_shards, 20), Phase("image tokenizer", lambda: tokenizer, 375)]
    for way in PATHS:
        for training, command in zip(way.trainings, train_commands(way, experiment), strict=True):
            phases.append(Phase(f"{way.name}, stage {training.stage}", lambda it=command: it, training.seconds))
    compare = (str(TOOLS / "compare.py"), *comparing, "--runs", *(last_run(way, experiment) for way in PATHS))
    return [*phases, Phase("comparison", lambda: compare, 300)]


def read_options() -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: it says too much or too little.
    """
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="run folders, each as FOLDER or NAME=FOLDER")
    parser.add_argument("--experiment", metavar="NAME", help="train all paths of configs/experiment/NAME first")
    parser.add_argument("--recipe", default="emoji", metavar="NAME", help="of an experiment's data (default: emoji)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: runs/EXPERIMENT/comparison")
    parser.add_argument("--data", metavar="DIR", help="folder of the shards (default: the runs')")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--counts", type=int, default=64, metavar="N", help="examples of each task and seed")
    parser.add_argument("--curve-counts", type=int, default=32, metavar="N", help="of each point of curves; 0 for none")
    parser.add_argument("--pictures", type=int, default=6, metavar="N", help="prompts of each task that are shown")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="pictures at once when time is taken")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the evaluation")
    # argparse would take what follows --runs for runs, wherever it ends.
    settings = [argument for argument in sys.argv[1:] if is_setting(argument)]
    options = parser.parse_intermixed_args([argument for argument in sys.argv[1:] if argument not in settings])
    options.settings += settings
    for setting in [setting for setting in options.settings if setting.startswith("experiment=")]:
        options.settings.remove(setting)
        options.experiment = setting.partition("=")[2]
    if bool(options.runs) == bool(options.experiment):
        raise UserError("say either --runs with finished trainings, or experiment=NAME to train all paths first")
    if options.output is None:
        if not options.experiment:
            raise UserError("say --output DIR, where the page goes")
        options.output = Path("runs") / options.experiment / "comparison"
    return options


def is_setting(argument: str) -> bool:
    """Whether an argument sets something of the evaluation, and is not a run with its name."""
    name, equals, value = argument.partition("=")
    known = {"experiment", "sampling", *read_yaml(config_folder() / "evaluate.yaml")}
    return bool(equals) and name.partition(".")[0] in known and not Path(value).is_dir()


def told(options: argparse.Namespace) -> list[str]:
    """The options of a comparison as a command line has them, but for its runs."""
    words = [*options.settings, "--output", str(options.output), "--seeds", *map(str, options.seeds)]
    for name in ("counts", "curve_counts", "pictures", "batch", "device", "data"):
        if getattr(options, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return words


def walk(options: argparse.Namespace) -> None:
    """Train all paths and compare them, as far as that is not done yet."""
    console = Console(soft_wrap=True)
    progress = Progress(Path("runs") / options.experiment / "compare.json")
    comparing = told(options)
    done = f"{ALL}: {shlex.join(comparing)}"
    if done in progress.finished and (options.output / NUMBERS).is_file():
        console.print(f"Finished earlier; to start again remove runs/{options.experiment}.", highlight=False)
        print((options.output / "compare.md").read_text(encoding="utf-8"))
        show_times(console, progress)
        return
    phases = make_phases(options.experiment, options.recipe, comparing)
    for number, phase in enumerate(phases, start=1):
        left = in_words(progress.left(phases))
        console.print(f"\n[bold]{number}/{len(phases)} {phase.title}[/]: about {left} left in all", highlight=False)
        run_phase(phase, progress, console)
    progress.finish(done)
    numbers = json.loads((options.output / NUMBERS).read_text(encoding="utf-8"))
    for warning in numbers["warnings"]:
        console.print(warning, style="yellow", highlight=False, markup=False)
    show_times(console, progress)
    console.print(f"comparison: {options.output / 'compare.html'}", highlight=False, markup=False)


def show_times(console: Console, progress: Progress) -> None:
    """Print how long each phase took, and all of them."""
    table = Table("phase", "time", box=None)
    for title, seconds in progress.seconds.items():
        table.add_row(title, in_words(seconds))
    table.add_row("in all", in_words(sum(progress.seconds.values())), style="bold")
    console.print(table)


def main() -> None:
    """Compare runs, or train all paths of an experiment and compare those."""
    options = read_options()
    if options.experiment:
        walk(options)
        return
    # Imported here, so that a finished experiment says so without waiting for torch.
    from mentor.comparing.command import run
    from mentor.comparing.comparison import Options

    names = ("runs", "output", "data", "seeds", "counts", "curve_counts", "pictures", "batch", "device", "settings")
    command = shlex.join(["python", "tools/compare.py", *sys.argv[1:]])
    run(Options(**{name: getattr(options, name) for name in names}), command)


if __name__ == "__main__":
    run_main(main)
