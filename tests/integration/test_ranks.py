"""Training with two processes on the CPU: whatever becomes of one of them, all end, and in order."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from faulty import finish, start, tiny_settings, torchrun, wait_until_gone
from runs import newest, rows, summary, weights
from tiny import tiny_image_tokenizer

from mentor.models.checkpoint import Card, save_image_tokenizer

pytestmark = pytest.mark.slow
TIMEOUT = 12
TWO = "trainer.devices=2"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_tokenizer") / "release"
    save_image_tokenizer(folder, tiny_image_tokenizer(), 64, Card("test"))
    return folder


def settings(shapes: Path, tokenizer: Path, folder: Path, *overrides: str) -> list[str]:
    usual = (f"trainer.timeout={TIMEOUT}", "trainer.validate_every=0", "trainer.max_steps=8")
    return tiny_settings(shapes, tokenizer, folder / "run", *usual, *overrides)


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    ("fault", "expected", "last"),
    [
        ("raise@step:1", 1, "RuntimeError: the roof is on fire"),
        ("mistake@step:1", 2, "error: the disk of this machine is missing: bring it back"),
        ("mistake@setup:1", 2, "error: the disk of this machine is missing: bring it back"),
        ("SIGKILL@step:1", 137, "error: training process 1 (number"),
        ("sleep@step:1", 2, "time.sleep(1000)"),
    ],
)
def test_one_process_fails_and_all_end_with_its_error_last(
    shapes: Path, tokenizer: Path, tmp_path: Path, fault: str, expected: int, last: str
) -> None:
    process = start(tmp_path / "at", settings(shapes, tokenizer, tmp_path / "at", TWO), fault)
    struck = 0.0
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith("fault"):
            struck = time.monotonic()
    code, _ = finish(process)
    assert struck
    assert time.monotonic() - struck < TIMEOUT + 10
    output = "\n".join(lines)
    assert code == expected, output
    assert last in lines[-1], output
    assert wait_until_gone(str(tmp_path)) == []


@pytest.mark.fault(6)
@pytest.mark.parametrize("fault", ["raise@step:1", "sleep@step:1"])
def test_the_same_under_torchrun(shapes: Path, tokenizer: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "at"
    code, output = finish(start(folder, settings(shapes, tokenizer, folder), fault, launcher=torchrun()))
    assert code == 1, output
    told = "the roof is on fire" if fault.startswith("raise") else "time.sleep(1000)"
    assert told in output
    if fault.startswith("raise"):
        assert "Root Cause" in output
        assert "the roof is on fire" in output.partition("Root Cause")[2]
    assert wait_until_gone(str(tmp_path)) == []


@pytest.mark.fault(5)
@pytest.mark.parametrize("fault", ["SIGTERM@step:1", "SIGINT@step:0", "SIGTERM@validation:1", "SIGTERM@writing:0"])
def test_a_signal_to_one_process_stops_both_with_a_checkpoint(
    shapes: Path, tokenizer: Path, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "at"
    changes = (TWO, "trainer.validate_every=4", "trainer.checkpoint_every=2", "data.validation_limit=8")
    code, output = finish(start(folder, settings(shapes, tokenizer, folder, *changes), fault))
    assert code == 128 + getattr(signal, fault.partition("@")[0]), output
    assert "the same command goes on" in output.splitlines()[-1]
    assert 0 < newest(folder / "run")["global_step"] < 8
    assert wait_until_gone(str(tmp_path)) == []


@pytest.mark.fault(5)
def test_a_signal_to_the_command_stops_all_and_a_second_one_at_once(
    shapes: Path, tokenizer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "at"
    process = start(folder, settings(shapes, tokenizer, folder, TWO, "trainer.max_steps=100000"), "2500@step:0")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("fault"):
            break
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, output = finish(process)
    assert code == 143, output
    assert "a second signal" in output
    assert time.monotonic() - began < 10
    assert wait_until_gone(str(tmp_path)) == []


@pytest.mark.fault(7)
def test_another_number_of_processes_and_loaders_sees_the_same_samples_and_comes_to_the_same_weights(
    shapes: Path, tokenizer: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    usual = ("trainer.max_steps=12", "trainer.log_every=1", "data.warmup_steps=3", "optimizer.lr=1e-3")
    code, output = finish(start(whole, settings(shapes, tokenizer, whole, *usual), SEEN=str(whole / "seen")))
    assert code == 0, output
    # Stopped twice; a loader process has drawn ahead by then, so what it saw beyond the stop comes again.
    starts = [(TWO, "data.workers=2"), ("data.workers=0",), (TWO, "data.workers=1")]
    sequence: dict[int, set[str]] = {}
    for number, change in enumerate(starts):
        fault = "SIGTERM@step:0" if number < 2 else ""
        seen = parts / f"seen{number}"
        process = start(
            parts, settings(shapes, tokenizer, parts, *usual, *change), fault, at=3 + 4 * number, SEEN=str(seen)
        )
        code, output = finish(process)
        assert code == (143 if number < 2 else 0), output
        done = newest(parts / "run")["global_step"]
        first = len(sequence)
        taken: dict[int, set[str]] = {}
        for path in parts.glob(f"seen{number}.*"):
            for line in path.read_text().splitlines():
                step, _, sample = line.partition(" ")
                if first <= int(step) < done:
                    taken.setdefault(int(step), set()).add(sample)
        sequence |= taken
    expected: dict[int, set[str]] = {}
    for line in (whole / "seen.0").read_text().splitlines():
        step, _, sample = line.partition(" ")
        expected.setdefault(int(step), set()).add(sample)
    assert sequence == expected
    assert {len(samples) for samples in sequence.values()} == {8}
    for name, tensor in weights(whole / "run").items():
        torch.testing.assert_close(weights(parts / "run")[name], tensor, atol=1e-5, rtol=0, msg=name)
    for one, other in zip(rows(whole / "run"), rows(parts / "run"), strict=True):
        assert float(other["train/loss"]) == pytest.approx(float(one["train/loss"]), rel=1e-5)
    assert summary(parts / "run")["starts"] == 3


@pytest.mark.fault(5)
def test_slurm_s_signal_saves_and_puts_the_job_back_into_the_queue(
    shapes: Path, tokenizer: Path, tmp_path: Path
) -> None:
    folder, programs = tmp_path / "at", tmp_path / "bin"
    programs.mkdir()
    asked = programs / "asked"
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (programs / "scontrol").chmod(0o755)
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NODEID": "0",
        "PATH": f"{programs}:{os.environ['PATH']}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20_000 + os.getpid() % 20_000),
    }
    change = settings(shapes, tokenizer, folder)
    tasks: list[subprocess.Popen[str]] = [
        start(folder, change, "SIGUSR1@step:1", RANK=rank, SLURM_PROCID=rank, SLURM_LOCALID=rank, **job)
        for rank in ("0", "1")
    ]
    ends = [finish(task) for task in tasks]
    assert [code for code, _ in ends] == [128 + signal.SIGUSR1] * 2, ends
    assert asked.read_text() == "requeue 4711\n"
    assert newest(folder / "run")["global_step"] == 4
    assert "in the queue again" in ends[0][1]


def test_a_world_that_does_not_divide_the_batch_is_refused_before_anything_starts(
    shapes: Path, tokenizer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "at"
    code, output = finish(start(folder, settings(shapes, tokenizer, folder, "trainer.devices=3")))
    assert code == 2
    assert output == (
        "error: data.batch_size 8 cannot be shared by 3 processes: use a multiple of 3 or another number of processes\n"
    )
    assert not (folder / "run").exists()
