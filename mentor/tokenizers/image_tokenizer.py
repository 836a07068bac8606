"""The image tokenizer: a picture to a grid of codes and back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from mentor.config import Config
from mentor.errors import UserError
from mentor.nn.convolution import ConvDecoder, ConvEncoder, ConvShape, PatchEncoder
from mentor.tokenizers.clustering import Draws
from mentor.tokenizers.quantizers import QuantizerConfig, build_quantizer
from mentor.tokenizers.vq import VQConfig
from mentor.types import Codes


class PatchEncoderConfig(Config):
    """An encoder whose every code depends on its own square of pixels and on nothing else.

    The same thing on another background, or moved by whole squares, then keeps its codes, which makes copying it from a
    reference a matter of repeating them. The decoder still looks around.

    Attributes:
        width: channels within.
        blocks: how many residual blocks.
    """

    width: int = Field(default=192, gt=0)
    blocks: int = Field(default=3, ge=0)


class ImageTokenizerConfig(Config):
    """Shape of the encoder, the decoder and the codebook.

    The defaults are LlamaGen's VQ-16; with stem 1, attention, middle and no patches, other multipliers give its other
    tokenizers. A stem above 1 saves the costly finest levels, which small pictures on a CPU need.

    Attributes:
        channels: width of the encoder's finest level.
        multipliers: width of each level as a multiple of `channels`, finest first; each level halves the resolution of
            the one before.
        encoder_blocks: residual blocks a level in the encoder.
        decoder_channels: as `channels`, for the decoder; 0 takes the encoder's.
        decoder_multipliers: as `multipliers`, for the decoder; empty takes the encoder's.
        decoder_blocks: residual blocks a level in the decoder.
        decoder_stem: side of the pixel square that one place of the decoder's finest level draws; 0 takes `stem`.
        stem: side of the pixel square that enters the encoder as one place.
        patches: change the resolution by 2x2 patches that do not overlap, which costs a fraction of 3x3 convolutions.
        attention: attention at the coarsest level and in the middle.
        middle: two more residual blocks between levels and codes.
        latent_width: channels of the encoder's feature map, before it is squeezed to the width of a code.
        groups: groups of the normalisations; 0 normalises each place of a map by itself.
        patch_encoder: use this encoder instead; of what is said of the encoder above only `factor` follows then.
        quantizer: the codebook.
    """

    channels: int = Field(default=128, gt=0)
    multipliers: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)
    encoder_blocks: int = Field(default=2, gt=0)
    decoder_channels: int = Field(default=0, ge=0)
    decoder_multipliers: tuple[int, ...] = ()
    decoder_blocks: int = Field(default=3, gt=0)
    decoder_stem: int = Field(default=0, ge=0)
    stem: int = Field(default=1, gt=0)
    patches: bool = False
    attention: bool = True
    middle: bool = True
    latent_width: int = Field(default=256, gt=0)
    groups: int = Field(default=32, ge=0)
    patch_encoder: PatchEncoderConfig | None = None
    quantizer: QuantizerConfig = VQConfig(codes=16384)

    @property
    def encoder_shape(self) -> ConvShape:
        """The encoder's sizes."""
        return self._shape(self.channels, self.multipliers, self.encoder_blocks, self.stem)

    @property
    def decoder_shape(self) -> ConvShape:
        """The decoder's sizes."""
        multipliers = self.decoder_multipliers or self.multipliers
        return self._shape(
            self.decoder_channels or self.channels, multipliers, self.decoder_blocks, self.decoder_stem or self.stem
        )

    def _shape(self, channels: int, multipliers: tuple[int, ...], blocks: int, stem: int) -> ConvShape:
        return ConvShape(
            widths=[channels * multiplier for multiplier in multipliers],
            blocks=blocks,
            latent_width=self.latent_width,
            stem=stem,
            patches=self.patches,
            attention=self.attention,
            middle=self.middle,
            groups=self.groups,
        )

    @property
    def factor(self) -> int:
        """Pixels along the side of the square that one code stands for."""
        return self.stem * 2 ** (len(self.multipliers) - 1)

    @model_validator(mode="after")
    def _fits(self) -> "ImageTokenizerConfig":
        decoder = self.decoder_shape
        back = decoder.stem * 2 ** (len(decoder.widths) - 1)
        if back != self.factor:
            raise ValueError(
                f"the encoder shrinks pictures by {self.factor}, the decoder enlarges them by {back}: "
                f"give decoder_stem and decoder_multipliers that match stem and multipliers"
            )
        for width in [*self.encoder_shape.widths, *decoder.widths]:
            if self.groups and width % self.groups:
                raise ValueError(f"a level has {width} channels, which {self.groups} groups do not divide: change one")
        return self


@dataclass(frozen=True)
class TokenizerOutput:
    """A training pass: what was drawn (not clamped), from which codes, and what the quantizer adds to the loss."""

    images: Float[Tensor, "b 3 y x"]
    codes: Codes
    quantizer_loss: Float[Tensor, ""]


class ImageTokenizer(nn.Module):
    """Encoder, quantizer and decoder.

    Attributes:
        factor: pixels along the side of the square that one code stands for.
        vocab_size: how many codes there are.
        code_width: numbers in a code vector.
        feature_width: channels of `Codes.features`.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.quantize = build_quantizer(config.quantizer)
        self.factor = config.factor
        self.vocab_size = self.quantize.vocab_size
        self.code_width = self.quantize.width
        self.feature_width = config.latent_width
        self.encoder = _build_encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_width, self.code_width, 1)
        self.post_quant_conv = nn.Conv2d(self.code_width, config.latent_width, 1)
        self.decoder = ConvDecoder(config.decoder_shape)
        # Convolutions on the CPU and on tensor cores run fastest with the channels last.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def codebook(self) -> Float[Tensor, "v c"]:
        """Every code vector as the decoder reads it."""
        return self.quantize.codebook

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Codes:
        """The codes of pictures in [-1, 1].

        Raises:
            UserError: the sides are no multiples of the factor.
        """
        features = self._features(images)
        quantized = self.quantize(self.quant_conv(features))
        return Codes(quantized.ids, quantized.latents, features)

    def decode(self, latents: Float[Tensor, "b c gy gx"]) -> Float[Tensor, "b 3 y x"]:
        """Pictures in [-1, 1] of code vectors."""
        return self._draw(latents).clamp(-1, 1)

    def decode_ids(self, ids: Int[Tensor, "b gy gx"]) -> Float[Tensor, "b 3 y x"]:
        """Pictures in [-1, 1] of codes.

        Raises:
            UserError: an id outside the codebook.
        """
        lowest, highest = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
        if lowest < 0 or highest >= self.vocab_size:
            raise UserError(f"ids from {lowest} to {highest}: codes run from 0 to {self.vocab_size - 1}")
        return self.decode(self.quantize.lookup(ids))

    def continuous(self, features: Float[Tensor, "b d gy gx"]) -> Float[Tensor, "b c gy gx"]:
        """Latents of `Codes.features` before they become codes, where codes can lie; without noise in eval mode."""
        return self.quantize.relax(self.quant_conv(features.to(self.quant_conv.weight.dtype))).latents

    def picture(
        self, drawn: Int[Tensor, "b gy gx"] | Float[Tensor, "b c gy gx"], quantised: bool = False
    ) -> Float[Tensor, "b 3 y x"]:
        """Pictures in [-1, 1] of what a generator drew.

        Args:
            drawn: codes, or latents, which are brought to where codes can lie.
            quantised: put latents onto the nearest codes.

        Raises:
            UserError: an id outside the codebook.
        """
        if not drawn.is_floating_point():
            return self.decode_ids(drawn)
        onto = self.quantize if quantised else self.quantize.relax
        return self.decode(onto(drawn).latents)

    def forward(
        self, images: Float[Tensor, "b 3 y x"], quantize: bool = True, draws: Draws | None = None
    ) -> TokenizerOutput:
        """The round trip for training: pictures drawn anew, not clamped, and the quantizer's loss.

        Args:
            images: in [-1, 1].
            quantize: False leaves the latents continuous, which warms up encoder and decoder before there are codes.
            draws: the pictures' chance, where they have a place among those of other processes.
        """
        features = self._features(images)
        latents = self.quant_conv(features)
        quantized = self.quantize(latents, draws) if quantize else self.quantize.relax(latents, draws)
        drawn = self._draw(quantized.latents)
        return TokenizerOutput(drawn, Codes(quantized.ids, quantized.latents, features), quantized.loss)

    def start_codes(self, images: Float[Tensor, "b 3 y x"], draws: Draws | None = None) -> None:
        """Let the quantizer choose its codes by these pictures (all processes call this together)."""
        with torch.no_grad():
            self.quantize.start(self.quant_conv(self._features(images)), draws)

    def _features(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor or not height or not width:
            raise UserError(
                f"pictures of {height} x {width} px: the image tokenizer takes multiples of {self.factor} px"
            )
        return self.encoder(images.to(self.quant_conv.weight.dtype))

    def _draw(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents.to(self.post_quant_conv.weight.dtype))).float()


def _build_encoder(config: ImageTokenizerConfig) -> ConvEncoder | PatchEncoder:
    if config.patch_encoder is None:
        return ConvEncoder(config.encoder_shape)
    patch = config.patch_encoder
    return PatchEncoder(config.factor, patch.width, patch.blocks, config.latent_width)


def build_image_tokenizer(config: ImageTokenizerConfig) -> ImageTokenizer:
    """The image tokenizer that `config` describes, with fresh weights."""
    return ImageTokenizer(config)
