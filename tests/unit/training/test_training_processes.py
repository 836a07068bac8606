"""Which process of how many this is, by what launchers leave in the environment."""

import pytest

from mentor.errors import UserError
from mentor.training.config import TrainerConfig
from mentor.training.processes import Place, find_place
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
