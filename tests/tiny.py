"""Models of a few thousand random weights, for tests that need one that works and not one that knows anything."""

from pathlib import Path

import torch

from mentor.conditioning import (
    FusedConfig,
    NativeConfig,
    PretrainedPair,
    PretrainedText,
    PretrainedVision,
    TextTokenizer,
)
from mentor.models import AnyGenerator, ARHeadConfig, BackboneConfig, Generator, GeneratorConfig, build_generator
from mentor.models.checkpoint import Card, code_spec, save_generator, save_image_tokenizer
from mentor.models.heads import HeadConfig
from mentor.tokenizers import ImageTokenizer, ImageTokenizerConfig, VQConfig, build_image_tokenizer

CAPTIONS = ("a large red circle at the left on stripes", "a blue square at the left")


def tiny_image_tokenizer(stem: int = 4, codes: int = 32, width: int = 8) -> ImageTokenizer:
    """A convolutional tokenizer of 2 * stem px a code, the same at every call, in eval mode."""
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        channels=8,
        multipliers=(1, 2),
        encoder_blocks=1,
        decoder_blocks=1,
        stem=stem,
        attention=False,
        middle=False,
        latent_width=16,
        groups=4,
        quantizer=VQConfig(codes=codes, width=width),
    )
    return build_image_tokenizer(config).eval()


def tiny_generator(
    image_tokenizer: ImageTokenizer,
    image_size: int = 64,
    layers: int = 1,
    max_prefix: int = 256,
    head: HeadConfig | None = None,
) -> AnyGenerator:
    """A generator for the tokenizer's codes or latents, the same at every call."""
    torch.manual_seed(1)
    config = GeneratorConfig(
        conditioner=NativeConfig(max_prefix=max_prefix),
        backbone=BackboneConfig(layers=layers, width=32, heads=2, rope_base=100),
        head=head or ARHeadConfig(),
    )
    text_tokenizer = TextTokenizer.train(CAPTIONS, 300)
    return build_generator(config, text_tokenizer, code_spec(image_tokenizer, image_size), image_tokenizer.codebook)


def tiny_text_encoder(width: int = 24) -> PretrainedText:
    """A T5 encoder with random weights, the same at every call; it knows the words of the captions and marks ends."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    table = {word: place for place, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])  # type: ignore
    torch.manual_seed(3)
    shape = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3, "vocab_size": len(table)}
    model = T5EncoderModel(T5Config(**shape)).eval().requires_grad_(False)
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PretrainedText(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks))


def tiny_clip_text_encoder(positions: int = 12) -> PretrainedText:
    """CLIP's text encoder with random weights, the same at every call; it reads no more tokens than `positions`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_text_encoder().tokenizer
    torch.manual_seed(5)
    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"vocab_size": len(tokenizer), "max_position_embeddings": positions, "bos_token_id": 0, "eos_token_id": 1}
    return PretrainedText(CLIPTextModel(CLIPTextConfig(**shape)).eval().requires_grad_(False), tokenizer)


def tiny_vision_encoder(kind: str = "clip") -> PretrainedVision:
    """An image encoder with random weights, the same at every call: 2 x 2 patches of 28 px pictures."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(4)
    shape = {"hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape |= {"image_size": 28, "patch_size": 14}
    model = {
        "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**shape)),
        "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**shape)),
    }[kind]()
    return PretrainedVision(model.eval().requires_grad_(False), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


def tiny_fused_generator(image_tokenizer: ImageTokenizer, image_size: int = 64) -> Generator:
    """A generator of MENTOR's layout over the tiny encoders, the same at every call."""
    pair = PretrainedPair(tiny_text_encoder(), tiny_vision_encoder())
    torch.manual_seed(2)
    config = GeneratorConfig(
        conditioner=FusedConfig(slots=24),
        backbone=BackboneConfig(layers=1, width=32, heads=2, rope_prefix=False),
        head=ARHeadConfig(tied=False),
        placement="own",
        causal_prefix=True,
        grid_embeddings=False,
    )
    return build_generator(config, pair, code_spec(image_tokenizer, image_size), image_tokenizer.codebook)


def save_tiny_releases(folder: Path, codes: int = 32) -> Path:
    """Write the releases `tokenizer` and `model` into `folder`, for pictures of 64 px; `folder`."""
    image_tokenizer = tiny_image_tokenizer(codes=codes)
    save_image_tokenizer(folder / "tokenizer", image_tokenizer, 64, Card("test"))
    card = Card("test", training={"steps": 3})
    save_generator(folder / "model", tiny_generator(image_tokenizer), image_tokenizer, 64, card)
    return folder


def waken(generator: torch.nn.Module, std: float = 0.2) -> torch.nn.Module:
    """The module with random numbers wherever it begins with zeros, so that everything in it has an effect."""
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in generator.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=source) * std)
    return generator
