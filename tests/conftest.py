"""What all tests share: no network, few threads, a small data set, and a way to run the real command lines."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
Command = Callable[..., subprocess.CompletedProcess[str]]

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def run_command(*arguments: str | Path, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in `cwd`; a first argument such as `tools/demo.py` counts from the checkout."""
    first, *rest = map(str, arguments)
    if first.startswith("tools/"):
        first = str(ROOT / first)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, first, *rest], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="session")
def command() -> Command:
    """`run_command`, see there."""
    return run_command


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of procedural scenes. Tests that change it take a copy."""
    root = tmp_path_factory.mktemp("shapes") / "data"
    settings = ("limit=120", "samples_per_shard=20", "workers=1")
    made = run_command("tools/make_shards.py", "shapes", f"output={root}", *settings, cwd=root.parent)
    assert made.returncode == 0, made.stderr
    return root
