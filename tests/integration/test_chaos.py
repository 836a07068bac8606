"""tools/chaos.py: a short one of its kind, and that it notices what it is there to notice."""

import fcntl
import importlib
import importlib.util
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import save_tiny_releases

from mentor.errors import UserError
from mentor.training.checkpoint_files import read_state, write_checkpoint

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SHORT = ("trainer.max_steps=8", "loss.adversarial.discriminator.layers=2")


@pytest.fixture(scope="module")
def chaos() -> Iterator[ModuleType]:
    """The program as a module, with its parts beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        spec = importlib.util.spec_from_file_location("chaos_program", TOOLS / "chaos.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "chaos_program", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def comparing(chaos: ModuleType) -> ModuleType:
    return importlib.import_module("chaos.comparing")


@pytest.fixture(scope="module")
def killing(chaos: ModuleType) -> ModuleType:
    return importlib.import_module("chaos.killing")


def state() -> dict[str, Any]:
    """What a checkpoint may hold, in small."""
    moments = {"exp_avg": torch.tensor([1.0, float("nan"), 0.0]), "step": torch.tensor(3.0)}
    return {
        "global_step": 12,
        "state_dict": {"weight": torch.arange(6.0).view(2, 3)},
        "current_model_state": {"weight": torch.arange(6.0).view(2, 3) + 1},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 0.1}]}],
        "DataModule": {"consumed": 24},
        "callbacks": {"Guard": {"skipped": 0}},
        "loops": {"fit_loop": {"epoch_loop.val_loop.batch_progress": {"total": {"ready": 5}, "current": {"ready": 5}}}},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished run leaves, made by hand."""
    path = tmp_path_factory.mktemp("finished") / "run"
    for step in (9, 12):
        write_checkpoint(path / "checkpoints" / f"step-{step:07d}", state() | {"global_step": step}, {"seed": 0})
    save_tiny_releases(path / "releases")
    (path / "releases" / "model").rename(path / "release")
    shutil.rmtree(path / "releases")
    (path / "logs").mkdir()
    (path / "logs" / "metrics.csv").write_text("step,train/loss\n6,0.5\n12,0.25\n")
    (path / "samples").mkdir()
    Image.new("RGB", (8, 8), "red").save(path / "samples" / "0000012.png")
    (path / "summary.json").write_text(json.dumps({"status": "finished", "starts": 1, "seconds": 3.5, "step": 12}))
    return path


def flip_weight(run: Path) -> None:
    path = run / "release" / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name].view(torch.uint8).flatten()[0] ^= 1
    save_file(weights, path)


def flip_in_checkpoint(*path: Any) -> Callable[[Path], None]:
    def flip(run: Path) -> None:
        newest = run / "checkpoints" / "step-0000012"
        found = read_state(newest)
        shutil.rmtree(newest)
        *parents, last = path
        inner: Any = found
        for part in parents:
            inner = inner[part]
        if isinstance(inner[last], torch.Tensor):
            inner[last].view(torch.uint8).flatten()[0] ^= 1
        else:
            inner[last] += 1
        write_checkpoint(newest, found, {"seed": 0})

    return flip


def negative_zero(run: Path) -> None:
    newest = run / "checkpoints" / "step-0000012"
    found = read_state(newest)
    shutil.rmtree(newest)
    found["optimizer_states"][0]["state"][0]["exp_avg"][2] = -0.0
    write_checkpoint(newest, found, {"seed": 0})


def flip_byte(name: str, offset: int = -20) -> Callable[[Path], None]:
    def flip(run: Path) -> None:
        content = bytearray((run / name).read_bytes())
        content[offset] ^= 1
        (run / name).write_bytes(bytes(content))

    return flip


def replace_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def replace(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))

    return replace


def remove(name: str) -> Callable[[Path], None]:
    return lambda run: shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def leave_partial(run: Path) -> None:
    (run / "checkpoints" / "step-0000011.partial").mkdir()


# What differs, and what the line on it must say.
CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of a released weight": (flip_weight, r"release: model.safetensors \S+: 1 of \d+ numbers differ, by .*e-"),
    "a bit of a kept weight": (flip_in_checkpoint("state_dict", "weight"), r"checkpoint: state_dict.weight: 1 of 6 "),
    "a bit of an average": (flip_in_checkpoint("current_model_state", "weight"), "checkpoint: current_model_state"),
    "a bit of an optimizer's moment": (
        flip_in_checkpoint("optimizer_states", 0, "state", 0, "exp_avg"),
        r"checkpoint: optimizer_states.0.state.0.exp_avg: 1 of 3 numbers differ, by 1.19e-07 at most",
    ),
    "the sign of a zero": (negative_zero, "exp_avg: 1 of 3 numbers differ, by 0 at most"),
    "the place in the data": (flip_in_checkpoint("DataModule", "consumed"), "DataModule.consumed: 24 became 25"),
    "a guard's count": (flip_in_checkpoint("callbacks", "Guard", "skipped"), "skipped: 0 became 1"),
    "where a loop is": (
        flip_in_checkpoint("loops", "fit_loop", "epoch_loop.val_loop.batch_progress", "current", "ready"),
        "current.ready: 5 became 6",
    ),
    "a learning rate": (flip_in_checkpoint("optimizer_states", 0, "param_groups", 0, "lr"), "lr: 0.1 became 1.1"),
    "another last step": (remove("checkpoints/step-0000012"), "name: 'step-0000012' became 'step-0000009'"),
    "no checkpoint": (remove("checkpoints"), "checkpoint: state_dict.weight is missing"),
    "a damaged checkpoint": (flip_byte("checkpoints/step-0000012/state.ckpt"), "checkpoint: cannot be read .*state"),
    "a setting of the release": (
        replace_text("release/config.json", '"steps": 3', '"steps": 4'),
        "release: config.json training.steps: 3 became 4",
    ),
    "the card": (flip_byte("release/README.md"), "release: README.md: other bytes"),
    "no release": (remove("release"), "release: .* is missing"),
    "a row of the logs": (
        replace_text("logs/metrics.csv", "0.25", "0.26"),
        "logs: step 12 train/loss: '0.25' became '0.26'",
    ),
    "a row too few": (replace_text("logs/metrics.csv", "6,0.5\n", ""), "logs: step 6 train/loss is missing"),
    "a sample grid": (flip_byte("samples/0000012.png"), "samples: 0000012.png: other bytes"),
    "no sample grid": (remove("samples/0000012.png"), "samples: 0000012.png is missing"),
    "a sample grid too many": (
        lambda run: shutil.copy(run / "samples" / "0000012.png", run / "samples" / "0000013.png"),
        "samples: 0000013.png is new",
    ),
    "the summary": (replace_text("summary.json", '"step": 12', '"step": 11'), "summary: step: 12 became 11"),
    "something half-written": (leave_partial, "left behind: checkpoints/step-0000011.partial"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_of_one_bit_is_named_and_counts(
    chaos: ModuleType,
    comparing: ModuleType,
    run: Path,
    tmp_path: Path,
    change: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, says = CHANGES[change]
    other = Path(shutil.copytree(run, tmp_path / "run"))
    spoil(other)
    done = chaos.Round(1, tmp_path, ["after 1.0 s at step 3 (training)"], 2.0, comparing.compare_runs(run, other))
    chaos.tell(done)
    assert chaos.conclude([done]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "0 of 1 bit-identical"
    assert any(re.search(says, line) for line in done.differences), said


def test_runs_that_differ_in_time_starts_and_counted_validation_batches_alone_are_alike(
    chaos: ModuleType, comparing: ModuleType, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    (other / "summary.json").write_text(json.dumps({"status": "finished", "starts": 3, "seconds": 9.0, "step": 12}))
    flip_in_checkpoint("loops", "fit_loop", "epoch_loop.val_loop.batch_progress", "total", "ready")(other)
    differences = comparing.compare_runs(run, other)
    assert differences == []
    assert chaos.conclude([chaos.Round(1, tmp_path, [], 1.0, differences)]) == 0
    assert capsys.readouterr().out == "1 of 1 bit-identical\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_of_every_layout_are_compared(comparing: ModuleType, dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(4, 6).to(dtype)
    layouts = [tensor, tensor.T, tensor[:, :1], tensor[:1, ::2], tensor[0, 0], tensor[:0], tensor.expand(2, 4, 6)]
    layouts.append(torch.as_strided(tensor, (1,), (8,)))
    for layout in layouts:
        assert comparing.describe(layout, layout.clone()) == ""
        if layout.numel():
            different = layout.clone(memory_format=torch.contiguous_format)
            different.view(-1)[-1] = 0 if different.view(-1)[-1] else 1
            assert comparing.describe(layout, different).startswith(f"1 of {layout.numel()} numbers differ")


def test_an_undisturbed_run_without_a_part_agrees_with_nothing(comparing: ModuleType, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    lines = comparing.compare_runs(tmp_path / "one", tmp_path / "other")
    assert len(lines) == len(comparing.PARTS)


# Stands for a training: takes a while, writes a run folder, goes on when it is started again.
PROGRAM = """
import shutil, sys, time
from pathlib import Path
sound, faulty = Path(sys.argv[1]), sys.argv[2]
run = Path("run")
again = run.is_dir()
run.mkdir(exist_ok=True)
print("training for 12 steps", flush=True)
time.sleep(0.3)
if again and faulty == "hangs":
    time.sleep(60)
if again and faulty == "fails":
    print("error: it broke", file=sys.stderr)
    sys.exit(3)
shutil.copytree(sound, run, dirs_exist_ok=True)
if again and faulty == "differs":
    (run / "logs" / "metrics.csv").write_text("step,train/loss\\n6,0.5\\n12,0.75\\n")
"""


def rounds_of(chaos: ModuleType, tmp_path: Path, run: Path, faulty: str, kills: int) -> list[Any]:
    """Rounds of the stand-in instead of a training."""
    config = chaos.ChaosConfig(kills=kills, output=str(tmp_path), stage="tokenizer")
    with chaos.Commands() as commands:
        made = chaos.Chaos(config, [], commands)
        made.command = ["-c", PROGRAM, str(run), faulty]
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "manifest.json").touch()
        assert 0.3 < made.prepare() < 10
        made._moment = lambda run, number, rng: lambda seconds: run.is_dir()
        return [made.round(number + 1) for number in range(kills)]


def test_rounds_that_go_on_as_they_should_are_alike_and_leave_nothing(
    chaos: ModuleType, run: Path, tmp_path: Path
) -> None:
    rounds = rounds_of(chaos, tmp_path, run, "no", 3)
    assert [one.differences for one in rounds] == [[], [], []]
    assert [len(one.kills) > 0 for one in rounds] == [True, True, True]
    assert [path.name for path in (tmp_path / "stage-tokenizer").iterdir()] == ["undisturbed"]


def test_a_round_that_ends_otherwise_is_told_and_kept(chaos: ModuleType, run: Path, tmp_path: Path) -> None:
    (done,) = rounds_of(chaos, tmp_path, run, "differs", 1)
    assert done.differences == ["logs: step 12 train/loss: '0.25' became '0.75'"]
    assert (done.folder / "run" / "logs" / "metrics.csv").is_file()


def test_a_training_that_cannot_go_on_is_told_with_its_last_line(chaos: ModuleType, run: Path, tmp_path: Path) -> None:
    (done,) = rounds_of(chaos, tmp_path, run, "fails", 1)
    assert done.differences == ["killed and started again, it ended with 3: error: it broke"]


def test_a_training_that_is_stuck_is_told(chaos: ModuleType, run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(chaos.Chaos, "_limit", 2.0)
    (done,) = rounds_of(chaos, tmp_path, run, "hangs", 1)
    assert done.differences == ["killed and started again, it did not end within 2 s"]


def test_a_training_that_fails_by_itself_ends_all(chaos: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ended with 1 without .*/undisturbed.log: FileNotFoundError"):
        rounds_of(chaos, tmp_path, tmp_path / "missing", "no", 1)


def test_a_killed_command_takes_its_children_along(killing: ModuleType, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "open('child', 'w').write(str(child.pid)); time.sleep(60)"
    )
    with killing.Commands() as commands:
        written = tmp_path / "child"
        ended = commands.run(
            ["-c", code], tmp_path, tmp_path / "log", lambda _: written.is_file() and written.read_text()
        )
    assert ended is None
    stat = Path(f"/proc/{written.read_text()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_commands_are_killed_when_the_program_ends(killing: ModuleType, tmp_path: Path) -> None:
    started = time.monotonic()

    def interrupt(seconds: float) -> bool:
        if seconds > 0.1:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt), killing.Commands() as commands:
        commands.run(["-c", "import time; time.sleep(60)"], tmp_path, tmp_path / "log", interrupt)
    assert time.monotonic() - started < 30


def test_aiming_at_the_writing_of_files_waits_for_the_right_one(killing: ModuleType, tmp_path: Path) -> None:
    due = killing.Writing(tmp_path / "checkpoints", ".partial", 2, 0.5)
    partial = tmp_path / "checkpoints" / "step-0000003.partial"
    assert not due(1.0)
    partial.mkdir(parents=True)
    assert not due(2.0) and not due(3.0)
    partial.rmdir()
    assert not due(4.0)
    partial.mkdir()
    assert not due(5.0) and not due(5.4)
    assert due(5.6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "kills: must be given; output: must be given"),
        (("kills=0", "output=out"), "kills: '0' is wrong, it should be greater than or equal to 1"),
        (("kills=many", "output=out"), "kills: 'many' is wrong"),
        (("kill=3", "output=out"), "kill: unknown key (did you mean kills?)"),
        (("kills=1", "output=out", "stage=3"), "stage: '3' is wrong"),
        (("kills=1", "output=out", "workers"), "cannot read 'workers': write settings as key=value"),
        (("kills=1", "output=out", "run.dir=elsewhere"), "run.dir is set by chaos.py"),
        (("kills=1", "output=out", "trainer.max_step=3"), "trainer.max_step: unknown key (did you mean max_steps"),
        (("kills=1", "output=full"), "output full holds other files: choose a new folder"),
        (("kills=1", "output=file/x"), "file is a file"),
        (("kills=1", "output=busy"), "output busy is in use by another chaos.py"),
    ],
)
def test_bad_input_is_refused_on_one_line_and_nothing_is_made(
    chaos: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    for name in ("full/mine.txt", "file"):
        (tmp_path / name).touch()
    (tmp_path / "busy").mkdir()
    monkeypatch.setattr(sys, "argv", ["chaos.py", *arguments])
    before = sorted(tmp_path.rglob("*"))
    with (tmp_path / "busy" / "chaos.json").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SystemExit) as ended:
            chaos.run_main(chaos.main)
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert says in said.err
    (tmp_path / "busy" / "chaos.json").unlink()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.timeout(600)
def test_a_tokenizer_killed_at_random_and_while_writing_ends_bit_identical(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    ended = command(
        "tools/chaos.py",
        "kills=2",
        f"output={tmp_path}/out",
        "stage=tokenizer",
        "workers=2",
        *SHORT,
        cwd=tmp_path,
        timeout=580,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "2 of 2 bit-identical"
    assert ended.stdout.count("killed after") == 2
