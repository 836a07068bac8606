"""What the tests of tools/chaos.py share."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from finished import chaos_module, make_finished_run


@pytest.fixture(scope="module")
def chaos() -> Iterator[ModuleType]:
    """The program as a module."""
    with chaos_module() as module:
        yield module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder, which tests copy."""
    return make_finished_run(tmp_path_factory.mktemp("finished") / "run")
