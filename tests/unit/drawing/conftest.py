"""What the tests of drawing share."""

from pathlib import Path

import pytest
from tiny import tiny_generator, tiny_image_tokenizer

from mentor.drawing.model import Model, load
from mentor.models.checkpoint import Card, save_generator


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of 16 tokens for pictures of 16 px."""
    tokenizer = tiny_image_tokenizer(stem=2, codes=16, width=4)
    path = tmp_path_factory.mktemp("drawing") / "release"
    save_generator(path, tiny_generator(tokenizer, 16, max_prefix=64), tokenizer, 16, Card("test"))
    return load(path, precision="fp32")


@pytest.fixture
def untrained(model: Model) -> Model:
    """The same with a record that says that the null condition was never trained."""
    training = {"null_condition_trained": False}
    release = type(model.release)(**{**vars(model.release), "config": {**model.release.config, "training": training}})
    return Model(release, Path("release"), model.device, model.precision, model.decoder)
