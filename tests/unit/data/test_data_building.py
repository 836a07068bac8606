"""Builds: the same bytes by any number of workers, found again, gone on with, never written over other things."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mentor.data.building import build_dataset
from mentor.data.recipes import LoadedRecipe, load_recipe
from mentor.data.shards import ShardSet
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
    assert len(contents(tmp_path / "one")) == 6
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
