"""Image tokenizers and the quantizers inside them."""

from mentor.tokenizers.ema_vq import EMAVectorQuantizer, EMAVQConfig
from mentor.tokenizers.fsq import FiniteScalarQuantizer, FSQConfig
from mentor.tokenizers.image_tokenizer import (
    ImageTokenizer,
    ImageTokenizerConfig,
    PatchEncoderConfig,
    TokenizerOutput,
    build_image_tokenizer,
)
from mentor.tokenizers.losses import PixelLoss, PixelLossConfig, code_usage, perplexity, psnr
from mentor.tokenizers.quantizer import Quantized, Quantizer
from mentor.tokenizers.quantizers import QuantizerConfig, build_quantizer
from mentor.tokenizers.vq import VectorQuantizer, VQConfig

__all__ = [
    "EMAVQConfig",
    "EMAVectorQuantizer",
    "FSQConfig",
    "FiniteScalarQuantizer",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "PatchEncoderConfig",
    "PixelLoss",
    "PixelLossConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "TokenizerOutput",
    "VQConfig",
    "VectorQuantizer",
    "build_image_tokenizer",
    "build_quantizer",
    "code_usage",
    "perplexity",
    "psnr",
]
