"""Two thousand steps with loaders that come and go: memory, open files and processes stay what they were."""

import json
from pathlib import Path

import pytest
from conftest import Command
from soaking import OPENED_FOR, STEPS, Use

SETTLED = 500


@pytest.mark.slow
@pytest.mark.fault(21)
def test_two_thousand_steps_hold_no_more_than_five_hundred(shapes: Path, command: Command, tmp_path: Path) -> None:
    # A process of its own: what other tests left to libraries, and what they started, is not counted.
    done = command(Path(__file__).resolve().parents[1] / "soaking.py", shapes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    uses = {int(step): Use(**use) for step, use in json.loads(done.stdout.splitlines()[-1]).items()}
    assert list(uses) == list(range(OPENED_FOR, STEPS + 1, OPENED_FOR))
    before, later = uses[SETTLED], [use for step, use in uses.items() if step > STEPS // 2]
    # The least of several: what loader processes hand over is given back in batches, what leaks is not.
    assert min(use.python for use in later) <= 1.05 * before.python, uses
    assert min(use.resident for use in later) <= 1.05 * before.resident, uses
    assert {use.files for use in later} == {before.files}, uses
    assert {use.children for use in later} == {0}, uses
