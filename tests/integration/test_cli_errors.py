"""Every mistake at the command line ends in one clear line on stderr, exit code 2, and leaves nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import ROOT, check_refusal, run_here
from PIL import Image
from tiny import save_tiny_releases

# Enough training to have a run folder, as little as there can be.
SHORT = ("experiment=test", "trainer.max_steps=2", "ema=null", "trainer.validate_every=0", "data.workers=0")


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the releases `tokenizer` and `model`, both untrained and very small."""
    return save_tiny_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture
def place(tmp_path: Path, shapes: Path, releases: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: sound shards, releases and a picture, and a file where some would want a folder."""
    shutil.copytree(shapes, tmp_path / "data" / "shapes")
    shutil.copytree(releases, tmp_path / "releases")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nothing(place: Path) -> None:
    """No further damage to the working folder."""


def no_manifest(place: Path) -> None:
    shutil.rmtree(place / "data" / "shapes")
    (place / "data" / "shapes").mkdir()


def empty_shards(place: Path) -> None:
    path = place / "data" / "shapes" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"files": [], "samples": {"train": 0, "heldout": 0}}))


def lost_shard(place: Path) -> None:
    (place / "data" / "shapes" / "train" / "000000.tar").unlink()


def corrupt_images(place: Path) -> None:
    """Spoil the pixels of every picture in every shard; sizes stay."""
    for path in (place / "data" / "shapes").rglob("*.tar"):
        content = bytearray(path.read_bytes())
        start = content.find(b"IDAT")
        while start >= 0:
            content[start + 4 : start + 24] = bytes(20)
            start = content.find(b"IDAT", start + 4)
        path.write_bytes(content)


def corrupt_picture(place: Path) -> None:
    whole = (place / "red.png").read_bytes()
    (place / "red.png").write_bytes(whole[: len(whole) // 2])


def recipe_without_records(place: Path) -> None:
    text = (ROOT / "data_recipes" / "shapes.yaml").read_text()
    lines = ["  train: 0" if line.startswith("  train:") else line for line in text.splitlines()]
    lines = ["  heldout: 0" if line.startswith("  heldout: 2") else line for line in lines]
    (place / "none.yaml").write_text("\n".join(lines))


def damaged_weights(place: Path) -> None:
    weights = place / "releases" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def no_guidance(place: Path) -> None:
    path = place / "releases" / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"training": {"null_condition_trained": False}}))


def prompts(*lines: str) -> Callable[[Path], None]:
    """Damage that is a prompt file of these lines."""

    def write(place: Path) -> None:
        (place / "prompts.jsonl").write_text("\n".join(lines))

    return write


def no_guidance_for_a_line(place: Path) -> None:
    no_guidance(place)
    prompts('{"prompt": "a", "guidance": 2}')(place)


def another_job(place: Path) -> None:
    prompts('{"prompt": "a circle"}')(place)
    (place / "out").mkdir()
    job = {"format": "mentor batch job", "version": 1, "prompts": "0", "seeds": "0", "sampling": "0"}
    (place / "out" / "job.json").write_text(json.dumps(job | {"model": "0123456789abcdef", "precision": "fp32"}))


SHARDS = ("tools/make_shards.py",)
TRAIN = ("-m", "mentor.train")
TOKENIZER = (*TRAIN, "stage=tokenizer", *SHORT)
STAGE1 = (*TRAIN, "stage=1", *SHORT, "image_tokenizer_from=releases/tokenizer")
DRAW = ("-m", "mentor.generate", "--model", "releases/model", "--output", "out")
BATCH = (*DRAW, "--prompts", "prompts.jsonl")
EVALUATE = ("-m", "mentor.evaluate")
SOUND = ("model=releases/model", "data=data/shapes", "output=out")

# What goes wrong, the damage done before, the command, and what its one line must name.
MISTAKES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "unknown stage": (nothing, (*TRAIN, "stage=3", *SHORT), ("stage=3", "tokenizer", "1, 2")),
    "no stage": (nothing, TRAIN, ("stage", "tokenizer")),
    "unknown experiment": (nothing, (*TRAIN, "stage=1", "experiment=dmeo"), ("dmeo", "demo")),
    "typo in a training key": (nothing, (*TOKENIZER, "optimizer.lrr=1"), ("optimizer.lrr", "optimizer.lr")),
    "typo in a training group": (nothing, (*TOKENIZER, "image_tokenizer=vqq"), ("vqq", "f16")),
    "wrong type of a training value": (nothing, (*TOKENIZER, "trainer.max_steps=many"), ("trainer.max_steps", "many")),
    "override without a value": (nothing, (*TRAIN, "stage=1", "seed"), ("seed", "key=value")),
    "unknown task in the mixture": (nothing, (*TOKENIZER, "+data.mixture.paint=1"), ("paint", "segment")),
    "typo in an evaluation key": (nothing, (*EVALUATE, *SOUND, "modle=x"), ("modle", "model")),
    "typo in a recipe key": (nothing, (*SHARDS, "shapes", "scenes.trian=1"), ("scenes.trian", "scenes.train")),
    "typo in an option of generate": (nothing, (*DRAW, "a circle", "--guidence", "2"), ("--guidence",)),
    "wrong type of an option of generate": (nothing, (*DRAW, "a circle", "--num-images", "x"), ("--num-images", "x")),
    "missing shards in training": (nothing, (*TOKENIZER, "data.root=data/none"), ("data/none", "make_shards.py")),
    "missing shards in evaluation": (nothing, (*EVALUATE, *SOUND, "data=data/none"), ("data/none", "make_shards.py")),
    "folder without manifest": (no_manifest, TOKENIZER, ("data/shapes", "make_shards.py")),
    "empty shards in training": (empty_shards, TOKENIZER, ("data/shapes", "make_shards.py")),
    "empty shards in evaluation": (empty_shards, (*EVALUATE, *SOUND), ("data/shapes", "make_shards.py")),
    "lost shard": (lost_shard, TOKENIZER, ("000000.tar", "make_shards.py")),
    "no recipe": (nothing, SHARDS, ("RECIPE",)),
    "unknown recipe": (nothing, (*SHARDS, "shaeps"), ("shaeps", "shapes")),
    "recipe file that is missing": (nothing, (*SHARDS, "other/mine.yaml"), ("other/mine.yaml",)),
    "recipe without records": (recipe_without_records, (*SHARDS, "./none.yaml", "output=out"), ("record",)),
    "limit of no records": (nothing, (*SHARDS, "shapes", "limit=0", "output=out"), ("limit",)),
    "corrupt image in a shard, evaluation": (corrupt_images, (*EVALUATE, *SOUND), (".tar", "damaged")),
    "corrupt reference image": (corrupt_picture, (*DRAW, "<image>", "--image", "red.png"), ("red.png",)),
    "missing reference image": (nothing, (*DRAW, "<image>", "--image", "blue.png"), ("blue.png",)),
    "more marks than images": (nothing, (*DRAW, "<image> on <image>", "--image", "red.png"), ("2", "1", "<image>")),
    "fewer marks than images": (nothing, (*DRAW, "a circle", "--image", "red.png"), ("0", "1", "<image>")),
    "no prompt": (nothing, DRAW, ("prompt",)),
    "prompt that does not fit": (nothing, (*DRAW, "word " * 2000), ("2",)),
    "guidance out of range": (nothing, (*DRAW, "a circle", "--guidance", "-1"), ("guidance",)),
    "temperature below 0": (nothing, (*DRAW, "a circle", "--temperature", "-0.1"), ("temperature -0.1", "greedy")),
    "temperature that is no number": (nothing, (*DRAW, "a circle", "--temperature", "nan"), ("temperature nan",)),
    "top-p of 0": (nothing, (*DRAW, "a circle", "--top-p", "0"), ("top_p 0.0", "at most 1")),
    "top-p above 1": (nothing, (*DRAW, "a circle", "--top-p", "1.5"), ("top_p 1.5", "at most 1")),
    "top-k below 0": (nothing, (*DRAW, "a circle", "--top-k", "-1"), ("top_k -1", "all tokens")),
    "seed below 0": (nothing, (*DRAW, "a circle", "--seed", "-1"), ("seed -1",)),
    "no batch": (nothing, (*DRAW, "a circle", "--batch-size", "0"), ("batch_size 0", "at least 1")),
    "speculative below 0": (nothing, (*DRAW, "a circle", "--speculative", "-1"), ("speculative -1", "0 (off)")),
    "unknown precision": (nothing, (*DRAW, "a circle", "--precision", "fp8"), ("--precision", "fp8", "bf16")),
    "guidance of a model never trained for it": (
        no_guidance,
        (*DRAW, "a circle", "--guidance", "3"),
        ("guidance 3", "releases/model", "objective.guidance.everything=0", "take guidance 1"),
    ),
    "missing prompt file": (nothing, BATCH, ("prompts.jsonl", "No such file")),
    "prompt file without lines": (prompts("", ""), BATCH, ("prompts.jsonl", "has no line")),
    "prompt line that is no JSON": (
        prompts('{"prompt": "a"}', "", "a circle"),
        BATCH,
        ("prompts.jsonl line 3: is not JSON", "column 1"),
    ),
    "typo in a prompt line": (prompts('{"prompts": "a"}'), BATCH, ("prompts.jsonl line 1: ", "prompts", "prompt")),
    "missing image of a prompt line": (
        prompts('{"prompt": "a"}', '{"prompt": "<image>", "images": ["blue.png"]}'),
        BATCH,
        ("prompts.jsonl line 2: no image file", "blue.png"),
    ),
    "corrupt image of a prompt line": (
        prompts('{"prompt": "<image>", "images": ["file"]}'),
        BATCH,
        ("prompts.jsonl line 1: ", "file", "PNG"),
    ),
    "prompt lines of one name": (
        prompts('{"prompt": "a", "name": "x"}', '{"prompt": "b", "name": "x"}'),
        BATCH,
        ("prompts.jsonl line 2: ", "x", "line 1"),
    ),
    "prompt line that does not fit": (
        prompts(json.dumps({"prompt": "word " * 2000})),
        BATCH,
        ("prompts.jsonl line 1: ", "prefix tokens"),
    ),
    "guidance of a line and a model never trained for it": (
        no_guidance_for_a_line,
        (*BATCH, "--guidance", "1"),
        ("prompts.jsonl line 1: guidance 2",),
    ),
    "prompts and a prompt": (nothing, (*BATCH, "a circle", "--grid"), ("--prompts", "a prompt, --grid")),
    "prompts and a number of pictures": (nothing, (*BATCH, "--num-images", "2"), ("--prompts", "--num-images")),
    "prompts and an image": (nothing, (*BATCH, "--image", "red.png"), ("--prompts", "--image")),
    "prompts and a picture to make again": (nothing, (*BATCH, "--from-png", "x.png"), ("--prompts", "--from-png")),
    "prompts without a model": (nothing, (*DRAW[:2], "--prompts", "prompts.jsonl"), ("--prompts", "--model")),
    "the folder of another job": (another_job, BATCH, ("out holds another job", "prompts", "model", "--output")),
    "output of shards under a file": (nothing, (*SHARDS, "shapes", "limit=20", "output=file/x"), ("file/x",)),
    "output of training under a file": (nothing, (*TOKENIZER, "run.dir=file/x"), ("file/x",)),
    "output of generate under a file": (nothing, (*DRAW[:-1], "file/x", "a circle"), ("file/x",)),
    "output of evaluate under a file": (nothing, (*EVALUATE, *SOUND[:-1], "output=file/x"), ("file/x",)),
    "shards over something else": (nothing, (*SHARDS, "shapes", "limit=20", "output=releases"), ("releases",)),
    "shards over those of other settings": (nothing, (*SHARDS, "shapes", "limit=20"), ("data/shapes",)),
    "generate from no release": (nothing, (*DRAW, "a circle", "--model", "data"), ("data", "release")),
    "generate from a missing folder": (nothing, (*DRAW, "a circle", "--model", "none"), ("none", "release")),
    "generate from an image tokenizer": (nothing, (*DRAW, "a", "--model", "releases/tokenizer"), ("tokenizer",)),
    "generate compiled on the CPU": (nothing, (*DRAW, "a circle", "--compile"), ("GPU", "--compile", "--device cuda")),
    "generate from damaged weights": (damaged_weights, (*DRAW, "a circle"), ("model.safetensors",)),
    "generate from a picture without record": (
        nothing,
        ("-m", "mentor.generate", "--from-png", "red.png"),
        ("red.png",),
    ),
    "evaluate no release": (nothing, (*EVALUATE, *SOUND, "model=data"), ("data", "release")),
    "evaluate without a model": (nothing, (*EVALUATE, *SOUND[1:]), ("model",)),
    "stage 1 without image tokenizer": (nothing, (*TRAIN, "stage=1", *SHORT), ("runs/test/tokenizer/release",)),
    "stage 1 from a folder that is no release": (nothing, (*STAGE1, "image_tokenizer_from=data"), ("data", "release")),
    "stage 2 without stage 1": (nothing, (*TRAIN, "stage=2", *SHORT), ("runs/test/1/release",)),
    "stage 2 from an image tokenizer": (
        nothing,
        (*TRAIN, "stage=2", *SHORT, "init_from=releases/tokenizer"),
        ("tokenizer",),
    ),
    "frozen pattern without match": (nothing, (*STAGE1, "freeze=[nothing.*]"), ("nothing.*",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    damage, arguments, said = MISTAKES[mistake]
    damage(place)
    before = set(place.rglob("*"))
    code = run_here(arguments, monkeypatch)
    check_refusal(code, capfd.readouterr().err, said)
    assert {path for path in place.rglob("*") if path.is_file()} <= before, "files were left behind"


@pytest.mark.parametrize(
    "mistake", ["unknown stage", "unknown recipe", "more marks than images", "evaluate no release"]
)
def test_mistake_in_a_process_of_its_own(mistake: str, place: Path, command: Callable) -> None:
    _, arguments, said = MISTAKES[mistake]
    ended = command(*arguments, cwd=place)
    check_refusal(ended.returncode, ended.stderr, said)
    assert ended.stdout == ""


def test_corrupt_image_met_in_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Found on the way, so lines about progress come before the one about the mistake."""
    corrupt_images(place)
    code = run_here(TOKENIZER, monkeypatch)
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("test tokenizer: ") for line in lines[:-1]), lines
    check_refusal(code, lines[-1], (".tar", "damaged", "train-"))
    assert not list(place.rglob("release"))
    assert not list(place.rglob("*.partial"))


def test_run_folder_of_another_experiment(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_here((*TOKENIZER, "run.dir=runs/mine"), monkeypatch) == 0
    capfd.readouterr()
    kept = {path: path.read_bytes() for path in (place / "runs").rglob("*") if path.is_file()}
    code = run_here((*TOKENIZER, "run.dir=runs/mine", "seed=5"), monkeypatch)
    check_refusal(code, capfd.readouterr().err, ("runs/mine", "seed"))
    assert {path: path.read_bytes() for path in (place / "runs").rglob("*") if path.is_file()} == kept


def test_a_folder_that_may_not_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    locked = place / "locked"
    locked.mkdir(mode=0o500)
    allowed = os.access
    if allowed(locked, os.W_OK):  # root may: the answer to anybody else in its place
        monkeypatch.setattr(os, "access", lambda path, *mode: Path(path).absolute() != locked and allowed(path, *mode))
    code = run_here((*DRAW[:-1], "locked/x", "a circle"), monkeypatch)
    check_refusal(code, capfd.readouterr().err, ("locked/x", "no permission"))
    assert list(locked.iterdir()) == []


@pytest.mark.parametrize("program", ["train", "generate", "evaluate"])
def test_a_reader_that_went_away_ends_the_program_without_a_word(program: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", f"mentor.{program}", "--help"]
    ended = subprocess.run(arguments, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert ended.stderr == b""
    assert ended.returncode in (0, 128 + signal.SIGPIPE)  # argparse prints its help as far as it gets and is content
