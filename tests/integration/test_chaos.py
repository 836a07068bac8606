"""tools/chaos.py: its rounds, how it kills, what it refuses, and a short one of its kind."""

import fcntl
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mentor.errors import UserError

SHORT = ("trainer.max_steps=8", "loss.adversarial.discriminator.layers=2")


@pytest.fixture(scope="module")
def killing(chaos: ModuleType) -> ModuleType:
    return importlib.import_module("chaos.killing")


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
