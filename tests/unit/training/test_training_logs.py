import csv
from pathlib import Path

from mentor.training.logs import MetricsTable


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_step_is_a_row_and_a_quantity_a_column(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "logs", 0)
    table.log_metrics({"train/loss": 1.5, "epoch": 0}, step=1)
    table.log_metrics({"train/loss": 1.25}, step=2)
    table.log_metrics({"val/loss": 2.0}, step=2)
    assert read(tmp_path / "logs" / "metrics.csv") == [
        {"step": "1", "train/loss": "1.5", "val/loss": ""},
        {"step": "2", "train/loss": "1.25", "val/loss": "2"},
    ]


def test_a_resumed_run_goes_on_after_the_step_it_resumes_from(tmp_path: Path) -> None:
    first = MetricsTable(tmp_path, 0)
    for step in (1, 2, 3):
        first.log_metrics({"train/loss": float(step)}, step=step)
    second = MetricsTable(tmp_path, 2)
    second.log_metrics({"train/loss": 30.0}, step=3)
    assert [row["train/loss"] for row in read(second.path)] == ["1", "2", "30"]


def test_a_fresh_run_starts_a_fresh_table(tmp_path: Path) -> None:
    MetricsTable(tmp_path, 0).log_metrics({"a": 1.0}, step=1)
    table = MetricsTable(tmp_path, 0)
    table.log_metrics({"b": 2.0}, step=5)
    assert read(table.path) == [{"step": "5", "b": "2"}]
