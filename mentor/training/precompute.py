"""`make_shards.py codes`: the examples of a data set as packed image codes, so that training never encodes a picture.

A shard of codes covers some shards of the data set, with all tasks and variants; it follows from these and the settings
alone. Held-out examples are those that validation makes of pictures, so that its numbers can be compared.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mentor.conditioning import NativeConfig
from mentor.config import Config, validate
from mentor.data.codes import KIND, CodeSet
from mentor.data.packs import CodeLayout
from mentor.data.settings import DataConfig
from mentor.data.storage.files import DataFiles
from mentor.data.storage.manifest import SPLITS, begin, find, finish, identity, lock, remove_partials
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.writing import Shard, load_shard, write_shard
from mentor.data.tasks import TASKS
from mentor.errors import Arguments, UserError, check_output
from mentor.models.checkpoint import code_spec, load_generator, load_image_tokenizer, read_config, weights_fingerprint
from mentor.tokenizers import ImageTokenizer
from mentor.training.code_packs import RECORDS, Encoder, Plan, Tally, make_examples, packs
from mentor.training.fitting import reads_features

SETTINGS = ("image_only", "recover_min_scale", "recover_distort", "recover_distractors")


class CodesConfig(Config):
    """What to make codes of, and how.

    Attributes:
        data: folder or URL of the data set of pictures.
        tokenizer: release folder with the image tokenizer.
        output: folder of the codes.
        tasks: empty: all that the data set's records can serve.
        variants: how often each training record is made an example of each task, with other random choices.
        seed: of those choices.
        image_size: side of the pictures in pixels; 0 takes the release's.
        features: whether to store the encoder's features of the references.
        examples: the settings of training that decide what examples look like.
        batch_size: examples that are encoded together.
        device: that the image tokenizer runs on.
        workers: processes that make examples; 0 makes them in this one.
        max_bad: share of examples that may be impossible to make; each is counted.
        records: a shard covers about so many.
    """

    data: str
    tokenizer: str
    output: str
    tasks: tuple[str, ...] = ()
    variants: int = Field(default=1, gt=0)
    seed: int = 0
    image_size: int = Field(default=0, ge=0)
    features: bool = True
    examples: DataConfig
    batch_size: int = Field(default=64, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    workers: int = Field(default=0, ge=0)
    max_bad: float = Field(default=0.0, ge=0, lt=1)
    records: int = Field(default=RECORDS, gt=0)

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if task not in TASKS:
                raise ValueError(f"unknown task {task!r}: known are {', '.join(TASKS)}")
        return tuple(task for task in TASKS if task in tasks)


@dataclass(frozen=True)
class MadeCodes:
    """What `make_codes` did: the manifest, the layout, examples of each split, and whether all was there before."""

    manifest: dict[str, Any]
    layout: CodeLayout
    examples: dict[str, int]
    found: bool


def make_codes(config: CodesConfig, report: Callable[[int, int], None] = lambda done, total: None) -> MadeCodes:
    """Make the codes of a data set; an interrupted run goes on with the shards that are missing.

    Args:
        config: what to make.
        report: called with the examples done and the examples in all.

    Raises:
        UserError: the data set or the tokenizer cannot be read or do not fit, an example cannot be made, or the folder
            holds something else or cannot be written.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: this machine has none that torch can use; say --device cpu")
    output = Path(config.output)
    tokenizer = load_image_tokenizer(Path(config.tokenizer))
    plan = Plan(_open(config.data), config.tasks, config.variants, config.batch_size, config.records)
    layout = _layout(config, tokenizer, plan.tasks)
    recipe = {"name": "codes", "records": config.records, "examples": layout.examples}
    what = identity(recipe, {"data": plan.fingerprint}, KIND, layout.model_dump(mode="json"))
    manifest = find(output, what)
    if manifest is not None:
        return _made(config, manifest, layout, found=True)
    with lock(output):
        begin(output, what)
        remove_partials(output)
        shards = {unit: load_shard(output, unit.path, unit.split) for unit in plan.units()}
        tally = Tally(config.max_bad, plan.total, report)
        for shard in shards.values():
            if shard is not None:
                tally.add(_examples(shard, layout), shard.dropped)
        missing = [unit for unit, shard in shards.items() if shard is None]
        encoder = Encoder(tokenizer.to(config.device), layout)
        made = make_examples(plan, layout, missing, config.workers)
        for unit in missing:
            samples = packs(unit, plan, made, encoder, tally)
            shards[unit] = write_shard(output, unit.path, unit.split, samples, layout.members)
        finished = [shard for shard in shards.values() if shard is not None]
        return _made(config, finish(output, what, finished), layout, found=False)


def main(arguments: list[str]) -> None:
    """Make the codes that a command line asks for, or say that they are there.

    Raises:
        UserError: see `make_codes`.
    """
    config = parse(arguments)
    check_output(Path(config.output))
    columns = (TextColumn("codes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("", total=None)
        made = make_codes(config, lambda done, total: progress.update(bar, completed=done, total=total))
    manifest, layout = made.manifest, made.layout
    counts = " and ".join(f"{count} {split}" for split, count in made.examples.items())
    size = sum(row["bytes"] for row in manifest["files"]) / 1e6
    dropped = ", ".join(f"{count} {reason}" for reason, count in manifest["dropped"].items())
    print(
        f"{config.output} {'already holds' if made.found else 'now holds'} {counts} examples of "
        f"{', '.join(layout.tasks)} ({size:.0f} MB, {'with' if layout.feature_width else 'without'} features"
        + (f", left out: {dropped}" if dropped else "")
        + f") as codes of image tokenizer {layout.tokenizer}: train on them with data.root={config.output}"
    )


def parse(arguments: list[str]) -> CodesConfig:
    """What a command line asks for.

    Raises:
        UserError: it cannot be understood.
    """
    parser = Arguments(prog="make_shards.py codes", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", help="data set of pictures: a folder or URL with manifest.json")
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"as in training: {', '.join(SETTINGS)}")
    parser.add_argument("--tokenizer", required=True, help="release folder with the image tokenizer")
    parser.add_argument("--output", required=True, help="folder of the codes")
    parser.add_argument("--tasks", default="", help="separated by commas; all that the records can serve")
    parser.add_argument("--variants", default=1, help="examples of each task that a training record becomes; 1")
    parser.add_argument("--seed", default=0, help="of the examples' random choices; 0")
    parser.add_argument("--image-size", default=0, help="side of the pictures in pixels; the tokenizer's")
    parser.add_argument(
        "--features",
        default="auto",
        choices=("auto", "yes", "no"),
        help="store the encoder's features of references; auto: if the release's generator reads them,\n"
        "or, where the release is an image tokenizer alone, if a conditioner does by default",
    )
    parser.add_argument("--batch-size", default=64, help="examples that are encoded together; 64")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--workers", default=0, help="processes that make examples; 0")
    parser.add_argument("--max-bad", default=0.0, help="share of examples that may be impossible to make; 0")
    given = vars(parser.parse_intermixed_args(arguments))
    settings: dict[str, Any] = {}
    for setting in given.pop("settings"):
        key, equals, value = setting.partition("=")
        if not equals or key not in SETTINGS:
            raise UserError(f"cannot read {setting!r}: settings are key=value with {', '.join(SETTINGS)}")
        settings[key] = value
    tasks = tuple(filter(None, (task.strip() for task in given.pop("tasks").split(","))))
    examples = validate(DataConfig, {"root": given["data"], "mixture": {"reconstruct": 1}, "batch_size": 1, **settings})
    features = _wants_features(given.pop("features"), Path(given["tokenizer"]))
    return validate(CodesConfig, {**given, "tasks": tasks, "features": features, "examples": examples})


def _wants_features(asked: str, release: Path) -> bool:
    if asked != "auto":
        return asked == "yes"
    if read_config(release)["kind"] == "generator":
        return reads_features(load_generator(release).generator.config.conditioner)
    return reads_features(NativeConfig())


def _open(data: str) -> dict[str, ShardSet]:
    """The splits of a data set that have samples."""
    samples = DataFiles(data).manifest["samples"]
    return {split: ShardSet(data, split) for split in SPLITS if samples.get(split)}


def _layout(config: CodesConfig, tokenizer: ImageTokenizer, tasks: tuple[str, ...]) -> CodeLayout:
    size = config.image_size or read_config(Path(config.tokenizer))["image_size"]
    spec = code_spec(tokenizer, size)
    return CodeLayout(
        tokenizer=weights_fingerprint(tokenizer),
        image_size=size,
        grid=spec.grid,
        vocabulary=spec.vocab_size,
        feature_width=spec.feature_width if config.features else 0,
        tasks=tasks,
        variants=config.variants,
        seed=config.seed,
        **{name: getattr(config.examples, name) for name in SETTINGS},
    )


def _made(config: CodesConfig, manifest: dict[str, Any], layout: CodeLayout, found: bool) -> MadeCodes:
    examples = {split: len(CodeSet(config.output, split)) for split, count in manifest["samples"].items() if count}
    return MadeCodes(manifest, layout, examples, found)


def _examples(shard: Shard, layout: CodeLayout) -> int:
    """How many examples a shard of codes holds."""
    stored = shard.index.arrays["places"][:, layout.members.index("targets.npy"), 1]
    sizes = layout.sizes(stored)
    assert sizes is not None
    return int(sizes.sum())
