"""Times of making shards, one round after the other, as JSON: seconds by case.

Run by `data.py`: python making.py WORK PICTURES COUNT ROUNDS
"""

import io
import json
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from mentor.data.making.building import build_dataset
from mentor.data.making.recipes import load_recipe

RECIPES = Path(__file__).resolve().parent.parent.parent / "data_recipes"


def main() -> None:
    """Take the times and print them."""
    work, folder, count, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    settings = [f"path={folder}", f"limit={count}"]
    copied = load_recipe("folder", settings, RECIPES)
    resized = load_recipe("folder", [*settings, "size=128"], RECIPES)
    pictures = sorted(Path(folder).glob("*/*.jpg"))[:count]

    def build(loaded: object, workers: int) -> None:
        shutil.rmtree(work / "shards", ignore_errors=True)
        build_dataset(loaded, work / "shards", workers)  # pyright: ignore[reportArgumentType]

    # The last one stays: it is what reading is measured with.
    cases: dict[str, Callable[[], None]] = {
        "resized": lambda: build(resized, 1),
        "resized by two": lambda: build(resized, 2),
        "peer": lambda: plain(pictures, work / "peer.tar"),
        "copied by two": lambda: build(copied, 2),
        "copied": lambda: build(copied, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    cases["peer"]()
    for number in range(rounds):
        for name, case in cases.items():
            # What takes long is taken less often.
            if name.startswith("resized") and number >= 2:
                continue
            started = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - started)
    print(json.dumps(seconds))


def plain(pictures: list[Path], target: Path) -> None:
    """The same members by Python's tarfile, without checks, index, digests or waiting for the disk."""
    with tarfile.open(target, "w") as archive:
        for path in pictures:
            caption = path.with_suffix(".txt").read_text()
            words = {"captions": [caption], "objects": [], "views": [], "subject": "", "tasks": []}
            described = json.dumps({**words, "attributes": {"origin": path.name}})
            contents = {"jpg": path.read_bytes(), "json": described.encode(), "txt": caption.encode()}
            for name, content in contents.items():
                info = tarfile.TarInfo(f"{path.stem}.{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    main()
