"""Recipes to build from, albums for them, and what a build has left behind."""

import hashlib
import json
from pathlib import Path
from typing import Any

from layouts import write_picture

from mentor.data.making.recipes import LoadedRecipe, load_recipe
from mentor.data.storage.shards import ShardSet

RECIPES = Path(__file__).resolve().parents[1] / "data_recipes"
SMALL = ("scenes.train=40", "scenes.heldout=10", "samples_per_shard=10", "size=32", "snap=4")
STEPS = [
    {"step": "size", "min_side": 16},
    {"step": "clean_captions"},
    {"step": "resize", "size": 24},
    {"step": "duplicates"},
]


def load(name: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(name, overrides, RECIPES)


def contents(root: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def album(folder: Path, count: int = 60) -> Path:
    """Pictures with captions; every tenth is too small, and 7, 17 and 27 are the same file."""
    for number in range(count):
        name = folder / "sub" / f"{number:03d}.jpg" if number % 2 else folder / f"{number:03d}.jpg"
        side = 4 if number % 10 == 3 else 40
        twin = 7 if number in (17, 27) else number
        write_picture(name, colour=(twin * 4 % 256, twin * 7 % 256, 90), size=(side, side + 8))
        name.with_suffix(".txt").write_text(f"a thing numbered <b>{number}</b>")
    return folder


def records(folder: Path, **changes: Any) -> LoadedRecipe:
    """A recipe of records in YAML, for the pictures in `folder`."""
    source = {"kind": "folder", "path": str(folder)}
    settings = {"sources": [source], "steps": STEPS, "heldout": {"share": 0.2}, "samples_per_shard": 7}
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(json.dumps({"kind": "records", **settings, **changes}))
    return load_recipe(str(path), (), RECIPES)


def stored(root: Path, split: str) -> dict[str, dict[str, Any]]:
    """Origin -> the description of each sample, its key among them."""
    shards = ShardSet(root, split)
    found = {}
    for shard, count in enumerate(shards.counts):
        for position in range(count):
            described = shards.description(shard, position)
            found[described["attributes"]["origin"]] = {"key": shards.key(shard, position), **described}
    return found


def everything(root: Path) -> dict[str, dict[str, Any]]:
    return stored(root, "train") | stored(root, "heldout")


def descriptions(root: Path, split: str) -> list[dict[str, Any]]:
    shards = ShardSet(root, split)
    return [
        shards.description(shard, position) for shard, count in enumerate(shards.counts) for position in range(count)
    ]
