"""The real training command with a fault of one's choice, as a process of its own, and what remains of it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# FAULT is "what@where" with a rank behind a colon: "raise@step:1". A signal is sent from within the process.
DRIVER = """
import os, signal, sys, time
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as mentor.train does before it imports torch
from mentor.data.loading import TrainingBatches
from mentor.errors import UserError, run_main
from mentor.train import main
from mentor.training import checkpoint_files, run
from mentor.training.generator_module import GeneratorModule

what, _, rest = os.environ.get("FAULT", "none@nowhere").partition("@")
where, _, rank = rest.partition(":")
once = []

def strike(place):
    if place != where or os.environ.get("RANK", "0") != (rank or "0") or once:
        return
    once.append(place)
    print(f"fault {what} at {place}", flush=True)
    if what == "raise":
        raise RuntimeError("the roof is on fire")
    if what == "mistake":
        raise UserError("the disk of this machine is missing: bring it back")
    if what == "sleep":
        time.sleep(1000)
    if what == "end":
        raise StopIteration
    for name in what.split("+"):
        if name.isdigit():
            time.sleep(float(name) / 1000)
        else:
            os.kill(os.getpid(), getattr(signal, name))

def before(owner, name, place, ready=lambda *a, **k: True):
    original = getattr(owner, name)
    def wrapped(*arguments, **settings):
        if ready(*arguments, **settings):
            strike(place)
        return original(*arguments, **settings)
    setattr(owner, name, wrapped)

def at_step(self, *_, **__):
    return self.trainer.global_step >= int(os.environ.get("AT", "3"))

before(run, "open_data", "setup")
before(GeneratorModule, "training_step", "step", at_step)
before(GeneratorModule, "backward", "backward", at_step)
before(GeneratorModule, "validation_step", "validation")
before(GeneratorModule, "write_row", "between", at_step)
before(checkpoint_files, "finish", "writing")
before(run, "write_release", "release")
before(GeneratorModule, "on_fit_start", "fit")

get = TrainingBatches.__getitem__
def counted(self, step):
    if "SEEN" in os.environ:
        task, samples = self._stream.batch(step, self._rank, self._world)
        with open(f"{os.environ['SEEN']}.{self._rank}", "a") as file:
            for sample in samples:
                file.write(f"{step} {task} {sample.epoch} {sample.shard} {sample.position}\\n")
    return get(self, step)
TrainingBatches.__getitem__ = counted
run_main(main)
"""


def start(
    folder: Path, settings: Sequence[str], fault: str = "", at: int = 3, launcher: Sequence[str] = (), **more: str
):
    """A training process in `folder`, which is made; its output, errors included, is to be read by `finish`."""
    folder.mkdir(exist_ok=True)
    driver = folder / "drive.py"
    driver.write_text(DRIVER)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "FAULT": fault, "AT": str(at)} | more
    command = [*(launcher or (sys.executable,)), str(driver), *settings]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], limit: float = 150) -> tuple[int, str]:
    """Exit code and output; a process that does not end in time is killed, and that fails the test."""
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def tiny_settings(data: Path, tokenizer: Path, run: Path, *overrides: str) -> list[str]:
    """Stage 1 of the miniature experiment, a few steps of a few milliseconds."""
    return [
        "stage=1",
        "experiment=test",
        f"data.root={data}",
        f"image_tokenizer_from={tokenizer}",
        f"run.dir={run}",
        "trainer.precision=32-true",
        "backbone.width=32",
        "data.lanes=2",
        *overrides,
    ]


def left_over(marker: str) -> list[int]:
    """Processes whose command line or environment names `marker`, but for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if marker.encode() in text and int(folder.name) != os.getpid() and state != "Z":
            found.append(int(folder.name))
    return found


def wait_until_gone(marker: str, seconds: float = 10) -> list[int]:
    """The processes that still name `marker` when the time is up."""
    deadline = time.monotonic() + seconds
    while (left := left_over(marker)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def torchrun(processes: int = 2) -> list[str]:
    """The command that starts so many processes of a program."""
    program = Path(sys.executable).with_name("torchrun")
    base = [str(program)] if program.exists() else [shutil.which("torchrun") or "torchrun"]
    return [*base, "--standalone", "--nproc-per-node", str(processes)]
