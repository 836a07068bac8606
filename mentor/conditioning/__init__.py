"""From prompts to a prefix.

A new conditioner is a class that keeps the contract of `Conditioner`, with a config of its own kind, and a case in each
function below.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, assert_never

from pydantic import Field

from mentor.conditioning.caption import CaptionConditioner, CaptionConfig
from mentor.conditioning.class_label import ClassLabelConditioner, ClassLabelConfig
from mentor.conditioning.conditioner import Conditioner
from mentor.conditioning.fused import FusedConditioner, FusedConfig, PretrainedPair
from mentor.conditioning.native import NativeConditioner, NativeConfig
from mentor.conditioning.prefix import (
    Condition,
    Dropped,
    Prefix,
    Span,
    drop_condition,
    encode_condition,
    images_only,
    text_only,
)
from mentor.conditioning.pretrained import (
    TEXT_FOLDER,
    VISION_FOLDER,
    PretrainedText,
    PretrainedVision,
    load_pretrained_text,
    load_pretrained_vision,
)
from mentor.conditioning.text_tokenizer import TextTokenizer
from mentor.errors import UserError
from mentor.types import CodeSpec

ConditionerConfig = Annotated[
    NativeConfig | ClassLabelConfig | CaptionConfig | FusedConfig, Field(discriminator="kind")
]

# What a conditioner is made of beside its settings: learned, or given by others, and kept beside the weights.
Material = TextTokenizer | PretrainedText | PretrainedPair | None

_TEXT_TOKENIZER = "text_tokenizer.json"


def build_conditioner(config: ConditionerConfig, material: Material, spec: CodeSpec, width: int) -> Conditioner:
    """The conditioner that `config` describes, giving tokens of `width`."""
    match config:
        case NativeConfig():
            assert isinstance(material, TextTokenizer | PretrainedText)
            return NativeConditioner(config, material, spec, width)
        case CaptionConfig():
            assert isinstance(material, PretrainedText)
            return CaptionConditioner(config, material, width)
        case FusedConfig():
            assert isinstance(material, PretrainedPair)
            return FusedConditioner(config, material, width)
        case ClassLabelConfig():
            return ClassLabelConditioner(config, width)
        case _:
            assert_never(config)


def learn_material(config: ConditionerConfig, captions: Callable[[], Iterable[str]], blank: bool = False) -> Material:
    """What a new conditioner needs; captions are asked for only if something is learned from them.

    Args:
        config: of the conditioner.
        captions: what is to be drawn.
        blank: read no weights of pretrained encoders: they are on the meta device.

    Raises:
        UserError: a pretrained encoder is not there.
    """
    match config:
        case NativeConfig(text_encoder=""):
            return TextTokenizer.train(captions(), config.text_vocab_size)
        case NativeConfig():
            return load_pretrained_text(config.text_encoder, blank)
        case CaptionConfig():
            return load_pretrained_text(_named(config.encoder, "encoder"), blank)
        case FusedConfig():
            text = load_pretrained_text(_named(config.text_encoder, "text_encoder"), blank)
            return PretrainedPair(text, load_pretrained_vision(_named(config.vision_encoder, "vision_encoder"), blank))
        case ClassLabelConfig():
            return None
        case _:
            assert_never(config)


def _named(place: str, key: str) -> str:
    if not place:
        raise UserError(f"conditioner.{key} names no encoder: give a folder or a name on the hub")
    return place


def save_material(material: Material, folder: Path) -> None:
    """Write it into a release folder."""
    if isinstance(material, PretrainedPair):
        material.save(folder)
    elif isinstance(material, PretrainedText):
        material.save(folder / TEXT_FOLDER)
    elif material is not None:
        (folder / _TEXT_TOKENIZER).write_text(material.to_json(), encoding="utf-8")


def load_material(config: ConditionerConfig, folder: Path, blank: bool = False) -> Material:
    """What `save_material` wrote.

    Args:
        config: of the conditioner.
        folder: the release folder.
        blank: read no weights of pretrained encoders: they are on the meta device.

    Raises:
        UserError: a file is missing or damaged.
    """
    match config:
        case NativeConfig(text_encoder=""):
            return TextTokenizer.load(folder / _TEXT_TOKENIZER)
        case NativeConfig() | CaptionConfig():
            return load_pretrained_text(folder / TEXT_FOLDER, blank)
        case FusedConfig():
            text = load_pretrained_text(folder / TEXT_FOLDER, blank)
            return PretrainedPair(text, load_pretrained_vision(folder / VISION_FOLDER, blank))
        case ClassLabelConfig():
            return None
        case _:
            assert_never(config)


__all__ = [
    "CaptionConditioner",
    "CaptionConfig",
    "ClassLabelConditioner",
    "ClassLabelConfig",
    "Condition",
    "Conditioner",
    "ConditionerConfig",
    "Dropped",
    "FusedConditioner",
    "FusedConfig",
    "Material",
    "NativeConditioner",
    "NativeConfig",
    "Prefix",
    "PretrainedPair",
    "PretrainedText",
    "PretrainedVision",
    "Span",
    "TextTokenizer",
    "build_conditioner",
    "drop_condition",
    "encode_condition",
    "images_only",
    "learn_material",
    "load_material",
    "load_pretrained_text",
    "load_pretrained_vision",
    "save_material",
    "text_only",
]
