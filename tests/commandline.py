"""Commands run in the tests' own process, and what a refusal looks like."""

import runpy
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_here(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `python ARGUMENTS`, run in this process to save the time of the imports."""
    monkeypatch.setattr(sys, "argv", list(arguments))
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, about modules that were imported before
        try:
            if arguments[0] == "-m":
                monkeypatch.setattr(sys, "argv", list(arguments[1:]))
                runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
            else:
                monkeypatch.setattr(sys, "argv", [str(ROOT / arguments[0]), *arguments[1:]])
                runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            signal.signal(signal.SIGTERM, handler)  # a tool may keep it for as long as its process lives
    return 0


def check_refusal(code: int, stderr: str, said: Sequence[str]) -> None:
    """One line that says all of `said`, and code 2."""
    assert code == 2, stderr
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in stderr
    for word in said:
        assert word in lines[0]
