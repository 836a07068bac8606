"""Builds: the same bytes by any number of workers, found again, gone on with, never written over other things."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layouts import write_picture

from mentor.data.making import building
from mentor.data.making.building import Part, build_dataset, merge
from mentor.data.making.recipes import LoadedRecipe, load_recipe
from mentor.data.making.steps import Caption
from mentor.data.making.work import Job, RecordWork
from mentor.data.sources.items import FileBlob, Item
from mentor.data.storage import writing
from mentor.data.storage.decoding import Limits
from mentor.data.storage.encoding import Layout
from mentor.data.storage.manifest import lock
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError

RECIPES = Path(__file__).resolve().parents[3] / "data_recipes"
Command = Callable[..., subprocess.CompletedProcess[str]]


def load(name: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(name, overrides, RECIPES)


SMALL = ("scenes.train=40", "scenes.heldout=10", "samples_per_shard=10", "size=32", "snap=4")


def contents(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_one_and_two_workers_and_a_rerun_write_the_same_bytes(tmp_path: Path) -> None:
    loaded = load("shapes", *SMALL)
    for name, workers in (("one", 1), ("two", 2), ("again", 1)):
        build_dataset(loaded, tmp_path / name, workers)
    assert len(contents(tmp_path / "one")) == 8
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "again")


def test_a_finished_data_set_is_found_and_a_damaged_shard_of_it_is_made_again(tmp_path: Path) -> None:
    loaded, root = load("shapes", *SMALL), tmp_path / "out"
    assert not build_dataset(loaded, root).found
    before = contents(root)
    assert build_dataset(loaded, root).found
    shard = root / "train/000001.tar"
    shard.write_bytes(shard.read_bytes()[:-700])
    assert not build_dataset(loaded, root).found
    assert contents(root) == before


def test_what_is_not_ours_is_never_written_over(tmp_path: Path) -> None:
    build_dataset(load("shapes", *SMALL), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="already holds another data set"):
        build_dataset(load("shapes", *SMALL, "seed=1"), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/text.tex").write_text("dear")
    with pytest.raises(UserError, match="is not empty"):
        build_dataset(load("shapes", *SMALL), tmp_path / "thesis")
    assert list((tmp_path / "thesis").iterdir()) == [tmp_path / "thesis/text.tex"]


@pytest.mark.fault(15)
def test_a_killed_run_leaves_whole_shards_and_the_next_run_completes(tmp_path: Path) -> None:
    root, clean = tmp_path / "out", tmp_path / "clean"
    settings = ["scenes.train=1500", "scenes.heldout=20", "scenes.views=0", "samples_per_shard=50", "size=32", "snap=4"]
    tool = str(RECIPES.parent / "tools/make_shards.py")
    environment = os.environ | {"PYTHONPATH": str(RECIPES.parent)}
    command = [sys.executable, tool, "shapes", f"output={root}", "workers=1", *settings]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (root / "train/000001.tar").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (root / "manifest.json").exists()
    with pytest.raises(UserError, match="its making was interrupted"):
        ShardSet(root, "train")
    done = {path.relative_to(root): path.read_bytes() for path in root.glob("*/*.tar")}
    loaded = load("shapes", *settings)
    with pytest.raises(UserError, match="unfinished build with other settings"):
        build_dataset(load("shapes", *settings, "seed=3"), root)
    build_dataset(loaded, root)
    build_dataset(loaded, clean)
    assert 2 <= len(done) < 30
    assert all(content == (clean / path).read_bytes() for path, content in done.items())
    assert contents(root) == contents(clean)


def test_the_command_says_one_line_and_the_second_time_that_all_is_there(command: Command, tmp_path: Path) -> None:
    first = command("tools/make_shards.py", "shapes", "workers=1", *SMALL, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("data/shapes now holds 40 train and 10 heldout samples in 5 shards")
    assert first.stdout.count("\n") == 1
    second = command("tools/make_shards.py", "shapes", "workers=2", *SMALL, cwd=tmp_path)
    assert second.returncode == 0
    assert "already holds" in second.stdout
    manifest = json.loads((tmp_path / "data/shapes/manifest.json").read_text())
    assert str(tmp_path) not in json.dumps(manifest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["films"], "no recipe 'films'"),
        (["shapes", "scenes.train=0"], "too few records"),
        (["shapes", "workers=two"], "workers=two is not a number"),
        (["shapes", "output=file/below"], "cannot write to file/below"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    arguments: list[str], message: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = command("tools/make_shards.py", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def album(folder: Path, count: int = 60) -> Path:
    """Pictures with captions; every tenth is too small, and 7, 17 and 27 are the same file."""
    for number in range(count):
        name = folder / "sub" / f"{number:03d}.jpg" if number % 2 else folder / f"{number:03d}.jpg"
        side = 4 if number % 10 == 3 else 40
        twin = 7 if number in (17, 27) else number
        write_picture(name, colour=(twin * 4 % 256, twin * 7 % 256, 90), size=(side, side + 8))
        name.with_suffix(".txt").write_text(f"a thing numbered <b>{number}</b>")
    return folder


STEPS = [
    {"step": "size", "min_side": 16},
    {"step": "clean_captions"},
    {"step": "resize", "size": 24},
    {"step": "duplicates"},
]


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


def test_a_folder_becomes_shards_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    (folder / "lonely.jpg").write_bytes((folder / "000.jpg").read_bytes())
    build = build_dataset(records(folder), tmp_path / "out")
    assert build.manifest["dropped"] == {"too small": 6, "exact duplicate": 2, "no caption": 1}
    assert sum(build.manifest["samples"].values()) == 60 - 8
    assert build.examples["too small"].endswith(": 4 x 12")
    assert build.examples["no caption"] == "lonely.jpg"
    found = everything(tmp_path / "out")
    assert found["000.jpg"]["captions"] == ["a thing numbered 0"]
    assert not {"sub/017.jpg", "sub/027.jpg"} & found.keys()
    shards = ShardSet(tmp_path / "out", "train")
    assert shards.record(0, 0).image.shape == (24, 24, 3)
    assert not (tmp_path / "out/.work").exists()


def test_keys_are_places_in_the_source_whatever_is_dropped(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    build_dataset(records(folder), tmp_path / "some")
    build_dataset(records(folder, steps=[]), tmp_path / "all")
    some, every = everything(tmp_path / "some"), everything(tmp_path / "all")
    assert len(every) == 60
    assert {one["key"] for one in every.values()} == {f"{number:09d}" for number in range(60)}
    assert [every[origin]["key"] for origin in sorted(every)] == sorted(one["key"] for one in every.values())
    assert all(one["key"] == every[origin]["key"] for origin, one in some.items())


def test_pictures_that_nothing_changed_are_copied_byte_for_byte(tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 12)
    build_dataset(records(folder, steps=[]), tmp_path / "out")
    stored_bytes = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.tar")))
    assert all(path.read_bytes() in stored_bytes for path in folder.rglob("*.jpg"))


def test_records_too_are_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    seen: list[tuple[str, int, int | None]] = []
    build_dataset(records(folder), tmp_path / "one", report=lambda *facts: seen.append(facts))
    build_dataset(records(folder), tmp_path / "two", workers=2)
    assert len(contents(tmp_path / "one")) > 9
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [stage for stage, *_ in dict.fromkeys((stage,) for stage, *_ in seen)] == [
        "reading the source",
        "looking for duplicates",
        "making shards",
    ]
    assert seen[-1] == ("making shards", 60, 60)


@pytest.mark.slow
def test_ray_makes_the_same_bytes_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(RECIPES.parent))
    folder = album(tmp_path / "album")
    for loaded, name in ((records(folder), "records"), (load("shapes", *SMALL), "scenes")):
        build_dataset(loaded, tmp_path / f"{name} here", workers=1)
        build_dataset(loaded, tmp_path / f"{name} there", workers=2, engine="ray")
        assert contents(tmp_path / f"{name} here") == contents(tmp_path / f"{name} there")


def test_the_order_of_samples_is_mixed_unless_asked_otherwise(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    build_dataset(records(folder, steps=[]), tmp_path / "mixed")
    build_dataset(records(folder, steps=[], seed=1), tmp_path / "other")
    build_dataset(records(folder, steps=[], shuffle=False), tmp_path / "sorted")
    orders = [list(stored(tmp_path / name, "train")) for name in ("mixed", "other", "sorted")]
    assert orders[2] == sorted(orders[0]) == sorted(orders[1])
    assert len({tuple(order) for order in orders}) == 3


def test_subjects_are_held_out_as_a_whole_and_never_none_or_all(tmp_path: Path) -> None:
    for subject in range(4):
        for number in range(3):
            write_picture(tmp_path / "subjects" / f"thing{subject}" / f"{number}.png", (subject * 60, number * 90, 5))
    source = {"kind": "subjects", "path": str(tmp_path / "subjects")}
    for share, salt in ((0.001, "a"), (0.999, "a"), (0.5, "b"), (0.5, "c")):
        recipe = records(tmp_path / "subjects", sources=[source], steps=[], heldout={"share": share, "salt": salt})
        root = tmp_path / f"{share}{salt}"
        build_dataset(recipe, root)
        train, heldout = ({one["subject"] for one in stored(root, split).values()} for split in ("train", "heldout"))
        assert train and heldout and not train & heldout
        assert len(train | heldout) == 4
        assert all(one["views"] for one in everything(root).values())


def test_a_limit_takes_of_both_splits_in_proportion_and_always_the_same(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    build_dataset(records(folder, steps=[]), tmp_path / "all")
    build_dataset(records(folder, steps=[], limit=20), tmp_path / "few")
    build_dataset(records(folder, steps=[], limit=20, seed=5), tmp_path / "others")
    every, few, others = (
        [set(stored(tmp_path / name, split)) for split in ("train", "heldout")] for name in ("all", "few", "others")
    )
    assert sum(map(len, few)) == 20
    assert len(few[1]) == round(20 * len(every[1]) / 60)
    assert few[0] <= every[0] and few[1] <= every[1]
    assert few != others
    with pytest.raises(UserError, match="limit=1 leaves a split without records"):
        build_dataset(records(folder, limit=1), tmp_path / "none")


def test_a_held_out_picture_that_training_has_too_goes(tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 40)
    for path in [*folder.rglob("*.jpg")]:
        copy = path.with_name(f"again-{path.name}")
        copy.write_bytes(path.read_bytes())
        copy.with_suffix(".txt").write_text("again")
    twins = [{"step": "duplicates"}]
    build_dataset(records(folder, steps=[], heldout={"share": 0.4}), tmp_path / "all")
    build_dataset(records(folder, steps=twins, heldout={"share": 0.4}), tmp_path / "once")
    train, heldout = stored(tmp_path / "once", "train"), stored(tmp_path / "once", "heldout")
    shown = [Path(origin).name.removeprefix("again-") for origin in [*train, *heldout]]
    assert len(set(shown)) == len(shown) == 38
    both = {Path(origin).name.removeprefix("again-") for origin in stored(tmp_path / "all", "train")}
    assert both == {Path(origin).name.removeprefix("again-") for origin in train} | ({"017.jpg", "027.jpg"} & both)


def test_when_nothing_is_left_the_reasons_are_told_and_nothing_stays(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    with pytest.raises(UserError, match=r"nothing is left.*58 too small.*2 exact duplicate") as caught:
        build_dataset(
            records(folder, steps=[{"step": "duplicates"}, {"step": "size", "min_side": 999}]), tmp_path / "out"
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    for text in folder.rglob("*.txt"):
        text.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match=r"nothing in the source can be used: 60 .*for example"):
        build_dataset(records(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_data_are_found_again_from_elsewhere_and_no_place_is_told(tmp_path: Path) -> None:
    here = album(tmp_path / "here" / "album", 12)
    there = album(tmp_path / "there" / "album", 12)
    first = build_dataset(records(here), tmp_path / "out")
    assert str(tmp_path) not in json.dumps(first.manifest)
    assert build_dataset(records(there), tmp_path / "out").found
    (there / "000.txt").write_text("another")
    with pytest.raises(UserError, match="already holds another data set"):
        build_dataset(records(there), tmp_path / "out")


def test_parts_merged_are_the_plain_run_byte_for_byte(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    (folder / "lonely.jpg").write_bytes((folder / "000.jpg").read_bytes())
    build_dataset(records(folder), tmp_path / "plain")
    for index in (2, 0):
        assert build_dataset(records(folder), tmp_path / "parts", part=Part(index, 3)).manifest == {}
    with pytest.raises(UserError, match=r"part 1 of 3 is not finished: \d shards missing; .* --num-parts 3 --part 1"):
        merge(tmp_path / "parts")
    with pytest.raises(UserError, match="its making was interrupted"):
        ShardSet(tmp_path / "parts", "train")
    with pytest.raises(UserError, match="has 3 parts, not 2: say --num-parts 3"):
        build_dataset(records(folder), tmp_path / "parts", part=Part(1, 2))
    part = build_dataset(records(folder), tmp_path / "parts", part=Part(1, 3))
    assert part.shards * 3 >= len(list((tmp_path / "parts").glob("*/*.tar"))) - 2
    assert not merge(tmp_path / "parts").found
    assert contents(tmp_path / "parts") == contents(tmp_path / "plain")
    assert merge(tmp_path / "parts").found
    with pytest.raises(UserError, match="nothing to merge"):
        merge(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UserError, match="part 3 of 3 does not exist"):
        Part(3, 3)


def test_parts_at_once_share_the_search_for_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = album(tmp_path / "album")
    monkeypatch.setattr("mentor.data.making.deduplicating._AT_ONCE", 4)
    build_dataset(records(folder), tmp_path / "plain")
    scanned: list[int] = []
    run = building.drop_duplicates

    def count(*arguments: Any) -> Any:
        engine = arguments[4]

        class Counting:
            def run(self, work: Any, jobs: Any, done: Any, tick: Any) -> None:
                scanned.append(len(jobs))
                engine.run(work, jobs, done, tick)

        return run(*arguments[:4], Counting(), *arguments[5:])

    monkeypatch.setattr(building, "drop_duplicates", count)
    for index in range(3):
        build_dataset(records(folder), tmp_path / "parts", part=Part(index, 3))
    assert sum(scanned) == 15
    merge(tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "plain")


@pytest.mark.fault(15)
def test_two_runs_on_one_folder_the_second_is_refused_and_names_the_first(tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 12)
    with lock(tmp_path / "out"):
        for part in (None, Part(0, 2)):
            with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is writing to"):
                build_dataset(records(folder), tmp_path / "out", part=part)
    build_dataset(records(folder), tmp_path / "out")
    with lock(tmp_path / "parts", part=0):
        build_dataset(records(folder), tmp_path / "parts", part=Part(1, 2))
        with pytest.raises(UserError, match="another process"):
            build_dataset(records(folder), tmp_path / "parts", part=Part(0, 2))
        with pytest.raises(UserError, match="another process"):
            merge(tmp_path / "parts")


@pytest.mark.fault(15)
def test_a_full_disk_and_a_failing_source_leave_whole_shards_and_the_next_run_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = album(tmp_path / "album")
    build_dataset(records(folder), tmp_path / "plain")

    class Full(writing._Hashed):
        left = 60_000

        def write(self, content: bytes) -> None:
            Full.left -= len(content)
            if Full.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(content)

    with monkeypatch.context() as patched:
        patched.setattr(writing, "_Hashed", Full)
        with pytest.raises(UserError, match=r"cannot write .*\.tar \(No space left on device\).*make room"):
            build_dataset(records(folder), tmp_path / "out")
    check_interrupted(tmp_path / "out", tmp_path / "plain")
    outcomes = RecordWork._outcomes

    def fail(self: RecordWork, number: int, item: Any) -> Any:
        if number == 41:
            raise RuntimeError("a fault of the source")
        return outcomes(self, number, item)

    with monkeypatch.context() as patched:
        patched.setattr(RecordWork, "_outcomes", fail)
        with pytest.raises(RuntimeError, match="a fault of the source"):
            build_dataset(records(folder), tmp_path / "out")
    done = check_interrupted(tmp_path / "out", tmp_path / "plain")
    build_dataset(records(folder), tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def check_interrupted(root: Path, plain: Path) -> dict[Path, int]:
    """The finished shards and when they were written, all of them whole; there is no half file nor a manifest."""
    shards = sorted(root.glob("*/*.tar"))
    assert not (root / "manifest.json").exists()
    assert not list(root.rglob("*.partial"))
    assert 0 < len(shards) < len(list(plain.glob("*/*.tar")))
    assert all(path.read_bytes() == (plain / path.relative_to(root)).read_bytes() for path in shards)
    return {path: path.stat().st_mtime_ns for path in shards}


def test_a_source_that_has_changed_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = album(tmp_path / "album")
    build_dataset(records(folder), tmp_path / "out", part=Part(0, 2))
    (folder / "000.txt").write_text("another")
    with pytest.raises(UserError, match="unfinished build with other settings"):
        build_dataset(records(folder), tmp_path / "out")
    (folder / "000.txt").write_text("a thing numbered <b>0</b>")
    plan = json.loads((tmp_path / "out/.work/plan.json").read_text())
    (tmp_path / "out/.work/plan.json").write_text(json.dumps(plan | {"digest": "other"}))
    with pytest.raises(UserError, match="the source has changed since"):
        build_dataset(records(folder), tmp_path / "out")


def test_a_finished_shard_that_was_lost_is_made_again(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    build_dataset(records(folder), tmp_path / "plain")
    build_dataset(records(folder), tmp_path / "out", part=Part(0, 1))
    shard = next((tmp_path / "out").glob("train/*.tar"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="part 0 of 1 is not finished: 1 shard missing"):
        merge(tmp_path / "out")
    build_dataset(records(folder), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_other_readers_read_the_shards(tmp_path: Path, shapes: Path) -> None:
    import datasets
    import webdataset

    folder = album(tmp_path / "album")
    build_dataset(records(folder), tmp_path / "out")
    for root in (tmp_path / "out", shapes):
        paths = sorted(map(str, (root / "train").glob("*.tar")))
        expected = [one["captions"][0] for one in stored_in_order(root)]
        read = webdataset.WebDataset(paths, shardshuffle=False)
        assert [sample["txt"].decode() for sample in read] == expected
        loaded = datasets.load_dataset(
            "webdataset", data_files=paths, split="train", cache_dir=str(tmp_path / "cache"), streaming=True
        )
        rows = list(loaded)
        assert [row["txt"] for row in rows] == expected
        picture = "jpg" if root != shapes else "png"
        assert rows[0][picture].size == (24, 24) if root != shapes else (64, 64)


def stored_in_order(root: Path) -> list[dict[str, Any]]:
    shards = ShardSet(root, "train")
    return [
        shards.description(shard, position) for shard, count in enumerate(shards.counts) for position in range(count)
    ]


def test_text_that_no_file_can_hold_is_counted(tmp_path: Path) -> None:
    blob = FileBlob(write_picture(tmp_path / "red.jpg"))
    work = RecordWork(tmp_path, (), Layout(picture="jpg", masks=False, views=False), Limits())
    items = tuple(enumerate((Item("a", blob, ("fine",)), Item("b", blob, ("odd",), attributes={"note": "\ud800"}))))
    made = work.begin()(Job("train/000000.tar", "train", items), lambda: None)
    assert (made.shard.samples, dict(made.shard.dropped)) == (1, {"text is not UTF-8": 1})
    assert made.examples == {"text is not UTF-8": "b"}


def test_what_a_sample_loses_is_counted_though_it_stays(tmp_path: Path) -> None:
    blob = FileBlob(write_picture(tmp_path / "red.jpg"))
    step = Caption(min_words=2)
    work = RecordWork(tmp_path, (step,), Layout(picture="jpg", masks=False, views=False), Limits())
    made = work.begin()(Job("train/000000.tar", "train", ((3, Item("a", blob, ("x", "two words"))),)), lambda: None)
    assert (made.shard.samples, dict(made.shard.dropped)) == (1, {"caption too short": 1})
    assert made.shard.index.keys(0) == ["000000003"]
