"""Make the shards of a recipe, and look after data sets.

python tools/make_shards.py RECIPE [output=DIR workers=N limit=N key=value ...] [--engine local|ray|ray:ADDRESS]
                            [--num-parts N --part I]
python tools/make_shards.py merge DIR                   a data set of the parts made with --num-parts and --part
python tools/make_shards.py verify DIR [--deep]         names every damaged file and sample
python tools/make_shards.py inspect DIR [--output DIR --num N --seed S]   a page of samples and statistics
python tools/make_shards.py index TARS... [output=DIR key=value ...]      tars of others, indexed where they lie
python tools/make_shards.py codes ...                   image codes of a data set (--help explains)
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mentor.data.making.building import Build, Part, build_dataset, merge
from mentor.data.making.engines import open_engine
from mentor.data.making.overrides import COMMAND_KEYS
from mentor.data.making.progress import ProgressReport
from mentor.data.making.recipes import TarRecipe, list_recipes, load_recipe, read_recipe
from mentor.errors import Arguments, UserError, run_main

RECIPES = Path(__file__).resolve().parent.parent / "data_recipes"
EXPLAINED = """
RECIPE is the path of a YAML file or one of the names below. Its settings are overridden by dotted keys such as
sources.0.captions=none or heldout.share=0.1. The bytes that are written do not depend on workers, engine and parts, and
the same command goes on where it was interrupted.

Recipes:"""


def main() -> None:
    """Do what the command line asks for."""
    # A polite kill is treated like Ctrl-C: shards in progress are dropped, the next run goes on.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files are shown that the terminal may have no letters for.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        recipes = list_recipes(RECIPES)
        width = max(map(len, recipes))
        print(f"{__doc__}{EXPLAINED}", *(f"  {name:{width}}  {line}" for name, line in recipes.items()), sep="\n")
        if not arguments:
            raise UserError("no recipe given: say python tools/make_shards.py RECIPE")
        return
    COMMANDS.get(arguments[0], lambda rest: make([arguments[0], *rest]))(arguments[1:])


def make(arguments: Sequence[str]) -> None:
    """Make the shards of a recipe, or a part of them, or say that they are there."""
    parser = Arguments(prog="make_shards.py RECIPE", usage="%(prog)s [key=value ...] [options]")
    parser.add_argument("recipe", help="a name in data_recipes, or the path of a YAML file")
    parser.add_argument("settings", nargs="*", help="output=DIR, workers=N, limit=N, and settings of the recipe")
    parser.add_argument("--engine", default="local", help="local, ray or ray:ADDRESS (default: local)")
    parser.add_argument("--num-parts", type=int, help="divide the work into so many parts")
    parser.add_argument("--part", type=int, help="which part to make, from 0; `merge` comes last")
    options = parser.parse_intermixed_args(arguments)
    if (options.part is None) != (options.num_parts is None):
        raise UserError("--num-parts N and --part I belong together: say both")
    part = None if options.part is None else Part(options.part, options.num_parts)
    own = {key: text for key, _, text in (one.partition("=") for one in options.settings) if key in COMMAND_KEYS}
    settings = [one for one in options.settings if one.partition("=")[0] not in own]
    loaded = load_recipe(options.recipe, settings, RECIPES)
    output = Path(own.get("output") or f"data/{loaded.recipe.name}").expanduser()
    if isinstance(loaded.recipe, TarRecipe):
        if part is not None:
            raise UserError("tars are indexed in one go: leave --num-parts and --part away and say workers=N")
        _index_tars(loaded.recipe, output, _workers(own), options.engine)
        return
    with ProgressReport(loaded.recipe.name) as progress:
        build = build_dataset(loaded, output, _workers(own), progress.report, options.engine, part)
    if part is None:
        _tell(output, build)
    else:
        print(f"part {part.index} of {part.count} of {output} is finished: {build.shards} shards")
        print(f"when all are: python tools/make_shards.py merge {output}")


def _merge(arguments: Sequence[str]) -> None:
    parser = Arguments(prog="make_shards.py merge", description="A data set of the parts that were made of it.")
    parser.add_argument("output", type=Path, metavar="DIR", help="the folder of the parts")
    output = parser.parse_args(arguments).output
    _tell(output, merge(output))


def _verify(arguments: Sequence[str]) -> None:
    from mentor.data.storage.verifying import fault_lines, verdict, verify

    parser = Arguments(prog="make_shards.py verify", description="Names every damaged file and sample; code 1 if any.")
    parser.add_argument("data", metavar="DIR", help="folder or URL with manifest.json")
    parser.add_argument("--deep", action="store_true", help="decode every sample too")
    options = parser.parse_args(arguments)
    with ProgressReport(options.data) as progress:
        faults = verify(options.data, options.deep, lambda done, total: _report_bytes(progress, "checked", done, total))
    print(*fault_lines(faults), verdict(options.data, faults), sep="\n")
    if faults:
        sys.exit(1)


def _index(arguments: Sequence[str]) -> None:
    keys = [*COMMAND_KEYS, *(key for key in TarRecipe.model_fields if key not in ("kind", "paths"))]
    parser = Arguments(prog="make_shards.py index", usage="%(prog)s TARS... [output=DIR workers=N key=value ...]")
    parser.add_argument("tars", nargs="+", help=f"tars, folders of tars, URLs; settings: {', '.join(keys)}")
    parser.add_argument("--engine", default="local", help="local, ray or ray:ADDRESS (default: local)")
    options = parser.parse_intermixed_args(arguments)
    settings = [one for one in options.tars if one.partition("=")[0].partition(".")[0] in keys and "=" in one]
    own = {key: text for key, _, text in (one.partition("=") for one in settings) if key in COMMAND_KEYS}
    paths = [one for one in options.tars if one not in settings]
    data = {"kind": "tars", "name": "tars", "paths": paths}
    recipe = read_recipe(data, [one for one in settings if one.partition("=")[0] not in own])
    output = Path(own["output"]).expanduser() if "output" in own else None
    _index_tars(recipe, output, _workers(own), options.engine)


def _index_tars(recipe: TarRecipe, output: Path | None, workers: int, engine: str) -> None:
    from mentor.data.making.indexing import index_dataset

    notes: list[str] = []
    with ProgressReport(recipe.name) as progress, open_engine(engine, workers) as opened:
        indexed = index_dataset(
            recipe.paths,
            recipe.fields,
            recipe.heldout,
            output,
            skip_damaged=recipe.skip_damaged,
            limits=recipe.limits,
            engine=opened,
            name=recipe.name,
            description=recipe.description,
            licence=recipe.licence,
            report=lambda done, total: _report_bytes(progress, "indexed", done, total),
            log=notes.append,
        )
    _tell(indexed.output, Build(indexed.manifest, indexed.found))
    print(*notes, sep="\n", end="\n" if notes else "")


def _report_bytes(progress: ProgressReport, stage: str, done: int, total: int) -> None:
    progress.report(f"{stage}, in MB", done // 1_000_000, total // 1_000_000)


def _inspect(arguments: Sequence[str]) -> None:
    from mentor.data.inspecting.inspection import write_inspection

    parser = Arguments(prog="make_shards.py inspect", description="A page of statistics, records and examples.")
    parser.add_argument("data", type=Path, metavar="DIR", help="folder with manifest.json")
    parser.add_argument("--output", type=Path, help="where the files go (default: DIR/inspection)")
    parser.add_argument("--num", type=int, default=12, help="records of a split, examples of a task (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="which records, and every choice of the tasks (default: 0)")
    options = parser.parse_args(arguments)
    print(write_inspection(options.data, options.output or options.data / "inspection", options.num, options.seed))


def _codes(arguments: Sequence[str]) -> None:
    from mentor.training.precompute import main as precompute

    precompute(list(arguments))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "merge": _merge,
    "verify": _verify,
    "inspect": _inspect,
    "index": _index,
    "codes": _codes,
}


def _tell(output: Path, build: Build) -> None:
    """Say what there is now, and what was left out."""
    manifest = build.manifest
    counts = " and ".join(f"{count} {split}" for split, count in manifest["samples"].items())
    size = sum(row["bytes"] for row in manifest["files"]) / 1e6
    verb = "already holds" if build.found else "now holds"
    shards = f"{len(manifest['files'])} shards ({size:.0f} MB, fingerprint {manifest['fingerprint'][:12]})"
    print(f"{output} {verb} {counts} samples in {shards}")
    dropped = manifest.get("dropped") or {}
    if dropped:
        print("left out or lost on the way:")
    for reason, count in sorted(dropped.items(), key=lambda row: (-row[1], row[0])):
        example = build.examples.get(reason, "")
        print(f"{count:9,}  {reason}" + (f"  ({example})" if example else ""))


def _workers(own: dict[str, str]) -> int:
    text = own.get("workers", str(min(os.cpu_count() or 1, 8)))
    if not text.isdigit():
        raise UserError(f"workers={text} is not a number: say workers=2, for example")
    return int(text)


if __name__ == "__main__":
    run_main(main)
