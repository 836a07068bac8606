"""Builds cut short, in parts or side by side: whole shards stay, and the end is that of a plain run."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from builds import RECIPES, album, contents, load, records

from mentor.data.making import building
from mentor.data.making.building import Part, build_dataset, merge
from mentor.data.making.work import RecordWork
from mentor.data.storage import writing
from mentor.data.storage.manifest import lock
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError


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
