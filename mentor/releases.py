"""The files of a release folder: which belong to it, and whether they are there and whole. Nothing is loaded."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mentor.errors import UserError

WEIGHTS = "model.safetensors"

# What a release may hold, in its own folder and in those inside. Nothing else is fetched or sent.
RELEASE_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.md", "samples.png"]
# Reading these can run code.
PICKLED = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")


def read_description(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a release.

    Raises:
        UserError: there is none of ours.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("config.json is missing, or no JSON") from error
    if not isinstance(config, dict) or config.get("format") != "mentor" or "kind" not in config:
        raise UserError('config.json is of something else (no "format": "mentor" in it)')
    return config


def check_release(folder: Path) -> dict[str, Any]:
    """The config.json of a release whose weights are all there and as long as their own headers say.

    Raises:
        UserError: a file is missing, cut short or not ours.
    """
    config = read_description(folder)
    parts = [Path()] + ([Path("image_tokenizer")] if config["kind"] == "generator" else [])
    needed = [part / file for part in parts for file in ("config.json", WEIGHTS)]
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        try:
            shards = set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index.relative_to(folder)} is no index of weights") from error
        needed += [index.relative_to(folder).parent / shard for shard in sorted(shards)]
    for file in needed:
        if not (folder / file).is_file():
            raise UserError(f"{file} is missing")
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file.relative_to(folder)} is not whole: {error}") from error
    return config


def release_files(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files in a release folder: those that belong to a release, and the others."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    own = [name for name in names if any(fnmatchcase(name, pattern) for pattern in RELEASE_FILES)]
    return own, [name for name in names if name not in own]
