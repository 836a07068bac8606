"""Which process of how many this is, by what launchers leave in the environment; how processes end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faulty import ROOT

from mentor.errors import UserError
from mentor.training.config import TrainerConfig
from mentor.training.processes import Place, Watch, find_place
from mentor.training.signals import Stopped
from mentor.training.trainer import build_environment

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_JOB_ID": "7"}
SLURM |= {"SLURM_NTASKS_PER_NODE": "4"}


def trainer(**settings: object) -> TrainerConfig:
    return TrainerConfig(accelerator="cpu", max_steps=1, **settings)


def test_one_process_needs_no_launcher() -> None:
    assert find_place(trainer(), {}) == Place()


def test_several_on_one_machine_are_still_to_be_started() -> None:
    assert find_place(trainer(devices=2), {}) is None


def test_torchrun_decides_whatever_the_settings_say() -> None:
    place = find_place(trainer(devices=2), TORCHRUN)
    assert place == Place(5, 1, 8, 4, "torchrun")
    assert place.nodes == 2
    assert not place.first


def test_slurm_decides_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    place = find_place(trainer(), SLURM)
    assert place == Place(6, 2, 8, 4, "slurm")
    environment = build_environment(place)
    assert (environment.global_rank(), environment.world_size(), environment.local_rank()) == (6, 8, 2)
    assert not environment.auto_requeue


def test_a_job_of_one_task_or_a_shell_within_a_job_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_place(trainer(), {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"}) == Place()
    for name, value in (SLURM | {"SLURM_JOB_NAME": "bash"}).items():
        monkeypatch.setenv(name, value)
    assert find_place(trainer(), SLURM | {"SLURM_JOB_NAME": "bash"}) == Place()


def test_several_machines_need_a_launcher() -> None:
    with pytest.raises(UserError, match=r"trainer\.nodes=2 needs a launcher .* docs/clusters\.md"):
        find_place(trainer(nodes=2), {})


def test_machines_with_unequal_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="start as many on each"):
        find_place(trainer(), TORCHRUN | {"LOCAL_WORLD_SIZE": "3"})
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="8 tasks on 3 nodes"):
        find_place(trainer(), SLURM | {"SLURM_NNODES": "3"})
    with pytest.raises(UserError, match="--ntasks-per-node=N"):
        find_place(trainer(), {key: value for key, value in SLURM.items() if key != "SLURM_NTASKS_PER_NODE"})


# A thread waits inside a library, and gets its answer while the interpreter is being taken down, which it cannot bear.
BUSY = """
import sys, threading, time
from datetime import timedelta
from torch import distributed
from mentor.training.config import TrainerConfig
from mentor.training.processes import Place, joined

class Slow:
    def __del__(self):
        time.sleep(2)

def wait(store):
    store.wait(["never"], timedelta(seconds=1))

slow, rank = Slow(), int(sys.argv[1])
with joined(Place(rank, rank, 2, 2, "mentor"), TrainerConfig(accelerator="cpu", max_steps=1, timeout=30)):
    store = distributed.distributed_c10d._get_default_store().clone()
    threading.Thread(target=wait, args=(store,), daemon=True).start()
    time.sleep(0.2)
    raise SystemExit(143)
"""


@pytest.mark.fault(5)
def test_a_library_that_is_busy_with_other_processes_does_not_change_the_exit_code(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(BUSY)
    port = str(20_000 + os.getpid() % 20_000)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [subprocess.Popen([sys.executable, str(program), rank], env=environment) for rank in "01"]
    assert [process.wait(60) for process in both] == [128 + signal.SIGTERM] * 2


class Gone:
    """The store where processes meet, after the process that kept it has ended."""

    def compare_set(self, *_: str) -> bytes:
        raise RuntimeError("Connection reset by peer")


def test_a_stop_keeps_its_code_though_the_first_process_has_ended_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were asked to stop, and the one that keeps the store may be through with it sooner."""
    watch = Watch.__new__(Watch)
    monkeypatch.setattr(watch, "_own", Gone(), raising=False)
    monkeypatch.setattr(watch, "_place", Place(rank=1, world=2, local_world=2, launcher="slurm"), raising=False)
    assert watch.fail(Stopped(signal.SIGUSR1)) is None, "it ends with a code of its own"
    assert watch.fail(RuntimeError("broken pipe")) == 1, "an error follows from the end of the first process"
