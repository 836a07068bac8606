"""Tars of small pictures, and streams that read them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mentor.config import validate
from mentor.data.records import Dropped, Record
from mentor.data.storage.remote import Patience
from mentor.data.streaming import StreamConfig, TarStream

HASTY = Patience(attempts=2, pause=0.01)


def picture(colour: int = 0, form: str = "PNG", side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), colour % 256, np.uint8)).save(file, form)
    return file.getvalue()


def tar_of(entries: Iterable[tuple[str, bytes] | tuple[tarfile.TarInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write_tar(path: Path, entries: Iterable[tuple[str, bytes]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(entries))
    return str(path)


def sample(key: str, colour: int = 0, caption: str = "") -> list[tuple[str, bytes]]:
    return [(f"{key}.png", picture(colour)), (f"{key}.txt", (caption or f"this is {key}").encode())]


def samples(keys: Iterable[str]) -> list[tuple[str, bytes]]:
    return [entry for key in keys for entry in sample(key)]


def stream(urls: Any, seed: int = 1, **settings: Any) -> TarStream:
    return TarStream(validate(StreamConfig, {"urls": urls, "shuffle": 20} | settings), seed, HASTY)


def keys(results: Iterable[Record | Dropped]) -> list[str]:
    found = []
    for result in results:
        assert isinstance(result, Record), result
        found.append(result.key)
    return found


def notes(results: Iterable[Record | Dropped]) -> list[Dropped]:
    return [result for result in results if isinstance(result, Dropped)]
