"""The image tokenizer as a whole: shapes, sizes, errors, and that it learns."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from mentor.config import read_yaml
from mentor.errors import UserError
from mentor.tokenizers import (
    EMAVQConfig,
    FSQConfig,
    ImageTokenizer,
    ImageTokenizerConfig,
    PatchEncoderConfig,
    PixelLoss,
    PixelLossConfig,
    VQConfig,
    build_image_tokenizer,
    code_usage,
    perplexity,
)

CONFIGS = Path(__file__).parents[3] / "configs" / "image_tokenizer"
SMALL = {"channels": 8, "multipliers": (1, 2), "stem": 2, "latent_width": 16, "groups": 4}
SMALL |= {"encoder_blocks": 1, "decoder_blocks": 1}
PATCHES = PatchEncoderConfig(width=24, blocks=2)
QUANTIZERS = [VQConfig(codes=32, width=4), EMAVQConfig(codes=32, width=4), FSQConfig(levels=(4, 4, 3))]


def small(**changes) -> ImageTokenizer:
    torch.manual_seed(0)
    return build_image_tokenizer(ImageTokenizerConfig(**{**SMALL, "quantizer": QUANTIZERS[0], **changes}))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda config: config.kind)
def test_shapes_and_ranges(quantizer) -> None:
    tokenizer = small(quantizer=quantizer).eval()
    images = 3 * torch.randn(2, 3, 16, 24)
    codes = tokenizer.encode(images)
    assert codes.ids.shape == (2, 4, 6)
    assert codes.latents.shape == (2, tokenizer.code_width, 4, 6)
    assert codes.features.shape == (2, tokenizer.feature_width, 4, 6)
    assert tokenizer.codebook.shape == (tokenizer.vocab_size, tokenizer.code_width)
    tokenizer.decoder.conv_out.bias.data.fill_(5.0)
    drawn = tokenizer.decode(codes.latents)
    assert drawn.shape == images.shape
    assert drawn.min() >= -1 and drawn.max() == 1
    assert torch.equal(drawn, tokenizer.decode_ids(codes.ids))


def test_training_pass_is_the_round_trip_without_the_clamp() -> None:
    tokenizer = small().eval()
    images = torch.randn(2, 3, 16, 16)
    output = tokenizer(images)
    assert torch.equal(output.codes.ids, tokenizer.encode(images).ids)
    assert torch.equal(output.images.clamp(-1, 1), tokenizer.decode_ids(output.codes.ids))
    assert not torch.equal(tokenizer(images, quantize=False).images, output.images)


SHAPES = [{}, {"patches": True}, {"middle": False, "attention": False}, {"groups": 0, "patch_encoder": PATCHES}]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("quantize", [True, False])
def test_every_weight_learns(changes: dict, quantize: bool) -> None:
    tokenizer = small(**changes)
    output = tokenizer(torch.randn(2, 3, 16, 16), quantize=quantize)
    (output.images.square().mean() + output.quantizer_loss).backward()
    silent = [name for name, weight in tokenizer.named_parameters() if weight.grad is None]
    assert not silent


def test_a_decoder_may_be_finer_than_the_encoder() -> None:
    tokenizer = small(decoder_stem=1, decoder_multipliers=(1, 1, 2), decoder_channels=4)
    images = torch.randn(1, 3, 8, 8)
    assert tokenizer(images).images.shape == images.shape
    with pytest.raises(ValidationError, match="shrinks pictures by 4, the decoder enlarges them by 2"):
        ImageTokenizerConfig(**{**SMALL, "decoder_stem": 1})


def test_groups_must_divide_the_widths() -> None:
    with pytest.raises(ValidationError, match="a level has 8 channels, which 3 groups do not divide"):
        ImageTokenizerConfig(**{**SMALL, "groups": 3})


def test_wrong_sizes_and_ids_are_refused() -> None:
    tokenizer = small()
    with pytest.raises(UserError, match="16 x 18 px: the image tokenizer takes multiples of 4 px"):
        tokenizer.encode(torch.zeros(1, 3, 16, 18))
    with pytest.raises(UserError, match="codes run from 0 to 31"):
        tokenizer.decode_ids(torch.full((1, 2, 2), 32))


def test_the_fields_of_the_grid_lie_where_their_pixels_lie() -> None:
    tokenizer = small(attention=False, middle=False).eval()
    images = torch.zeros(1, 3, 48, 48)
    changed = images.clone()
    changed[:, :, 40:44, 4:8] = 1.0
    difference = (tokenizer.encode(images).features - tokenizer.encode(changed).features).abs().sum(dim=1)[0]
    row, column = divmod(int(difference.argmax()), 12)
    assert abs(row - 10) <= 1 and abs(column - 1) <= 1
    assert difference[0, 11] < 0.3 * difference.max()


def test_patches_keep_their_codes_wherever_they_stand() -> None:
    tokenizer = small(patch_encoder=PATCHES, groups=0).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 16, 24, generator=generator)
    other = torch.randn(2, 3, 16, 24, generator=generator)
    other[:, :, 4:12, 8:16] = images[:, :, 0:8, 4:12]
    ids, moved = tokenizer.encode(images).ids, tokenizer.encode(other).ids
    assert torch.equal(moved[:, 1:3, 2:4], ids[:, 0:2, 1:3])
    assert not torch.equal(moved, ids)
    # The decoder does look around.
    codes = tokenizer.encode(images).latents
    changed = codes.clone()
    changed[:, :, 0, 0] *= -1
    difference = (tokenizer.decode(codes) - tokenizer.decode(changed)).abs().amax(dim=(0, 1))
    assert difference[0:4, 0:4].max() > 0 and difference[0:4, 4:8].max() > 0


def count(config: ImageTokenizerConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_image_tokenizer(config).parameters())


def test_the_published_sizes() -> None:
    f16, f8 = (ImageTokenizerConfig(**read_yaml(CONFIGS / f"{name}.yaml")) for name in ("f16", "f8"))
    assert (f16.factor, f8.factor) == (16, 8)
    assert count(f16) == 71_883_403
    assert 69_500_000 < count(f8) < 71_000_000
    assert f16 == ImageTokenizerConfig()


def test_the_names_of_the_published_weights() -> None:
    with torch.device("meta"):
        names = set(build_image_tokenizer(ImageTokenizerConfig()).state_dict())
    parts = ["encoder.conv_in", "encoder.conv_blocks.2.res.0.nin_shortcut", "encoder.conv_blocks.4.attn.1.proj_out"]
    parts += ["encoder.conv_blocks.3.downsample.conv", "encoder.mid.0.conv1", "encoder.mid.1.q", "encoder.mid.2.norm2"]
    parts += ["encoder.norm_out", "encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in"]
    parts += [
        "decoder.conv_blocks.0.attn.2.k",
        "decoder.conv_blocks.0.upsample.conv",
        "decoder.conv_blocks.4.res.2.conv2",
    ]
    assert {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")} <= names
    assert "quantize.embedding.weight" in names
    assert not any("4.downsample" in name or "4.upsample" in name for name in names)


def test_the_demos_tokenizer() -> None:
    config = ImageTokenizerConfig(**read_yaml(CONFIGS / "demo.yaml"))
    tokenizer = build_image_tokenizer(config)
    assert (tokenizer.factor, tokenizer.vocab_size, tokenizer.code_width) == (8, 2048, 8)
    assert sum(weight.numel() for weight in tokenizer.parameters()) < 3_000_000


def test_convolutions_keep_the_channels_last_through_loading() -> None:
    tokenizer = small()
    weights = {name: tensor.contiguous() for name, tensor in tokenizer.state_dict().items()}
    fresh = small()
    fresh.load_state_dict(weights)
    kernels = [part.weight for part in fresh.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_bfloat16_weights_and_autocast_run() -> None:
    tokenizer = small().eval()
    images = torch.randn(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tokenizer(images).images.dtype == torch.float32
    assert torch.isfinite(tokenizer.bfloat16()(images).images).all()


def test_a_few_pictures_are_learnt_by_heart() -> None:
    tokenizer = small(channels=16, patches=True, attention=False, middle=False)
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(8, 3, 4, 4, generator=generator) * 2 - 1
    images = nn.functional.interpolate(colours, scale_factor=4, mode="nearest")
    loss, optimizer = PixelLoss(PixelLossConfig()), torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    for step in range(120):
        if step == 40:
            tokenizer.start_codes(images)
        output = tokenizer(images, quantize=step >= 40)
        optimizer.zero_grad()
        (loss(output.images, images) + output.quantizer_loss).backward()
        optimizer.step()
    tokenizer.eval()
    error = (tokenizer.decode_ids(tokenizer.encode(images).ids) - images).square().mean()
    assert error < 0.15 * images.var()


def test_pixel_loss_sees_colour_as_much_as_it_is_told_to() -> None:
    gray, red = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    # A change of colour at equal luma.
    red[:, 0], red[:, 1] = 0.587, -0.299
    weak, strong = (PixelLoss(PixelLossConfig(chroma=chroma, absolute=0))(red, gray) for chroma in (1.0, 2.0))
    assert strong == pytest.approx(4 * float(weak), rel=1e-5)
    assert PixelLoss(PixelLossConfig())(red, red) == 0


def test_usage_and_perplexity() -> None:
    counts = torch.tensor([5.0, 5.0, 0.0, 0.0])
    assert code_usage(counts) == 0.5
    assert perplexity(counts) == pytest.approx(2.0)
    assert perplexity(torch.ones(7)) == pytest.approx(7.0)
    assert torch.isfinite(perplexity(torch.zeros(4)))
