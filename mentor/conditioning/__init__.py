"""From prompts to a prefix. A new conditioner is a class with a config of its own kind, and a case below."""

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

ConditionerConfig = NativeConfig


def build_conditioner(
    config: ConditionerConfig, text_tokenizer: TextTokenizer, spec: CodeSpec, width: int
) -> NativeConditioner:
    """The conditioner that `config` describes, giving tokens of `width`."""
    return NativeConditioner(config, text_tokenizer, spec, width)


__all__ = [
    "Condition",
    "ConditionerConfig",
    "NativeConditioner",
    "NativeConfig",
    "Prefix",
    "Span",
    "TextTokenizer",
    "build_conditioner",
    "drop_condition",
    "encode_condition",
    "images_only",
    "text_only",
]
