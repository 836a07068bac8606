"""Data: making shards, reading them, packed codes, the index, the plan of an order, exactness and faults."""

import contextlib
import hashlib
import io
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from benchmarks.rows import Row, compare, ratio, single, timed
from mentor.data.datamodule import DataModule
from mentor.data.making.building import build_dataset
from mentor.data.making.recipes import load_recipe
from mentor.data.order import TrainingOrder, Usable
from mentor.data.settings import DataConfig
from mentor.data.storage.decoding import Limits
from mentor.data.storage.tarsets import TarFields, index_tar
from mentor.errors import UserError
from mentor.models.checkpoint import Card, save_image_tokenizer
from mentor.tokenizers import ImageTokenizerConfig, VQConfig, build_image_tokenizer
from mentor.training.precompute import main as precompute

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPES = ROOT / "data_recipes"
SIDE = 256
FAULTS = "12 to 16, 18 and 20"
SCENES = ("limit=400", "samples_per_shard=40")


def measure_data(work: Path, quick: bool) -> list[Row]:
    """All rows; `work` keeps the pictures for the next time."""
    pictures = make_pictures(work / "pictures", 2000 if quick else 20_000)
    rounds = 3 if quick else 5
    rows: list[Row] = []

    def add(*new: Row) -> None:
        rows.extend(new)
        for row in new:
            Console(stderr=True).print(f"{row.case}: {row.value:,.4g} {row.unit} (goal: {row.goal})", highlight=False)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        add(*making(work, pictures, rounds))
        add(reading(work, pictures, rounds))
        add(codes(work))
        add(*indexing(work, pictures, 100 << 20 if quick else 1 << 30))
        add(planning())
        add(exactness(work, 5 if quick else 50))
        add(faults())
    finally:
        torch.set_num_threads(threads)
        for name in ("shards", "peer.tar", "large.tar", "scenes", "codes", "tokenizer"):
            remove(work / name)
    return rows


def make_pictures(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs of 256 px with a caption beside each, cut out of the bundled photographs; made once."""
    paths = [folder / f"{number // 1000:03d}" / f"{number:06d}.jpg" for number in range(count)]
    if not paths[-1].with_suffix(".txt").exists():
        rng = random.Random(0)
        with zipfile.ZipFile(RECIPES / "emoji/photos.zip") as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
            sources = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names[:300]]
        for path in paths:
            source = rng.choice(sources)
            side = rng.randint(min(source.size) // 2, min(source.size))
            left, top = rng.randint(0, source.width - side), rng.randint(0, source.height - side)
            path.parent.mkdir(parents=True, exist_ok=True)
            cut = source.crop((left, top, left + side, top + side))
            cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=92)
            path.with_suffix(".txt").write_text(f"a photograph, number {path.stem}, of one thing or another")
    return paths


def making(work: Path, pictures: list[Path], rounds: int) -> list[Row]:
    """Shards of a folder of JPEGs against a plain tarfile of the same members, and two workers against one.

    Measured in a process of its own, as light as the command, since worker processes import what their parent did.
    """
    settings = [str(work), str(pictures[0].parent.parent), str(len(pictures)), str(rounds)]
    command = [sys.executable, str(Path(__file__).with_name("making.py")), *settings]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    count = f"{len(pictures):,} JPEGs"
    return [
        ratio(f"make_shards, {count} copied, 1 worker", "tarfile, same members", 0.8, found["copied"], found["peer"]),
        ratio(f"make_shards, {count} copied, 2 workers", "1 worker", 1.7, found["copied by two"], found["copied"]),
        ratio(f"make_shards, {count} resized, 2 workers", "1 worker", 1.7, found["resized by two"], found["resized"]),
    ]


def reading(work: Path, pictures: list[Path], rounds: int) -> Row:
    """Training batches of text-to-image examples against opening, decoding and stacking the same files with PIL."""
    config = DataConfig(
        root=str(work / "shards"),
        mixture={"text_to_image": 1.0},
        batch_size=32,
        image_size=SIDE,
        workers=0,
        validation_batch_size=1,
    )
    count = min(len(pictures), 4096) // 32 * 32
    module = DataModule(config, seed=0)
    batches = iter(module.train_dataloader())

    def ours() -> None:
        for _ in range(count // 32):
            next(batches)

    def theirs() -> None:
        batch = []
        for path in pictures[:count]:
            with Image.open(path) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            batch.append(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float().div(127.5).sub(1))
            if len(batch) == 32:
                torch.stack(batch)
                batch = []

    timed(theirs)
    timed(ours)
    return compare(f"reading {SIDE} px JPEGs in training order", "PIL in a loop", 0.9, ours, theirs, rounds)


def codes(work: Path) -> Row:
    """Packed codes of 8 x 8 in training order, three tasks, batches of 128; samples a second of one processor."""
    scenes, folder = work / "scenes", work / "codes"
    build_dataset(load_recipe("shapes", SCENES, RECIPES), scenes, 1)
    torch.manual_seed(0)
    small = {"channels": 8, "multipliers": (1, 2), "stem": 4, "encoder_blocks": 1, "decoder_blocks": 1, "groups": 4}
    tokenizer = build_image_tokenizer(ImageTokenizerConfig(**small, quantizer=VQConfig(codes=2048))).eval()
    remove(work / "tokenizer")
    save_image_tokenizer(work / "tokenizer", tokenizer, 64, Card("benchmark"))
    remove(folder)
    arguments = [str(scenes), "--tokenizer", str(work / "tokenizer"), "--output", str(folder), "--variants", "8"]
    with contextlib.redirect_stdout(io.StringIO()):
        precompute(arguments)
    mixture = {"text_to_image": 1.0, "segment": 1.0, "subject": 1.0}
    config = DataConfig(root=str(folder), mixture=mixture, batch_size=128, workers=0, validation_batch_size=8)
    batches = iter(DataModule(config, seed=0).train_dataloader())
    for _ in range(50):
        next(batches)
    steps, speeds = 200, []
    for _ in range(5):
        started = time.process_time()
        for _ in range(steps):
            next(batches)
        speeds.append(steps * 128 / (time.process_time() - started))
    value = statistics.median(speeds)
    goal = "at least 50,000 samples a CPU-second"
    return Row(
        "packed codes", "", goal, value, min(speeds), max(speeds), "samples/s", value >= 50_000, "64 tokens each"
    )


def indexing(work: Path, pictures: list[Path], size: int) -> list[Row]:
    """The index of one large tar of strangers, and what it takes in memory."""
    path = work / "large.tar"
    written, number = 0, 0
    with tarfile.open(path, "w") as archive:
        while written < size:
            picture = pictures[number % len(pictures)]
            for name, content in (("jpg", picture.read_bytes()), ("txt", picture.with_suffix(".txt").read_bytes())):
                info = tarfile.TarInfo(f"{number:08d}.{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                written += len(content) + 1024
            number += 1
    started = time.perf_counter()
    with path.open("rb") as file:
        found = index_tar(file, TarFields(), Limits(), lambda key: "train")
    seconds = time.perf_counter() - started
    index = found.indexes["train"]
    gigabytes = found.bytes / (1 << 30)
    each = index.bytes / len(index)
    return [
        single(
            f"index of a shard of {gigabytes:.2g} GiB", "under 10 s", seconds, "s", seconds < 10 * max(gigabytes, 0.1),
            f"{len(index):,} samples, sha256 and checksums included",
        ),
        single("index in memory", "under 200 bytes a sample", each, "bytes", each < 200, "mapped, shared by processes"),
    ]  # fmt: skip


def planning() -> Row:
    """The order of ten million samples: made from nothing, its first batch and one ten epochs later."""
    sizes = np.full(10_000, 1000)
    started = time.perf_counter()
    usable = Usable(sizes, lambda shard: np.arange(1000))
    stream = TrainingOrder({"text_to_image": [usable]}, {"text_to_image": 1.0}, 256, 8, seed=0)
    stream.batch(0)
    stream.batch(10 * 10_000_000 // 256)
    seconds = time.perf_counter() - started
    return single("order of 10 million samples in 10,000 shards", "under 2 s", seconds, "s", seconds < 2)


def exactness(work: Path, points: int) -> Row:
    """The same sequence for 1, 2, 4 ranks x 0, 1, 2, 4 workers, resumed at random points."""
    build_dataset(load_recipe("shapes", SCENES, RECIPES), work / "scenes", 1)
    mixture = {"reconstruct": 1.0, "segment": 1.0, "text_to_image": 2.0, "recover": 1.0, "subject": 2.0}

    def rows(rank: int, world: int, workers: int, consumed: int, steps: int) -> Iterator[list[bytes]]:
        config = DataConfig(root=str(work / "scenes"), mixture=mixture, batch_size=8, image_size=16, workers=workers)
        module = DataModule(config, seed=1)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # pyright: ignore[reportAttributeAccessIssue]
        module.consumed = consumed
        for batch in islice(module.train_dataloader(), steps):
            yield [
                hashlib.sha256(key.encode() + target.numpy().tobytes()).digest()
                for key, target in zip(batch.keys, batch.targets, strict=True)
            ]

    far = 500
    whole = list(rows(0, 1, 0, 0, far + 2))
    layouts = list(product((1, 2, 4), (0, 1, 2, 4)))
    same = 0
    chosen = random.Random(0).sample(range(far), points)
    for world, workers in layouts:
        for consumed in chosen:
            parts = [list(rows(rank, world, workers, consumed, 2)) for rank in range(world)]
            together = [
                [row for each in zip(*(part[step] for part in parts), strict=True) for row in each] for step in (0, 1)
            ]
            same += together == whole[consumed : consumed + 2]
    total = len(layouts) * points
    return single(
        "same sequence, ranks x workers x points of resuming", f"all of {total}", same, f"of {total}", same == total
    )


def faults() -> Row:
    """The tests that inject faults, by their marker."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "fault", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    passed = counts.get("passed", 0)
    if done.returncode not in (0, 1):
        raise UserError(f"the tests of faults did not run: {done.stdout[-300:]}{done.stderr[-300:]}")
    return single(
        f"faults {FAULTS}, injected in tests", "every one as asked", passed, f"of {passed + failed} pass", failed == 0,
        f"{counts.get('skipped', 0)} skipped",
    )  # fmt: skip


def remove(path: Path) -> None:
    """Delete a file or folder of the scratch folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
