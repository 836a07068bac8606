"""The run's numbers as a table on the disk."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsTable(Logger):
    """Keeps `metrics.csv`: a row for each step that anything was logged at, a column for each quantity.

    A resumed run goes on with the table of the earlier one, less the rows of steps that it does again.

    Args:
        folder: gets metrics.csv.
        first_step: rows of later steps are dropped from a table that is there already.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}
        if self.path.is_file() and first_step:
            with self.path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if int(row["step"]) <= first_step:
                        self._rows[int(row["step"])] = {name: value for name, value in row.items() if value != ""}

    @property
    def name(self) -> str:
        """Lightning asks for one."""
        return "metrics"

    @property
    def version(self) -> int:
        """Lightning asks for one."""
        return 0

    def has(self, step: int, prefix: str) -> bool:
        """Whether there is a quantity whose name begins with `prefix` at that step."""
        return any(name.startswith(prefix) for name in self._rows.get(step, ()))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder has config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Put the quantities into the row of `step`, and write the table."""
        if not metrics or step is None:
            return
        row = self._rows.setdefault(step, {"step": step})
        row.update({name: f"{float(value):.6g}" for name, value in metrics.items() if name != "epoch"})
        self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the table; it is never seen half-written."""
        columns = {"step": None} | {name: None for row in self._rows.values() for name in sorted(row)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(self._rows[step] for step in sorted(self._rows))
        os.replace(partial, self.path)
