"""The quantizers there are. A new one is a class that keeps the contract, with a config of its own, and a case."""

from typing import Annotated, assert_never

from pydantic import Field

from mentor.tokenizers.ema_vq import EMAVectorQuantizer, EMAVQConfig
from mentor.tokenizers.fsq import FiniteScalarQuantizer, FSQConfig
from mentor.tokenizers.quantizer import Quantizer
from mentor.tokenizers.vq import VectorQuantizer, VQConfig

QuantizerConfig = Annotated[VQConfig | EMAVQConfig | FSQConfig, Field(discriminator="kind")]


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that `config` describes."""
    match config:
        case VQConfig():
            return VectorQuantizer(config)
        case EMAVQConfig():
            return EMAVectorQuantizer(config)
        case FSQConfig():
            return FiniteScalarQuantizer(config)
        case _:
            assert_never(config)
