"""A tiny image tokenizer with random weights, a tiny generator, and settings for runs of a few steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_generator, tiny_image_tokenizer

from mentor.config import compose, validate
from mentor.models import Generator
from mentor.models.checkpoint import Card, save_image_tokenizer
from mentor.tokenizers import ImageTokenizer
from mentor.training.config import TrainConfig


@pytest.fixture
def image_tokenizer() -> ImageTokenizer:
    return tiny_image_tokenizer()


@pytest.fixture
def generator(image_tokenizer: ImageTokenizer) -> Generator:
    return tiny_generator(image_tokenizer, layers=2, max_prefix=160)


@pytest.fixture(scope="session")
def tokenizer_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_tokenizer") / "release"
    save_image_tokenizer(folder, tiny_image_tokenizer(), 64, Card("test"))
    return folder


@pytest.fixture
def settings(shapes: Path, tokenizer_release: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Settings of stage 1 of the miniature experiment, in a fresh run folder, with the given changes."""

    def make(*overrides: str) -> TrainConfig:
        base = (
            "experiment=test",
            f"data.root={shapes}",
            f"run.dir={tmp_path / 'run'}",
            "trainer.validate_every=0",
            "backbone.width=32",
            "data.batch_size=4",
        )
        stage = ("stage=1", f"image_tokenizer_from={tokenizer_release}")
        data: dict[str, Any] = compose("train", [*stage, *base, *overrides])
        return validate(TrainConfig, data)

    return make
