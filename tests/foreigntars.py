"""Tars as img2dataset writes them, indexed and read."""

import json
from pathlib import Path
from typing import Any

from layouts import picture_bytes, write_tar

from mentor.data.making.indexing import Indexed, index_dataset
from mentor.data.making.recipes import HeldOutConfig
from mentor.data.storage.files import CacheSettings
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.tarsets import TarFields

HELDOUT = HeldOutConfig(share=0.25)
COLOURS = ("red", "green", "blue", "white")


def members(key: str, number: int = 0) -> list[tuple[str, bytes]]:
    """A sample as img2dataset writes one."""
    described = {"caption": f"picture {key}", "status": "success", "key": key}
    return [
        (f"{key}.jpg", picture_bytes(COLOURS[number % 4], (24, 16))),
        (f"{key}.json", json.dumps(described).encode()),
        (f"{key}.txt", f"picture {key}".encode()),
    ]


def write_tars(folder: Path, tars: int = 3, samples: int = 8) -> list[Path]:
    return [
        write_tar(
            folder / f"{tar:05d}.tar",
            [member for number in range(samples) for member in members(f"{tar:05d}{number:04d}", number)],
        )
        for tar in range(tars)
    ]


def run(*paths: Path | str, output: Path | None = None, fields: TarFields | None = None, **settings: Any) -> Indexed:
    return index_dataset([str(path) for path in paths], fields or TarFields(), HELDOUT, output, **settings)


def captions(root: Path | str, cache: CacheSettings | None = None) -> dict[str, str]:
    """Key -> caption of all records of both splits, with their pictures read."""
    found: dict[str, str] = {}
    for split in ("train", "heldout"):
        shards = ShardSet(root, split, cache)
        for shard, count in enumerate(shards.counts):
            for position in range(count):
                record = shards.record(shard, position)
                assert record.image.shape == (16, 24, 3)
                found[record.key] = record.captions[0]
    return found


def everything(tars: int = 3, samples: int = 8) -> dict[str, str]:
    keys = [f"{tar:05d}{number:04d}" for tar in range(tars) for number in range(samples)]
    return {key: f"picture {key}" for key in keys}
