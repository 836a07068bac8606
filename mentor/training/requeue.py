"""Asks SLURM to start the job anew when its time is up."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping


def under_slurm(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a job of SLURM runs this, and nobody sits in front of it."""
    return "SLURM_JOB_ID" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def requeue(say: Callable[[str], None], environment: Mapping[str, str] = os.environ) -> bool:
    """Put this job, or this task of an array, back into the queue; whether that worked. Tells what it did."""
    job = environment.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    program = shutil.which("scontrol", path=environment.get("PATH"))
    if program is None or not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        why = "scontrol is not there" if program is None else "that is no number of a job"
        say(f"cannot requeue the job {job or '?'}: {why}")
        return False
    done = subprocess.run([program, "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"scontrol requeue {job} failed with code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return False
    say(f"the job {job} is in the queue again, and goes on from the checkpoint")
    return True
