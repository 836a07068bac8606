"""tools/compare.py: two small trainings compared by the real command, refusals, and the paths of an experiment."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from commandline import check_refusal, run_here
from comparable import make_run
from PIL import Image

from mentor.config import compose, validate
from mentor.training.config import TrainConfig

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TRAIN = ("-m", "mentor.train", "experiment=test", "trainer.max_steps=4", "trainer.validate_every=0")
QUICK = ("--counts", "4", "--curve-counts", "2", "--pictures", "2", "--batch", "2")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module; what it imports from its folder is found, as when it is run."""
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("compare_program", TOOLS / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_program", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shapes: Path, command: Callable) -> Path:
    """A folder in which two models were trained, one of them in two stages."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "data").mkdir()
    (folder / "data" / "shapes").symlink_to(shapes)
    kept = "trainer.checkpoint_every=2"
    for arguments in (
        ("stage=tokenizer",),
        ("stage=1", "run.dir=runs/test/short/1", kept),
        ("stage=1", "run.dir=runs/test/long/1", "seed=1", kept),
        ("stage=2", "run.dir=runs/test/long/2", "init_from=runs/test/long/1/release"),
    ):
        ended = command(*TRAIN, *arguments, cwd=folder)
        assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.slow
def test_two_runs_from_end_to_end(place: Path, command: Callable) -> None:
    runs = ("--runs", "runs/test/short/1", "long=runs/test/long/2")
    ended = command("tools/compare.py", *runs, "--output", "out", "--seeds", "0", "1", *QUICK, cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert "The runs differ in samples seen by 100 %, more than 10 %: 1 32, long 64." in ended.stdout
    assert "| measure | 1 | long |" in ended.stdout
    assert "comparison: out/compare.html" in ended.stdout
    found = json.loads((place / "out" / "compare.json").read_text())
    assert list(found["runs"]) == ["1", "long"]
    assert found["ratios"]["samples seen"] == {"1": 1.0, "long": 2.0}
    assert "stage tokenizer" in found["runs"]["long"]["facts"]["image tokenizer's training, not counted"]
    for key in ("reconstruct/psnr", "segment/iou", "text_to_image/prompt_following", "recover/psnr_gain"):
        for run in ("1", "long"):
            score = found["measures"][key][run]
            assert score["interval"][0] <= score["value"] <= score["interval"][1]
            assert len(score["seeds"]) == 2
            assert score["value"] == pytest.approx(np.mean(score["seeds"]), abs=1e-4)
    assert found["first_run_beside"]["recover/psnr_gain_nothing"] == 0
    assert all(seconds > 0 for run in found["seconds_per_picture"].values() for seconds in run.values())
    labels = [point["label"] for point in found["quality_over_training"]["long"]]
    assert labels[0] == "stage 1, step 2"
    assert "stage 1, release after step 4" in labels
    assert labels[-1] == "stage 2, release after step 4"
    seconds = [point["seconds"] for point in found["quality_over_training"]["long"]]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(found["runs"]["long"]["seconds"])
    sampled = found["quality_over_sampling"]["1"]
    assert [point["changes"] for point in sampled] == [{}, {"guidance": 1.0}, {"speculative": 8}]
    assert all(point["refused"] == "" and point["seconds"] > 0 for point in sampled)
    page = (place / "out" / "compare.html").read_text()
    assert 'src="http' not in page
    assert page.count("<figure>") == 5 * 2 * 3 + 4 * 2
    with Image.open(place / "out" / "pictures.png") as sheet:
        assert sheet.width > 900
    assert (place / "out" / "compare.md").read_text() in ended.stdout


@pytest.mark.slow
def test_other_data_than_the_runs_are_refused(place: Path, command: Callable) -> None:
    made = command(
        "tools/make_shards.py", "shapes", "output=other", "limit=60", "samples_per_shard=20", "workers=1", cwd=place
    )
    assert made.returncode == 0, made.stderr
    runs = ("--runs", "runs/test/short/1", "runs/test/long/1")
    ended = command("tools/compare.py", *runs, "--output", "refused", "--data", "other", cwd=place)
    prints = [
        json.loads((place / name / "manifest.json").read_text())["fingerprint"] for name in ("data/shapes", "other")
    ]
    check_refusal(ended.returncode, ended.stderr, prints)
    assert not (place / "refused").exists()


def refusal(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    monkeypatch.syspath_prepend(str(TOOLS))
    code = run_here(["tools/compare.py", *arguments], monkeypatch)
    said = capsys.readouterr().err
    check_refusal(code, said, [])
    return said


def test_runs_of_different_data_name_both_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    runs = [str(make_run(tmp_path / "a", data="1" * 64)), str(make_run(tmp_path / "b", data="2" * 64))]
    said = refusal(("--runs", *runs, "--output", str(tmp_path / "out")), monkeypatch, capsys)
    assert f"a on {'1' * 64}, b on {'2' * 64}" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say either --runs with finished trainings, or experiment=NAME"),
        (("--runs", "a", "b", "--experiment", "test"), "say either --runs"),
        (("--runs", "a", "b"), "say --output DIR"),
        (("--runs", "a", "b", "--output", "out", "--seeds", "x"), "invalid int value: 'x'"),
        (("--runs", "a", "--output", "out", "counts.subject=3"), "at least two runs, found 1"),
        (("--runs", "a", "b", "--output", "out", "seed=3"), "use --seeds"),
    ],
)
def test_refused_command_lines(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert words in refusal(arguments, monkeypatch, capsys)


def test_settings_may_stand_anywhere(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "counts.subject=3",
        "--runs",
        "a",
        "name=b",
        "batch_size=4",
        "--output",
        "o",
        "--seeds",
        "5",
        "precision=bf16",
    )
    monkeypatch.setattr(sys, "argv", ["compare.py", *line])
    options = program.read_options()
    assert options.runs == ["a", "name=b"]
    assert options.settings == ["counts.subject=3", "batch_size=4", "precision=bf16"]
    assert options.seeds == [5]


def test_an_experiment_is_named_either_way(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (["experiment=mine", "--counts", "8"], ["--experiment", "mine", "--counts", "8"]):
        monkeypatch.setattr(sys, "argv", ["compare.py", *line])
        options = program.read_options()
        assert (options.experiment, options.output) == ("mine", Path("runs/mine/comparison"))
        assert program.told(options)[:2] == ["--output", "runs/mine/comparison"]
        assert "--counts 8" in " ".join(program.told(options))


def test_phases_of_an_experiment_are_public_commands(program: ModuleType) -> None:
    phases = program.make_phases("compare_demo", "emoji", ["--output", "out"])
    titles = [phase.title for phase in phases]
    assert titles[:4] == ["shards", "image tokenizer", "ar, stage 1", "ar, stage 2"]
    assert titles[-1] == "comparison"
    assert len(set(titles)) == len(phases) == 3 + sum(len(way.trainings) for way in program.PATHS)
    commands = {phase.title: phase.command() for phase in phases}
    assert commands["diffusion, stage diffusion_2"][2:6] == (
        "stage=diffusion_2",
        "experiment=compare_demo",
        "run.dir=runs/compare_demo/diffusion/diffusion_2",
        "init_from=runs/compare_demo/diffusion/diffusion/release",
    )
    assert "masked=runs/compare_demo/masked/2" in commands["comparison"]
    for title, (first, *rest) in commands.items():
        if first == "-m":
            config = compose("train", rest[1:])
            assert validate(TrainConfig, config).name == "compare_demo", title


def test_updates_are_said_where_a_path_has_its_own(program: ModuleType) -> None:
    way = program.Way("x", (program.Training("1", ("head=dit",), 70), program.Training("2", (), 30)))
    first, second = program.train_commands(way, "test")
    assert first[-2:] == ("trainer.max_steps=70", "head=dit")
    assert second[-2:] == ("init_from=runs/test/x/1/release", "trainer.max_steps=30")


def test_a_finished_experiment_says_so(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []

    def pretend(phase: object, progress: object, console: object) -> None:
        ran.append(phase.title)
        progress.add(phase.title, 61.0)
        progress.finish(phase.title)
        if phase.title == "comparison":
            out = tmp_path / "runs" / "mine" / "comparison"
            out.mkdir(parents=True)
            (out / "compare.json").write_text('{"warnings": ["The runs differ."]}')
            (out / "compare.md").write_text("| the table |\n")

    monkeypatch.setattr(program, "run_phase", pretend)
    monkeypatch.setattr(sys, "argv", ["compare.py", "experiment=mine"])
    program.main()
    said = capsys.readouterr().out
    assert len(ran) == 11
    assert "The runs differ." in said
    assert "11 min 11 s" in said
    program.main()
    said = capsys.readouterr().out
    assert len(ran) == 11
    assert "Finished earlier" in said
    assert "| the table |" in said
