"""The command that makes shards: ready recipes up to a training batch, kills, parts, odd places, its sub-commands."""

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import RECIPES, contents
from layouts import picture_bytes, write_picture
from readysources import (
    write_album,
    write_coco,
    write_dreambench,
    write_huggingface,
    write_img2dataset,
    write_mentor_rows,
)

from mentor.config import read_yaml, validate
from mentor.data.datamodule import DataModule
from mentor.data.making.building import build_dataset
from mentor.data.making.recipes import load_recipe
from mentor.data.settings import DataConfig
from mentor.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/make_shards.py"
ALONE = ("text_to_image", "reconstruct")
READY: dict[str, tuple[Callable[[Path], list[str]], tuple[str, ...], dict[str, int]]] = {
    "folder": (lambda folder: [f"path={write_album(folder)}"], ALONE, {}),
    "huggingface": (write_huggingface, ALONE, {}),
    "coco": (write_coco, (*ALONE, "segment", "recover"), {}),
    "img2dataset": (write_img2dataset, ALONE, {}),
    "dreambench": (write_dreambench, (*ALONE, "subject", "segment", "recover"), {}),
    "mentor_stage1": (
        write_mentor_rows,
        (*ALONE, "segment"),
        {"task is not asked for": 30},
    ),
    "mentor_stage2": (
        write_mentor_rows,
        ("text_to_image", "subject", "segment", "recover"),
        {"task is not asked for": 10},
    ),
}


def make(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the tool, run in this process to save the time of the imports."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        signal.signal(signal.SIGTERM, handler)
    return 0


@pytest.mark.parametrize("name", READY)
def test_a_ready_recipe_leads_to_batches_of_every_task_that_it_promises(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, tasks, dropped = READY[name]
    monkeypatch.chdir(tmp_path)
    arguments = write(tmp_path / "source of pictures")
    assert make([name, *arguments, "heldout.share=0.4", "workers=1"], monkeypatch) == 0
    said = capsys.readouterr().out
    manifest = json.loads((tmp_path / "data" / name / "manifest.json").read_text())
    assert str(tmp_path / "data") not in json.dumps(manifest)
    assert manifest["dropped"] == dropped
    assert all(f"{count}  {reason}" in said for reason, count in dropped.items())
    settings = {"root": f"data/{name}", "image_size": 256, "max_bad": 0.01}
    shipped = ROOT / "configs/data" / f"{name}.yaml"
    settings = read_yaml(shipped) if shipped.exists() else settings
    more = {"mixture": dict.fromkeys(tasks, 1.0), "batch_size": 4, "workers": 0, "validation_batch_size": 4}
    data = DataModule(validate(DataConfig, settings | more | {"image_size": 32}), seed=0)
    batches = iter(data.train_dataloader())
    seen = {task for _ in range(4 * len(tasks)) for task in next(batches).tasks}
    assert seen == set(tasks)
    assert {task for batch in data.val_dataloader() for task in batch.tasks} == set(tasks)
    assert not data.skipped
    assert make([name, *arguments, "heldout.share=0.4", "workers=2"], monkeypatch) == 0
    assert "already holds" in capsys.readouterr().out


def test_rows_of_mentor_serve_their_own_task_alone(tmp_path: Path) -> None:
    loaded = load_recipe("mentor_stage2", write_mentor_rows(tmp_path / "rows"), RECIPES)
    build_dataset(loaded, tmp_path / "out")
    config = {"mixture": {"reconstruct": 1.0}, "batch_size": 4, "workers": 0}
    with pytest.raises(UserError, match=r"no record .* can be used for the task 'reconstruct'"):
        DataModule(validate(DataConfig, {"root": str(tmp_path / "out"), "image_size": 32, **config}), seed=0)


SLOW_STEPS = "steps=[{step: resize, size: 400, upscale: true}, {step: duplicates}]"


def start(place: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(TOOL), "folder", "path=album", "output=out", *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(command, cwd=place, env=variables, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition()


def notes(root: Path) -> dict[Path, int]:
    """The finished shards, and when they were written."""
    if not (root / ".work").exists():
        return {}
    count = len([path for path in (root / ".work").iterdir() if path.suffix == ".index"])
    shards = sorted(root.glob("*/*.tar"), key=lambda path: path.stat().st_mtime_ns)
    return {path: path.stat().st_mtime_ns for path in shards[:count]}


@pytest.mark.slow
@pytest.mark.fault(15)
def test_a_build_killed_at_any_time_ends_like_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_album(tmp_path / "album", 150)
    settings = ["path=album", SLOW_STEPS, "samples_per_shard=10", "picture=png"]
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe("folder", settings, RECIPES)
    begun = time.monotonic()
    build_dataset(loaded, tmp_path / "plain")
    duration = time.monotonic() - begun
    chance = random.Random(0)
    interrupted = 0
    for turn in range(5):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process = start(tmp_path, *settings[1:], f"workers={1 + turn % 2}")
        wait_for(lambda one=process: (tmp_path / "out/unfinished.json").exists() or one.poll() is not None)
        time.sleep(chance.random() * duration)
        process.send_signal(signal.SIGKILL if turn else signal.SIGTERM)
        process.communicate()
        done = notes(tmp_path / "out")
        interrupted += not (tmp_path / "out/manifest.json").exists()
        wait_for(lambda: not locked(tmp_path / "out"))
        build_dataset(loaded, tmp_path / "out")
        assert contents(tmp_path / "out") == contents(tmp_path / "plain")
        assert {path: path.stat().st_mtime_ns for path in done} == done
        assert process.returncode == (-signal.SIGKILL if turn else 130) or (tmp_path / "out/manifest.json").exists()
    assert interrupted >= 3


def locked(root: Path) -> bool:
    """Whether orphaned workers still hold on for a moment."""
    before = {path: path.stat().st_size for path in root.rglob("*.partial")}
    time.sleep(0.1)
    return any(path.exists() and path.stat().st_size != size for path, size in before.items())


@pytest.mark.fault(20)
def test_clock_language_and_place_change_nothing(tmp_path: Path) -> None:
    write_album(tmp_path / "album", 12)
    (tmp_path / "album" / "été 1.jpg").write_bytes(picture_bytes("blue", (48, 40)))
    (tmp_path / "album" / "été 1.txt").write_text("un été à la mer")
    place = tmp_path / "dossier d'été, 1"
    shutil.copytree(tmp_path / "album", place / "album")
    for path in [*(place / "album").iterdir(), place / "album"]:
        path.chmod(path.stat().st_mode & ~0o222)
    settings = ("workers=1", "samples_per_shard=4")
    plain = subprocess_of(tmp_path, *settings)
    other = subprocess_of(place, *settings, TZ="Asia/Kolkata", LC_ALL="C", LANG="C")
    (place / "album").chmod(0o755)
    assert plain == other
    assert len(plain) > 6


def subprocess_of(place: Path, *settings: str, **environment: str) -> dict[str, str]:
    before = os.umask(0o077 if environment else 0o022)
    try:
        process = start(place, *settings, **environment)
        _, errors = process.communicate(timeout=120)
    finally:
        os.umask(before)
    assert process.returncode == 0, errors
    assert not errors
    return contents(place / "out")


def test_parts_are_made_and_merged_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    album = write_album(tmp_path / "album")
    # Files that are called like sub-commands are nobody's business.
    for name in ("merge", "verify", "folder"):
        (tmp_path / name).write_text("")
    common = ["folder", f"path={album}", "workers=1", "samples_per_shard=5"]
    assert make([*common, "output=plain"], monkeypatch) == 0
    assert make([*common, "output=out", "--num-parts", "2", "--part", "1"], monkeypatch) == 0
    assert "part 1 of 2 of out is finished" in capsys.readouterr().out
    assert make(["merge", "out"], monkeypatch) == 2
    assert "part 0 of 2 is not finished" in capsys.readouterr().err
    assert make(["--part=0", *common, "--num-parts=2", "output=out"], monkeypatch) == 0
    assert make(["merge", "out"], monkeypatch) == 0
    assert "out now holds" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_a_data_set_is_verified_and_shown_and_tars_are_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    album = write_album(tmp_path / "album")
    assert make(["folder", f"path={album}", "output=out", "workers=1"], monkeypatch) == 0
    assert make(["verify", "out"], monkeypatch) == 0
    assert make(["inspect", "out", "--num", "2"], monkeypatch) == 0
    assert (tmp_path / "out/inspection/index.html").exists()
    shard = tmp_path / "out/train/000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    capsys.readouterr()
    assert make(["verify", "out"], monkeypatch) == 1
    said = capsys.readouterr().out
    assert "train/000000.tar" in said
    write_img2dataset(tmp_path / "tars")
    tars = sorted(map(str, (tmp_path / "tars").glob("*.tar")))
    before = contents(tmp_path / "tars")
    arguments = ["index", *tars, "output=indexed", "heldout.share=0.3", "caption=json.caption", "workers=1"]
    assert make(arguments, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "indexed now holds" in said and "00002" in said
    assert contents(tmp_path / "tars") == before
    assert make(["index", "tars", "workers=1"], monkeypatch) == 0
    assert "tars now holds" in capsys.readouterr().out


def test_what_is_said_of_tars_is_kept_in_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_img2dataset(tmp_path / "tars")
    recipe = {"kind": "tars", "paths": "tars", "description": "colours", "licence": "CC BY 4.0"}
    Path("colours.yaml").write_text(json.dumps(recipe))
    assert make(["./colours.yaml", "output=recipe", "workers=1"], monkeypatch) == 0
    said = ["description=colours of tars", "licence=CC0"]
    assert make(["index", "tars", "output=command", "workers=1", *said], monkeypatch) == 0
    kept = [json.loads(Path(name, "manifest.json").read_text())["recipe"] for name in ("recipe", "command")]
    assert [(one["name"], one["description"], one["licence"]) for one in kept] == [
        ("colours", "colours", "CC BY 4.0"),
        ("tars", "colours of tars", "CC0"),
    ]


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no path": (["folder"], "path has no default: say path=PATH"),
    "no folder": (["folder", "path=nowhere"], "nowhere does not exist"),
    "no captions": (["folder", "path=bare"], "no captions"),
    "empty folder": (["folder", "path=empty"], "holds no .jpg"),
    "typo in a setting": (["folder", "path=album", "heldut.share=1"], "heldut.share"),
    "typo in a step": (["folder", "path=album", "steps=[{step: resise}]"], "resise"),
    "typo in a step's key": (["folder", "path=album", "steps=[{step: resize, sise: 3}]"], "sise"),
    "wrong engine": (["folder", "path=album", "--engine", "dask"], "engine 'dask' is unknown"),
    "part alone": (["folder", "path=album", "--part", "1"], "--num-parts N and --part I belong together"),
    "part too large": (["folder", "path=album", "--part", "2", "--num-parts", "2"], "part 2 of 2 does not exist"),
    "unknown option": (["folder", "path=album", "--wrokers", "2"], "--wrokers"),
    "setting without a value": (["folder", "path=album", "limit"], "cannot read 'limit'"),
    "coco without annotations": (["coco", "images=album"], "give instances, captions or both"),
    "merge of nothing": (["merge", "empty"], "nothing to merge in empty"),
    "merge without a folder": (["merge"], "DIR"),
    "verify of nothing": (["verify", "nowhere"], "nowhere"),
    "inspect of nothing": (["inspect", "nowhere"], "nowhere"),
    "index of nothing": (["index", "nowhere/*.tar"], "nowhere"),
    "index of a picture": (["index", "album/000.jpg"], "is no tar"),
    "index with a typo": (["index", "tars", "heldout.shore=1"], "heldout.shore"),
    "parts of tars": (["img2dataset", "paths=tars", "--part", "0", "--num-parts", "2"], "in one go"),
    "truncated tar": (["img2dataset", "paths=cut.tar"], "cut.tar"),
    "output is a file": (["folder", "path=album", "output=file"], "file"),
    "output in use": (["folder", "path=album", "output=bare"], "bare is not empty"),
    "missing recipe": (["./other.yaml"], "there is no recipe ./other.yaml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_album(tmp_path / "album", 4)
    write_picture(tmp_path / "bare" / "a.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write_img2dataset(tmp_path / "tars")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "tars/00000.tar").read_bytes()[:5000])
    before = contents(tmp_path)
    arguments, said = MISTAKES[mistake]
    own = [] if arguments[0] in ("merge", "verify", "inspect") else ["workers=1"]
    assert make([*arguments, *own], monkeypatch) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1, shown.err
    assert said in shown.err
    assert shown.out == ""
    assert contents(tmp_path) == before


def test_help_names_the_recipes_and_the_sub_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(["--help"], monkeypatch) == 0
    said = capsys.readouterr().out
    assert all(f"  {path.stem} " in said for path in RECIPES.glob("*.yaml"))
    assert all(f"make_shards.py {name} " in said for name in ("merge", "verify", "inspect", "index", "codes"))
    assert "(path=PATH)" in said
