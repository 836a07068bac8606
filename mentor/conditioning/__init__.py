"""From prompts to a prefix.

A new conditioner is a class that keeps the contract of `Conditioner`, with a config of its own kind, and a case in each
function below.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, assert_never

from pydantic import Field

from mentor.conditioning.class_label import ClassLabelConditioner, ClassLabelConfig
from mentor.conditioning.conditioner import Conditioner
from mentor.conditioning.native import NativeConditioner, NativeConfig
from mentor.conditioning.prefix import (
    Condition,
    Prefix,
    Span,
    drop_condition,
    encode_condition,
    images_only,
    text_only,
)
from mentor.conditioning.text_tokenizer import TextTokenizer
from mentor.types import CodeSpec

ConditionerConfig = Annotated[NativeConfig | ClassLabelConfig, Field(discriminator="kind")]

# What a conditioner is made of beside its settings: learned from data, and kept beside the weights.
Material = TextTokenizer | None

_TEXT_TOKENIZER = "text_tokenizer.json"


def build_conditioner(config: ConditionerConfig, material: Material, spec: CodeSpec, width: int) -> Conditioner:
    """The conditioner that `config` describes, giving tokens of `width`."""
    match config:
        case NativeConfig():
            assert material is not None
            return NativeConditioner(config, material, spec, width)
        case ClassLabelConfig():
            return ClassLabelConditioner(config, width)
        case _:
            assert_never(config)


def learn_material(config: ConditionerConfig, captions: Callable[[], Iterable[str]]) -> Material:
    """What the conditioner needs, learned from captions, which are asked for only if they are needed."""
    match config:
        case NativeConfig():
            return TextTokenizer.train(captions(), config.text_vocab_size)
        case ClassLabelConfig():
            return None
        case _:
            assert_never(config)


def save_material(material: Material, folder: Path) -> None:
    """Write it into a release folder."""
    if material is not None:
        (folder / _TEXT_TOKENIZER).write_text(material.to_json(), encoding="utf-8")


def load_material(config: ConditionerConfig, folder: Path) -> Material:
    """What `save_material` wrote.

    Raises:
        UserError: a file is missing or damaged.
    """
    match config:
        case NativeConfig():
            return TextTokenizer.load(folder / _TEXT_TOKENIZER)
        case ClassLabelConfig():
            return None
        case _:
            assert_never(config)


__all__ = [
    "ClassLabelConditioner",
    "ClassLabelConfig",
    "Condition",
    "Conditioner",
    "ConditionerConfig",
    "Material",
    "NativeConditioner",
    "NativeConfig",
    "Prefix",
    "Span",
    "TextTokenizer",
    "build_conditioner",
    "drop_condition",
    "encode_condition",
    "images_only",
    "learn_material",
    "load_material",
    "save_material",
    "text_only",
]
