"""What a signal does in each phase of a run, and that a process that cannot listen ends all the same."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import ROOT
from runs import differing, newest

from mentor.training import checkpoint_files, run
from mentor.training.config import TrainConfig
from mentor.training.generator_module import GeneratorModule
from mentor.training.run import train

Settings = Callable[..., TrainConfig]

PROGRAM = """
import ctypes, sys, time
from mentor.training.signals import Phase, StopSignals
sleep = ctypes.PyDLL(None).sleep if sys.argv[2] == "deaf" else time.sleep
signals = StopSignals(say=lambda line: print(line, flush=True))
with signals.listening():
    signals.enter(Phase[sys.argv[1]])
    print("ready", flush=True)
    for _ in range(600):
        sleep(1)
"""


def program(phase: str, how: str = "hears") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, phase, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str, float]:
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    return process.returncode, output, time.monotonic() - began


@pytest.mark.fault(5)
def test_where_nothing_is_lost_a_signal_ends_the_process_at_once() -> None:
    process = program("EXPENDABLE")
    process.send_signal(signal.SIGTERM)
    code, _, seconds = end(process)
    assert code == 143
    assert seconds < 4


@pytest.mark.fault(5)
def test_in_training_the_first_is_kept_for_later_and_a_second_ends_at_once() -> None:
    process = program("TRAINING")
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # passed on by a terminal and by a launcher: the same one
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, output, seconds = end(process)
    assert code == 143
    assert seconds < 2
    assert "a second signal" in output


@pytest.mark.fault(5)
def test_a_process_that_waits_inside_a_library_ends_all_the_same() -> None:
    process = program("TRAINING", "deaf")
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
    code, output, _ = end(process)
    assert code == 143
    assert "a second signal" in output


@pytest.mark.fault(5)
@pytest.mark.parametrize(
    ("owner", "name", "step"),
    [
        (run, "build_module", None),
        (GeneratorModule, "on_train_start", None),
        (GeneratorModule, "training_step", 4),
        (GeneratorModule, "optimizer_step", 4),
        (GeneratorModule, "write_row", 4),
        (GeneratorModule, "validation_step", 4),
        (checkpoint_files, "finish", 4),
        (run, "write_release", 6),
    ],
)
def test_a_signal_in_any_phase_loses_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, step: int | None
) -> None:
    changes = ("trainer.max_steps=6", "trainer.validate_every=2", "trainer.checkpoint_every=2", "backbone.dropout=0.1")
    few = (*changes, "data.validation_limit=4")
    original = getattr(owner, name)
    calls: list[int] = []

    def struck(*arguments, **more):
        calls.append(1)
        # Of calls that come with every step or second step, the one at which there is something to lose.
        if len(calls) == (3 if name in ("training_step", "optimizer_step", "write_row") else 2 if step == 4 else 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, struck)
        with pytest.raises(SystemExit) as caught:
            train(settings(*few))
    assert caught.value.code == 143
    assert not (tmp_path / "run" / "release").exists()
    if step:
        assert newest(tmp_path / "run")["global_step"] >= 2
    train(settings(*few))
    train(settings(*few, f"run.dir={tmp_path / 'whole'}"))
    assert differing(tmp_path / "run", tmp_path / "whole") == []
