"""What tests of drawing share: prompt files, what a job has left in its folder, and a watch on the sampler."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mentor.data.pictures import read_metadata
from mentor.decoding.settings import SamplingConfig
from mentor.generate import main
from mentor.sampling import Request, stream

Draw = Callable[..., None]


def drawing_with(release: Path) -> Draw:
    """The command line of a batch job with a release, in this process."""
    fixed = ("--model", str(release), "--batch-size", "4", "--precision", "fp32")
    return lambda prompts, output, *options: main(
        ["--prompts", str(prompts), "--output", str(output), *fixed, *options]
    )


def watch_batches(monkeypatch: pytest.MonkeyPatch, on_batch: Callable[[SamplingConfig, list[Request]], object]) -> None:
    """From now on pictures are drawn batch by batch, and the function is called before each."""

    def watched(
        decoder: Any, requests: Iterable[Request], config: SamplingConfig, slots: int, **rest: Any
    ) -> Iterator[Any]:
        waiting = iter(requests)
        while batch := list(islice(waiting, slots)):
            on_batch(config, batch)
            yield from stream(decoder, batch, config, slots, **rest)

    monkeypatch.setattr("mentor.drawing.codes.stream", watched)


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    return path


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}


def lines(folder: Path) -> list[dict[str, Any]]:
    """All lines of all files, in no order."""
    return [json.loads(line) for path in folder.glob("pictures*.jsonl") for line in path.read_text().splitlines()]


def check_whole(folder: Path, whole: dict[str, bytes]) -> None:
    """Every picture once, with the right bytes; one line each; nothing half."""
    assert pictures(folder) == whole
    assert sorted(line["file"] for line in lines(folder)) == sorted(whole)
    for line in lines(folder):
        about = read_metadata(folder / line["file"])
        assert {name: about[name] for name in ("prompt", "seed", "sampling", "fingerprint", "precision")} == {
            name: line[name] for name in ("prompt", "seed", "sampling", "fingerprint", "precision")
        }
    assert not list(folder.glob("*.partial"))
