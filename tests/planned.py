"""Settings for plans that a real step of the same settings is held against."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mentor.config import compose, validate
from mentor.data.streammodule import TrainingData, open_data
from mentor.training.config import TrainConfig

# Every parameter gets a gradient in the first step: all prompts have text and a picture, and none of it is dropped.
WHOLE = (
    "data.mixture.segment=0",
    "data.mixture.text_to_image=0",
    "data.image_only=0",
    "data.warmup_steps=0",
    "objective.guidance.everything=0",
    "objective.guidance.text=0",
    "conditioner.text_vocab_size=256",
)
ADVERSARIAL = (
    "loss.adversarial.start=0",
    "loss.adversarial.discriminator.layers=2",
    "loss.adversarial.discriminator.channels=8",
    "loss.adversarial.discriminator.groups=4",
)


def opened(config: TrainConfig) -> TrainingData:
    """The data of the settings, told to nobody."""
    return open_data(config.data, config.seed, lambda line: None)


def summed(things: Iterable[Any]) -> int:
    """Bytes of all tensors among the things."""
    return sum(thing.numel() * thing.element_size() for thing in things if isinstance(thing, Tensor))


def stage_tokenizer(like: TrainConfig, *changes: str) -> TrainConfig:
    """Settings that train an image tokenizer on the same data in the same run folder."""
    overrides = ["stage=tokenizer", "experiment=test", f"data.root={like.data.root}", "data.batch_size=4"]
    overrides += [f"run.dir={like.run.dir}", "trainer.validate_every=0", "loss.delay=0", *changes]
    return validate(TrainConfig, compose("train", overrides))
