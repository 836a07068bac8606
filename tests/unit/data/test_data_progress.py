"""Progress: lines with the rate and the time left in a log, a bar in a terminal, nothing for what is quick."""

import io

import pytest

from mentor.data.making import progress
from mentor.data.making.progress import ProgressReport


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then_with_the_time_left(clock: Clock) -> None:
    log = io.StringIO()
    with ProgressReport("folder", log, every=30) as report:
        report.report("reading", 0, None)
        clock.now += 29
        report.report("reading", 900, None)
        assert not log.getvalue()
        clock.now += 1
        report.report("reading", 1500, None)
        clock.now += 10
        report.report("making", 2000, 10_000)
        clock.now += 20
        report.report("making", 4000, 10_000)
        report.report("making", 4001, 10_000)
        clock.now += 3000
        report.report("making", 4002, 1_000_000)
    assert log.getvalue().splitlines() == [
        "folder: reading: 1,500 (50/s)",
        # What was there before this run says nothing of its rate.
        "folder: making: 4,000 of 10,000 (100/s, 1 min left)",
        "folder: making: 4,002 of 1,000,000 (1/s, 417.4 h left)",
    ]


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    with ProgressReport("folder", screen) as report:
        report.report("making shards", 5, 10)
        report.report("making shards", 10, 10)
    assert "folder: making shards" in screen.getvalue()
    assert "10/10" in screen.getvalue()
