"""Image tokenizers and the quantizers inside them."""

from mentor.tokenizers.clustering import Draws, sum_over_processes
from mentor.tokenizers.discriminator import Discriminator, DiscriminatorConfig
from mentor.tokenizers.ema_vq import EMAVectorQuantizer, EMAVQConfig
from mentor.tokenizers.fsq import FiniteScalarQuantizer, FSQConfig
from mentor.tokenizers.image_tokenizer import (
    ImageTokenizer,
    ImageTokenizerConfig,
    PatchEncoderConfig,
    TokenizerOutput,
    build_image_tokenizer,
)
from mentor.tokenizers.losses import (
    AdversarialKind,
    AdversarialLossConfig,
    PixelLoss,
    PixelLossConfig,
    code_usage,
    discriminator_loss,
    generator_loss,
    perplexity,
    psnr,
)
from mentor.tokenizers.quantizer import Quantized, Quantizer
from mentor.tokenizers.quantizers import QuantizerConfig, build_quantizer
from mentor.tokenizers.vq import VectorQuantizer, VQConfig

__all__ = [
    "AdversarialKind",
    "AdversarialLossConfig",
    "Discriminator",
    "DiscriminatorConfig",
    "Draws",
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
    "discriminator_loss",
    "generator_loss",
    "perplexity",
    "psnr",
    "sum_over_processes",
]
