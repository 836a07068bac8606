"""What docs/clusters.md and docs/fsdp.md say is so, and several machines imitated on this one."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_image_tokenizer
from torch.distributed.run import get_args_parser

from mentor.config import compose, validate
from mentor.models.checkpoint import Card, save_image_tokenizer
from mentor.train import OPTIONS
from mentor.training.checkpoint_files import listed
from mentor.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("clusters.md", "fsdp.md")
TEXTS = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in PAGES}
LIMIT = 200
STEPS = 6
# The real command, in which SLURM's signal comes in the middle of a step, and not to all tasks at once.
DRIVER = """
import os, signal
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as mentor.train does before it imports torch
from mentor.errors import run_main
from mentor.train import main
from mentor.training.generator_module import GeneratorModule

original = GeneratorModule.training_step

def step(self, batch, index):
    if os.environ.get("SIGNAL_AT") == str(self.trainer.global_step):
        os.kill(os.getpid(), signal.SIGUSR1)
    return original(self, batch, index)

GeneratorModule.training_step = step
run_main(main)
"""
# Of sbatch's options, those that the page may use.
SBATCH = {
    "job-name",
    "nodes",
    "ntasks-per-node",
    "gpus-per-node",
    "cpus-per-task",
    "mem",
    "time",
    "signal",
    "requeue",
    "open-mode",
    "output",
}


def scripts() -> list[str]:
    return [script for text in TEXTS.values() for script in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]


def commands() -> list[list[str]]:
    """Every command line of the pages that names mentor.train, as words."""
    lines = [line for script in scripts() for line in script.replace("\\\n", " ").splitlines()]
    lines += [line for text in TEXTS.values() for line in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]
    words = [shlex.split(line) for line in lines if "-m mentor.train" in line]
    assert len(words) >= 6
    return words


def test_scripts_of_the_pages_parse(tmp_path: Path) -> None:
    assert len(scripts()) >= 4
    for script in scripts():
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{script}"


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_of_the_pages_name_settings_and_options_that_exist(words: list[str]) -> None:
    before, after = words[: words.index("mentor.train")], words[words.index("mentor.train") + 1 :]
    settings = [word for word in after if "=" in word and not word.startswith("-")]
    options = [word.partition("=")[0] for word in after if word.startswith("-")]
    assert set(options) <= set(OPTIONS)
    values = [word for word in after if word not in settings and not word.startswith("-")]
    assert len(values) == sum(OPTIONS[option] for option in options), f"what is {values}?"
    config = validate(TrainConfig, compose("train", settings))
    assert config.stage == "1"
    if "torchrun" in before:
        known = {name for action in get_args_parser()._actions for name in action.option_strings}
        assert {word for word in before if word.startswith("--")} <= known


def test_the_batch_script_asks_slurm_for_a_signal_and_for_another_turn() -> None:
    script = next(script for script in scripts() if "#SBATCH" in script)
    found = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", script, re.MULTILINE))
    assert script.count("#SBATCH") == len(found)
    assert found.keys() <= SBATCH
    assert found["signal"].startswith("SIGUSR1@"), "with B: the shell alone would get it"
    assert "requeue" in found and found["open-mode"] == "append"
    assert int(found["nodes"]) * int(found["ntasks-per-node"]) == 16
    batch = re.search(r"data\.batch_size=(\d+)", script)
    assert batch is not None and int(batch[1]) % 16 == 0


def test_the_table_of_memory_follows_from_the_sizes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", TEXTS["fsdp.md"], re.MULTILINE)
    assert [row[0] for row in rows] == ["l", "xl", "xxl"]
    for size, *shown in rows:
        line = re.search(rf"^\| `{size}` \|.*\| ([\d.]+) \|$", readme, re.MULTILINE)
        assert line is not None
        millions = float(line[1])
        # Weights, gradients, average and two states; DDP has its buckets besides.
        assert shown == [f"{4 * count * millions / 1000:.1f}" for count in (6, 5 / 2, 5 / 8)]


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_tokenizer") / "release"
    save_image_tokenizer(folder, tiny_image_tokenizer(), 64, Card("test"))
    return folder


class Machines:
    """Starts a command twice, as if on two machines."""

    def __init__(self, folder: Path, shapes: Path, image_tokenizer: Path) -> None:
        self.folder = folder
        self._settings = (
            "stage=1",
            "experiment=test",
            f"data.root={shapes}",
            f"image_tokenizer_from={image_tokenizer}",
            "backbone.width=32",
            "data.batch_size=4",
            "data.lanes=2",
            "trainer.validate_every=0",
            "trainer.timeout=100",
        )

    def start(self, run: str, command: list[str], *overrides: str, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        limit = ["timeout", "-k", "5", str(LIMIT)] if shutil.which("timeout") and not environment else []
        return subprocess.Popen(
            [*limit, *command, *self._settings, f"run.dir={self.folder / run}", *overrides],
            cwd=self.folder,
            env=os.environ | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def weights(self, run: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / run / "release" / "model.safetensors")


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=LIMIT + 10)
    finally:
        process.kill()
    return process.returncode, output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, shapes: Path, image_tokenizer: Path) -> Machines:
    """The run `one` has been made by one process."""
    made = Machines(tmp_path_factory.mktemp("machines"), shapes, image_tokenizer)
    code, output = ended(made.start("one", [sys.executable, "-m", "mentor.train"], f"trainer.max_steps={STEPS}"))
    assert code == 0, output
    return made


def agrees(machines: Machines, run: str) -> None:
    expected = machines.weights("one")
    for name, value in machines.weights(run).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_agents_of_torchrun_train_together(machines: Machines) -> None:
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    command += ["--rdzv-endpoint", f"localhost:{free_port()}", "-m", "mentor.train"]
    steps = f"trainer.max_steps={STEPS}"
    both = [machines.start("agents", command, steps, "trainer.strategy=fsdp") for _ in range(2)]
    for process in both:
        code, output = ended(process)
        assert code == 0, output
    agrees(machines, "agents")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.fault(5)
def test_a_job_of_slurm_is_queued_again_before_its_time_is_up_and_goes_on(machines: Machines) -> None:
    stand_in = machines.folder / "bin" / "scontrol"
    stand_in.parent.mkdir()
    asked = machines.folder / "asked"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(asked))}\n')
    stand_in.chmod(0o755)

    driver = machines.folder / "drive.py"
    driver.write_text(DRIVER)

    def job(**environment: str) -> list[tuple[int, str]]:
        common = {
            "SLURM_JOB_ID": "1234",
            "SLURM_JOB_NAME": "mentor",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_NNODES": "2",
            "SLURM_NODELIST": "localhost",
            "SLURM_LOCALID": "0",
            "MASTER_PORT": str(free_port()),
            "PATH": f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}",
        }
        command = [sys.executable, str(driver)]
        tasks = []
        for node in ("0", "1"):
            own = common | {"SLURM_PROCID": node, "SLURM_NODEID": node}
            own |= {name: value.split()[int(node)] for name, value in environment.items()}
            tasks.append(machines.start("job", command, f"trainer.max_steps={STEPS}", **own))
        return [ended(task) for task in tasks]

    results = job(SIGNAL_AT="2 3")
    assert [code for code, _ in results] == [128 + signal.SIGUSR1] * 2, results
    assert "the job 1234 is in the queue again" in results[0][1]
    assert asked.read_text() == "requeue 1234\n"
    assert not (machines.folder / "job" / "release").exists()
    assert [step for step, _ in listed(machines.folder / "job" / "checkpoints")] == [3]
    results = job()
    assert [code for code, _ in results] == [0, 0], results
    assert f"from step 3 of {STEPS}" in results[0][1]
    agrees(machines, "job")
