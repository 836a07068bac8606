"""Image tokenizers of LlamaGen (VQ-8 and VQ-16) and of taming-transformers (VQGAN)."""

import re
from collections.abc import Mapping

import torch
from pydantic import ValidationError
from torch import Tensor

from mentor.conversion.mapping import Mapped, Report, take
from mentor.errors import UserError
from mentor.tokenizers import ImageTokenizer, ImageTokenizerConfig, VQConfig, build_image_tokenizer

# What ours keeps of its own training, which theirs do not know.
_OWN = ("quantize.started", "quantize.usage", "quantize.age")
# taming's names of a level and of the middle, and LlamaGen's, which are ours.
_LEVEL = re.compile(r"(encoder|decoder)\.(down|up)\.(\d+)\.(block|attn)\.(.+)")
_RESAMPLE = re.compile(r"(encoder|decoder)\.(down|up)\.(\d+)\.(downsample|upsample)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block_1|attn_1|block_2)\.(.+)")


def convert_llamagen_vq(theirs: Mapping[str, Tensor], what: str) -> tuple[ImageTokenizer, Report]:
    """The image tokenizer of a LlamaGen checkpoint (arXiv 2406.06525).

    Args:
        theirs: the weights by name; all sizes are read off their shapes.
        what: how messages call the checkpoint.

    Raises:
        UserError: these are not such weights.
    """
    ignored = {r"quantize\.codebook_used": "a log of the codes that were used in training"}
    return _convert({name: name for name in theirs}, theirs, what, True, ignored)


def convert_taming_vqgan(theirs: Mapping[str, Tensor], what: str) -> tuple[ImageTokenizer, Report]:
    """The image tokenizer of a VQGAN checkpoint (arXiv 2012.09841) with attention at its coarsest level alone.

    Args:
        theirs: the weights by name; all sizes are read off their shapes.
        what: how messages call the checkpoint.

    Raises:
        UserError: these are not such weights.
    """
    levels = len({match[3] for name in theirs if (match := _LEVEL.fullmatch(name)) and match[2] == "up"})
    ignored = {r"loss\..+": "discriminator and perceptual loss, which only training needs"}
    return _convert({_modern(name, levels): name for name in theirs}, theirs, what, False, ignored)


def map_llamagen_vq(tokenizer: ImageTokenizer) -> Mapped:
    """How the tensors of an image tokenizer of ours are called by LlamaGen, which is as we call them."""
    return _map(tokenizer, {name: name for name in tokenizer.state_dict()}, {})


def check_llamagen_shape(tokenizer: ImageTokenizer, what: str) -> None:
    """Nothing, where LlamaGen's code could build the tokenizer too.

    Raises:
        UserError: it has parts that LlamaGen's have not.
    """
    config = tokenizer.config
    fixed = {
        "stem": (config.stem, 1),
        "decoder_stem": (config.decoder_stem or 1, 1),
        "patches": (config.patches, False),
        "attention": (config.attention, True),
        "middle": (config.middle, True),
        "groups": (config.groups, 32),
        "patch_encoder": (config.patch_encoder, None),
        "quantizer.kind": (config.quantizer.kind, "vq"),
        "quantizer.unit": (getattr(config.quantizer, "unit", True), True),
    }
    different = [f"{name}={own}" for name, (own, theirs) in fixed.items() if own != theirs]
    if different:
        raise UserError(f"{what} has parts that LlamaGen's image tokenizers have not ({', '.join(different)})")


def _convert(
    names: Mapping[str, str], theirs: Mapping[str, Tensor], what: str, unit: bool, ignored: Mapping[str, str]
) -> tuple[ImageTokenizer, Report]:
    """The image tokenizer of weights of which `names` gives, for our names, theirs."""
    config = _read_config({ours: theirs[name] for ours, name in names.items()}, what, unit)
    tokenizer = build_image_tokenizer(config)
    report = take(tokenizer, theirs, _map(tokenizer, names, ignored), what)
    return tokenizer.eval(), report


def _map(tokenizer: ImageTokenizer, names: Mapping[str, str], ignored: Mapping[str, str]) -> Mapped:
    state = tokenizer.state_dict()
    own = {name: torch.ones_like(state[name]) if name == "quantize.started" else state[name] for name in _OWN}
    return Mapped({name: (names.get(name, name),) for name in state if name not in own}, own, ignored)


def _modern(name: str, levels: int) -> str:
    """What LlamaGen would call a tensor that taming calls `name`."""
    kinds = {"block": "res", "attn": "attn", "downsample": "downsample", "upsample": "upsample"}
    if match := _LEVEL.fullmatch(name) or _RESAMPLE.fullmatch(name):
        side, way, level, kind, rest = match.groups()
        # taming counts the decoder's levels from the finest, LlamaGen in the order in which they come.
        place = levels - 1 - int(level) if way == "up" else int(level)
        return f"{side}.conv_blocks.{place}.{kinds[kind]}.{rest}"
    if match := _MIDDLE.fullmatch(name):
        side, part, rest = match.groups()
        return f"{side}.mid.{('block_1', 'attn_1', 'block_2').index(part)}.{rest}"
    return name


def _read_config(weights: Mapping[str, Tensor], what: str, unit: bool) -> ImageTokenizerConfig:
    """The sizes of a tokenizer, from the shapes of its tensors under our names."""
    try:
        channels = weights["encoder.conv_in.weight"].shape[0]
        levels = _count(weights, r"encoder\.conv_blocks\.(\d+)\..+")
        firsts = [weights[f"encoder.conv_blocks.{level}.res.0.conv1.weight"] for level in range(levels)]
        decoder_channels = weights["decoder.conv_out.weight"].shape[1]
        decoder_firsts = [weights[f"decoder.conv_blocks.{level}.res.0.conv1.weight"] for level in range(levels)]
        codes, width = weights["quantize.embedding.weight"].shape
        latent_width = weights["encoder.conv_out.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{what} holds no image tokenizer of this kind (no {error} among its {len(weights)} tensors, which begin "
            f"with {sorted(weights)[:3]}): name the kind it is of"
        ) from error
    try:
        return ImageTokenizerConfig(
            channels=channels,
            multipliers=tuple(first.shape[0] // channels for first in firsts),
            encoder_blocks=_count(weights, r"encoder\.conv_blocks\.0\.res\.(\d+)\..+"),
            decoder_channels=0 if decoder_channels == channels else decoder_channels,
            decoder_multipliers=_decoder_multipliers(decoder_firsts, firsts, decoder_channels),
            decoder_blocks=_count(weights, r"decoder\.conv_blocks\.0\.res\.(\d+)\..+"),
            latent_width=latent_width,
            quantizer=VQConfig(codes=codes, width=width, unit=unit),
        )
    except ValidationError as error:
        raise UserError(
            f"{what} has sizes that no image tokenizer of ours has ({error}): convert another one"
        ) from error


def _decoder_multipliers(decoder: list[Tensor], encoder: list[Tensor], channels: int) -> tuple[int, ...]:
    """Finest first as in the settings; empty where they are the encoder's."""
    widths = [first.shape[0] for first in reversed(decoder)]
    return () if widths == [first.shape[0] for first in encoder] else tuple(width // channels for width in widths)


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in weights if (match := re.fullmatch(pattern, name))})
