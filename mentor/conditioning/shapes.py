"""Shapes of the encoders that shipped settings name, so that plans need neither their weights nor a network.

The numbers are those of each model's own config.json.
"""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# What is taken of the model of this name.
Part = Literal["text", "vision"]

_T5 = {"vocab_size": 32128, "d_kv": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_CLIP_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SHAPES: dict[tuple[str, Part], tuple[str, dict[str, Any]]] = {
    ("google/flan-t5-base", "text"): ("t5", _T5 | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}),
    ("google/flan-t5-large", "text"): ("t5", _T5 | {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16}),
    ("google/flan-t5-xl", "text"): ("t5", _T5 | {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32}),
    ("openai/clip-vit-large-patch14", "text"): (
        "clip_text_model",
        _CLIP_TEXT | {"vocab_size": 49408, "max_position_embeddings": 77},
    ),
    ("openai/clip-vit-large-patch14", "vision"): ("clip_vision_model", _VIT_L | {"image_size": 224, "patch_size": 14}),
    ("google/siglip-so400m-patch14-224", "vision"): (
        "siglip_vision_model",
        _SO400M | {"image_size": 224, "patch_size": 14},
    ),
}


def known_shape(place: str, part: Part) -> "PreTrainedConfig | None":
    """The settings of the encoder of this name, if it is one of those listed here."""
    from transformers import CLIPTextConfig, CLIPVisionConfig, SiglipVisionConfig, T5Config

    if (place, part) not in _SHAPES:
        return None
    kind, shape = _SHAPES[place, part]
    kinds = {
        "t5": T5Config,
        "clip_text_model": CLIPTextConfig,
        "clip_vision_model": CLIPVisionConfig,
        "siglip_vision_model": SiglipVisionConfig,
    }
    return kinds[kind](**shape)


def blank_tokenizer(vocabulary: int) -> "PreTrainedTokenizerBase":
    """A tokenizer that takes each blank-separated word for one of its entries."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(number): number for number in range(vocabulary)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0")
