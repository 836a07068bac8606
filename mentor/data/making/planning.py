"""What a build will do, before it does anything: its identity, its shards, and what goes into each."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mentor.data.making.composing import Composer
from mentor.data.making.engines import Work
from mentor.data.making.recipes import LoadedRecipe, RecordRecipe, SceneRecipe, placeless
from mentor.data.making.splits import is_held_out
from mentor.data.making.work import Job, Made, RecordWork, SceneWork, case
from mentor.data.records import Dropped
from mentor.data.seeds import seed_from
from mentor.data.sources import SourceConfig, describe_inputs, read_items
from mentor.data.sources.archives import digest_inputs
from mentor.data.sources.items import Item
from mentor.data.storage.encoding import Layout
from mentor.data.storage.manifest import SPLITS, identity, shard_path
from mentor.errors import UserError

# Called with the name of a stage, what is done and what is to be done; None when that is not known.
Report = Callable[[str, int, int | None], None]
READING = "reading the source"
_NOW_AND_THEN = 256


@dataclass(frozen=True)
class Plan:
    """A build that is about to begin.

    Attributes:
        layout: of its samples.
        jobs: its shards, train before held-out.
        work: what makes them.
        digest: changes when anything goes into another shard.
        dropped: what the source itself left out, by reason.
        examples: for each reason the first case.
    """

    layout: Layout
    jobs: tuple[Job, ...]
    work: Work[Job, Made]
    digest: str
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


def describe_inputs_of(loaded: LoadedRecipe[Any]) -> dict[str, str]:
    """What identifies all that a recipe reads: digests by name.

    Raises:
        UserError: it cannot be read.
    """
    recipe = loaded.recipe
    if isinstance(recipe, SceneRecipe):
        return digest_inputs([one for one in (recipe.subjects, recipe.photographs) if one], loaded.folder)
    inputs: dict[str, str] = {}
    for number, source in enumerate(recipe.sources):
        prefix = f"{number}: " if len(recipe.sources) > 1 else ""
        for name, digest in describe_inputs(source, loaded.folder).items():
            inputs[prefix + _placeless_name(name, source)] = digest
    return inputs


def describe_build(
    recipe: SceneRecipe | RecordRecipe, inputs: Mapping[str, str], layout: Layout | None
) -> dict[str, Any]:
    """The identity of the data set that a recipe makes; without a layout as far as it is known before that."""
    what = identity(recipe.resolved(), inputs, "records", layout.model_dump() if layout else {})
    return what if layout else {key: value for key, value in what.items() if key != "layout"}


def plan_build(loaded: LoadedRecipe[Any], output: Path, report: Report, many: Callable[[], None]) -> Plan:
    """The plan of a recipe's build.

    Args:
        loaded: a recipe of scenes or records.
        output: folder of the data set.
        report: told how far reading the source is.
        many: called once when there will be much to do.

    Raises:
        UserError: the source cannot be read or understood, or nothing in it can be used.
    """
    if isinstance(loaded.recipe, SceneRecipe):
        return _plan_scenes(loaded, output)
    return _plan_records(loaded, output, report, many)


def _plan_scenes(loaded: LoadedRecipe[SceneRecipe], output: Path) -> Plan:
    layout = Layout()
    jobs: list[Job] = []
    for split, planned in Composer(loaded).plan.items():
        size = loaded.recipe.samples_per_shard
        for index, start in enumerate(range(0, len(planned), size)):
            positions = range(start, min(start + size, len(planned)))
            jobs.append(Job(shard_path(split, index), split, positions))
    return Plan(layout, tuple(jobs), SceneWork(loaded, output, layout), "")


def _plan_records(loaded: LoadedRecipe[RecordRecipe], output: Path, report: Report, many: Callable[[], None]) -> Plan:
    recipe = loaded.recipe
    entries: list[_Entry] = []
    dropped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for number, (source, outcome) in enumerate(_outcomes(recipe.sources, loaded.folder)):
        if isinstance(outcome, Dropped):
            dropped[outcome.reason] += 1
            examples.setdefault(outcome.reason, case(outcome))
        else:
            entries.append(_Entry(seed_from(recipe.seed, source, outcome.origin), number, outcome))
        if number % _NOW_AND_THEN == 0:
            report(READING, number, None)
        if len(entries) == 8 * _NOW_AND_THEN:
            many()
    if not entries:
        raise UserError(f"nothing in the source can be used: {table_line(dropped, examples) or 'it is empty'}")
    layout = _layout(recipe, [entry.item for entry in entries])
    jobs: list[Job] = []
    digest = hashlib.sha256()
    for split, chosen in _divide(recipe, entries).items():
        for index, start in enumerate(range(0, len(chosen), recipe.samples_per_shard)):
            items = tuple((entry.number, entry.item) for entry in chosen[start : start + recipe.samples_per_shard])
            jobs.append(Job(shard_path(split, index), split, items))
            digest.update("".join(f"{number} {item.origin}\n" for number, item in items).encode(errors="replace"))
    work = RecordWork(output, recipe.steps, layout, recipe.limits)
    return Plan(layout, tuple(jobs), work, digest.hexdigest(), dropped, examples)


@dataclass(frozen=True)
class _Entry:
    """An item with its number in the sources, and a number by chance."""

    chance: int
    number: int
    item: Item


def _outcomes(sources: Sequence[SourceConfig], folder: Path) -> Iterator[tuple[int, Item | Dropped]]:
    for number, source in enumerate(sources):
        for outcome in read_items(source, folder):
            yield number, outcome


def _layout(recipe: RecordRecipe, items: Sequence[Item]) -> Layout:
    """Masks and views have members in all samples if some item could have them."""
    views = any(item.views for item in items)
    masks = any(thing.mask is not None for item in items for thing in item.objects)
    masks = masks or any(view.mask is not None for item in items for view in item.views)
    return Layout(picture=recipe.picture, quality=recipe.quality, masks=masks, views=views)


def _divide(recipe: RecordRecipe, entries: Sequence[_Entry]) -> dict[str, list[_Entry]]:
    """Split -> its items in the order in which they are stored."""
    heldout = recipe.heldout
    names = {entry.item.subject or entry.item.origin for entry in entries}
    held = {name for name in names if is_held_out(name, heldout)}
    if heldout.share and len(names) > 1 and len(held) in (0, len(names)):
        # Neither split may be empty: the one that the coin of another kind picks changes sides.
        odd = min(names, key=lambda name: (seed_from(heldout.salt, name), name))
        held ^= {odd}
    splits: dict[str, list[_Entry]] = {split: [] for split in SPLITS}
    for entry in sorted(entries, key=lambda entry: (entry.chance, entry.number)):
        splits["heldout" if (entry.item.subject or entry.item.origin) in held else "train"].append(entry)
    if recipe.limit is not None and recipe.limit < len(entries):
        share = round(recipe.limit * len(splits["heldout"]) / len(entries))
        share = min(len(splits["heldout"]), max(share, 1))
        if recipe.limit - share < 1:
            raise UserError(f"limit={recipe.limit} leaves a split without records: say limit=2 or more")
        splits = {"train": splits["train"][: recipe.limit - share], "heldout": splits["heldout"][:share]}
    if not recipe.shuffle:
        splits = {split: sorted(chosen, key=lambda entry: entry.number) for split, chosen in splits.items()}
    return splits


def table_line(dropped: Counter[str], examples: Mapping[str, str]) -> str:
    """What was dropped, on one line."""
    return ", ".join(
        f"{count} {reason}" + (f" (for example {examples[reason]})" if reason in examples else "")
        for reason, count in dropped.most_common()
    )


def _placeless_name(name: str, source: SourceConfig) -> str:
    """The name of an input, without the place of a folder or file that the source names."""
    places = [value for value in source.model_dump().values() if isinstance(value, str | tuple)]
    for place in (one for value in places for one in ([value] if isinstance(value, str) else value)):
        if place != placeless(place):
            name = name.replace(place, placeless(place))
    return name
