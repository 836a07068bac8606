"""A tiny image tokenizer with random weights, a tiny generator, and settings for runs of a few steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mentor.conditioning import NativeConfig, TextTokenizer
from mentor.config import compose, validate
from mentor.models import ARHeadConfig, BackboneConfig, Generator, GeneratorConfig, build_generator
from mentor.models.checkpoint import Card, code_spec, save_image_tokenizer
from mentor.tokenizers import ImageTokenizer, ImageTokenizerConfig, VQConfig, build_image_tokenizer
from mentor.training.config import TrainConfig


def make_image_tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        channels=8,
        multipliers=(1, 2),
        stem=4,
        attention=False,
        middle=False,
        latent_width=16,
        groups=8,
        encoder_blocks=1,
        decoder_blocks=1,
        quantizer=VQConfig(codes=32),
    )
    return build_image_tokenizer(config).eval()


@pytest.fixture
def image_tokenizer() -> ImageTokenizer:
    return make_image_tokenizer()


@pytest.fixture
def generator(image_tokenizer: ImageTokenizer) -> Generator:
    torch.manual_seed(1)
    text_tokenizer = TextTokenizer.train(["a red circle", "a blue square at the left"], 300)
    config = GeneratorConfig(
        conditioner=NativeConfig(max_prefix=160),
        backbone=BackboneConfig(layers=2, width=32, heads=2, rope_base=100.0),
        head=ARHeadConfig(),
    )
    return build_generator(config, text_tokenizer, code_spec(image_tokenizer, 64), image_tokenizer.codebook)


@pytest.fixture(scope="session")
def tokenizer_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_tokenizer") / "release"
    save_image_tokenizer(folder, make_image_tokenizer(), 64, Card("test"))
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
