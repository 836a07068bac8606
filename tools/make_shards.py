"""Make the shards of a recipe.

python tools/make_shards.py RECIPE [output=DIR workers=N limit=N key=value ...]
"""

import os
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mentor.data.building import build_dataset
from mentor.data.recipes import COMMAND_KEYS, load_recipe
from mentor.errors import UserError, run_main

RECIPES = Path(__file__).resolve().parent.parent / "data_recipes"
USAGE = f"{__doc__}\n\nSettings of a recipe are overridden by dotted keys, such as scenes.train=100. Recipes:"


def main() -> None:
    """Make the shards, or say that they are there."""
    # A polite kill is treated like Ctrl-C: shards in progress are dropped, the next run goes on.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
        print(USAGE, ", ".join(names))
        if not arguments:
            raise UserError("no recipe given: say python tools/make_shards.py RECIPE")
        return
    name, overrides = arguments[0], arguments[1:]
    own = {key: text for key, _, text in (argument.partition("=") for argument in overrides) if key in COMMAND_KEYS}
    loaded = load_recipe(name, [argument for argument in overrides if argument.partition("=")[0] not in own], RECIPES)
    output = Path(own.get("output") or f"data/{loaded.recipe.name}")
    build = None
    columns = (TextColumn(f"shards of {loaded.recipe.name}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("", total=None)
        build = build_dataset(
            loaded, output, _workers(own), lambda done, total: progress.update(bar, completed=done, total=total)
        )
    manifest = build.manifest
    counts = " and ".join(f"{count} {split}" for split, count in manifest["samples"].items())
    size = sum(row["bytes"] for row in manifest["files"]) / 1e6
    verb = "already holds" if build.found else "now holds"
    shards = f"{len(manifest['files'])} shards ({size:.0f} MB, fingerprint {manifest['fingerprint'][:12]})"
    print(f"{output} {verb} {counts} samples in {shards}")


def _workers(own: dict[str, str]) -> int:
    text = own.get("workers", str(min(os.cpu_count() or 1, 8)))
    if not text.isdigit():
        raise UserError(f"workers={text} is not a number: say workers=2, for example")
    return int(text)


if __name__ == "__main__":
    run_main(main)
