"""`--dry-run` as one types it."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import save_tiny_releases

from mentor.errors import run_main
from mentor.train import main

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_dry_run_plans_and_writes_nothing(
    command: Command,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    release = save_tiny_releases(tmp_path / "releases") / "tokenizer"
    work = tmp_path / "work"
    work.mkdir()
    base = ["stage=1", "experiment=test", f"data.root={shapes}", f"image_tokenizer_from={release}", "--dry-run"]
    before = sorted(tmp_path.rglob("*"))
    planned = command("-m", "mentor.train", *base, cwd=work)
    assert planned.returncode == 0, planned.stderr
    assert planned.stderr == ""
    assert planned.stdout.startswith("test stage 1 on 1 process: a run could start; nothing was written\n")
    assert re.search(r"^time +[\d.]+ s a step, measured here; \d+:\d\d in all", planned.stdout, re.MULTILINE)
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["mentor.train", *base, "--world-size", "3"])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "error: data.batch_size 8 cannot be shared by 3 processes: use a multiple of 3 or another number of processes\n"
    )
    assert sorted(tmp_path.rglob("*")) == before
