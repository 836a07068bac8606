"""The run in one file: how far it came, what it went through, what its guard did."""

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mentor.training.checkpoint_files import sync_folder

NAME = "summary.json"


@dataclass
class Summary:
    """What is known of a run over all its starts; kept as `summary.json` in the run folder.

    Attributes:
        path: the run folder.
        facts: what goes into the file besides starts and time.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _before: dict[str, Any] = field(default_factory=dict)

    def begin(self, resumed: bool) -> None:
        """Count this start, on top of the earlier ones if the run goes on."""
        if resumed:
            with contextlib.suppress(OSError, ValueError):
                found = json.loads((self.path / NAME).read_text(encoding="utf-8"))
                if isinstance(found, dict):
                    self._before = found
        self.write("running")

    def write(self, status: str, **facts: Any) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        self.facts |= facts
        seconds = float(self._before.get("seconds", 0)) + time.monotonic() - self._began
        content = {
            "status": status,
            "starts": int(self._before.get("starts", 0)) + 1,
            "seconds": round(seconds, 1),
            **self.facts,
        }
        partial = self.path / (NAME + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path / NAME)
        sync_folder(self.path)
