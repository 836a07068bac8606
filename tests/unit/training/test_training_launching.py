"""Processes that are started, watched and ended together; of a program that does nothing but what the test asks for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty import ROOT, finish, wait_until_gone

PROGRAM = """
import os, signal, subprocess, sys, time
from mentor.training.launching import Launcher, follow_launcher
if "MENTOR_LAUNCHED" not in os.environ:
    print("launcher", os.getpid(), flush=True)
    Launcher(int(sys.argv[1]), lambda line: print(line, flush=True)).run()
    sys.exit(0)
follow_launcher()
rank = int(os.environ["RANK"])
assert os.environ["WORLD_SIZE"] == os.environ["LOCAL_WORLD_SIZE"] == sys.argv[1]
what = dict(part.split("=") for part in sys.argv[2:]).get(str(rank), "end")
os.write(1, f"started {rank} {os.getpid()}\\n".encode())  # print writes words and the end of the line apart
if what == "helper":  # as loader processes are
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", *sys.argv[1:]])
    what = "5"
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    what = "wait"
if what == "heed":
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), os.write(1, f"saved {rank}\\n".encode()), os._exit(143)))
    what = "wait"
if what == "wait":
    time.sleep(1000)
if what == "killed":
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
if what != "end":
    time.sleep(0.3)
    os.write(1, f"error of {rank}\\n".encode())
    sys.exit(int(what))
"""


def launch(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], lines: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(lines)]


def test_all_end_well(tmp_path: Path) -> None:
    code, output = finish(launch(tmp_path, "3"))
    assert code == 0
    assert sorted(line.split()[1] for line in output.splitlines()[1:]) == ["0", "1", "2"]


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    ("arguments", "expected", "last"),
    [
        (("0=wait", "1=2"), 2, "error of 1"),
        (("0=deaf", "1=1"), 1, "error of 1"),
        (("0=wait", "1=killed"), 137, "error: training process 1 (number"),
        (("0=helper", "1=wait"), 5, "error of 0"),
    ],
)
def test_one_failure_ends_all_and_leaves_no_process(
    tmp_path: Path, arguments: tuple[str, ...], expected: int, last: str
) -> None:
    began = time.monotonic()
    code, output = finish(launch(tmp_path, "2", *arguments))
    assert code == expected, output
    assert output.splitlines()[-1].startswith(last)
    assert time.monotonic() - began < 25
    assert wait_until_gone(str(tmp_path)) == []


@pytest.mark.fault(5)
def test_a_signal_goes_to_all_and_all_get_the_time_to_save(tmp_path: Path) -> None:
    process = launch(tmp_path, "2", "0=heed", "1=heed")
    wait_for(process, 3)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 143
    assert sorted(output.splitlines()) == ["saved 0", "saved 1"]
    assert wait_until_gone(str(tmp_path)) == []


@pytest.mark.fault(6)
def test_none_survives_the_launcher(tmp_path: Path) -> None:
    process = launch(tmp_path, "2", "0=wait", "1=deaf")
    wait_for(process, 3)
    process.kill()
    process.wait()
    assert wait_until_gone(str(tmp_path)) == []
