"""A data set to look at: one HTML page of statistics, records and what its tasks ask, and the same records as PNG."""

import io
import shlex
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from mentor.data.examples import ExampleMaker, usable_positions
from mentor.data.inspecting import sheets
from mentor.data.inspecting.page import Asked, Shown, render_page
from mentor.data.inspecting.survey import pick, take_survey
from mentor.data.records import UnusableSample
from mentor.data.storage.manifest import SPLITS, read_manifest
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.writing import write_whole
from mentor.data.tasks import TASKS
from mentor.errors import UserError, check_output

PAGE_NAME = "index.html"
# Examples are made at the pictures' own size, but not beyond what a card can show.
LARGEST = 256


def write_inspection(root: Path, output: Path, num: int, seed: int) -> Path:
    """The page `output/index.html` about the data set in `root`, beside it a PNG sheet for each split and each task.

    The page holds everything in itself, loads nothing and runs nothing. The same data set, `num` and `seed` give the
    same page.

    Args:
        root: the data set's folder.
        output: folder of the page and the sheets.
        num: records shown of each split, and examples of each task.
        seed: decides which ones, and every choice of the tasks.

    Raises:
        UserError: there is no readable data set, or the output cannot be written.
    """
    if num < 1:
        raise UserError(f"--num {num}: give a number above 0")
    check_output(output)
    manifest = read_manifest(root)
    filled = [split for split in SPLITS if any(row["samples"] for row in manifest["files"] if row["split"] == split)]
    splits = {split: ShardSet(root, split) for split in filled or SPLITS}
    survey = take_survey(list(splits.values()), seed)
    if not survey.pictured:
        raise UserError(f"not one record in {root} can be read: {survey.unreadable[0]}")
    shown = {split: _show(shards, num, seed) for split, shards in splits.items()}
    asked = {task: _ask(task, splits, num, seed) for task in TASKS}
    files = {f"records_{split}.png": _png(sheets.records_sheet(s.records)) for split, s in shown.items() if s.records}
    files |= {f"task_{task}.png": _png(sheets.examples_sheet(a.examples)) for task, a in asked.items() if a.examples}
    options = ["--output", str(output), "--num", str(num), "--seed", str(seed)]
    command = shlex.join(["python", "tools/make_shards.py", "inspect", str(root), *options])
    page = render_page(root, manifest, survey, shown, asked, command)
    # What no file can hold (half a surrogate pair in a foreign JSON) becomes a question mark.
    files[PAGE_NAME] = page.encode("utf-8", "replace")
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(output / name, content)
    except OSError as error:
        raise UserError(f"cannot write to {output} ({error.strerror}): give another --output") from None
    return output / PAGE_NAME


def _show(shards: ShardSet, num: int, seed: int) -> Shown:
    shown = Shown()
    for sample in pick([range(count) for count in shards.counts], num, seed):
        try:
            shown.records.append(shards.record(sample.shard, sample.position))
        except UnusableSample as error:
            shown.faults.append(error)
    return shown


def _ask(task: str, splits: Mapping[str, ShardSet], num: int, seed: int) -> Asked:
    """How many records the task can use, and examples from the first split that has any."""
    asked = Asked()
    for split, shards in splits.items():
        try:
            positions = usable_positions(shards, [task])[task]
        except UserError as error:
            asked.usable[split] = str(error)
            continue
        asked.usable[split] = sum(map(len, positions))
        if asked.examples or asked.faults:
            continue
        maker = None
        for sample in pick(positions, num, seed):
            try:
                if maker is None:
                    side = min(shards.record(sample.shard, sample.position).image.shape[:2])
                    maker = ExampleMaker(shards, seed, min(side, LARGEST))
                asked.examples.append(maker.example(task, sample))
            except UserError as error:
                asked.faults.append(error)
    return asked


def _png(sheet: Image.Image) -> bytes:
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
