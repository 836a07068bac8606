from pathlib import Path

import pytest

from mentor.training.requeue import requeue, under_slurm


@pytest.fixture
def scontrol(tmp_path: Path) -> Path:
    program = tmp_path / "scontrol"
    program.write_text(
        '#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\n[ "$2" != 13 ] || { echo no such job >&2; exit 1; }\n'
    )
    program.chmod(0o755)
    return tmp_path / "asked"


@pytest.mark.parametrize(
    ("job", "asked"),
    [
        ({"SLURM_JOB_ID": "12"}, "requeue 12\n"),
        ({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 10_3\n"),
    ],
)
def test_slurm_is_asked_for_the_job_or_the_task_of_an_array(scontrol: Path, job: dict[str, str], asked: str) -> None:
    lines: list[str] = []
    assert requeue(lines.append, job | {"PATH": f"{scontrol.parent}:/bin:/usr/bin"})
    assert scontrol.read_text() == asked
    assert "in the queue again" in lines[0]


def test_what_does_not_work_is_said(scontrol: Path) -> None:
    lines: list[str] = []
    path = f"{scontrol.parent}:/bin:/usr/bin"
    assert not requeue(lines.append, {"SLURM_JOB_ID": "13", "PATH": path})
    assert not requeue(lines.append, {"SLURM_JOB_ID": "13; rm -rf /", "PATH": path})
    assert not requeue(lines.append, {"SLURM_JOB_ID": "12", "PATH": "/nowhere"})
    assert "failed with code 1: no such job" in lines[0]
    assert "no number of a job" in lines[1]
    assert "scontrol is not there" in lines[2]
    assert scontrol.read_text() == "requeue 13\n"


def test_somebody_who_sits_in_front_of_it_is_not_requeued() -> None:
    assert under_slurm({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train"})
    assert not under_slurm({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "bash"})
    assert not under_slurm({})
