"""Convolutional encoder and decoder with residual blocks, after LlamaGen's image tokenizer (arXiv 2406.06525).

Names of parts follow the published weights of that tokenizer, so that they load without a table of names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class PlaceNorm(nn.LayerNorm):
    """Normalisation of each place of a map over its own channels, whatever the other places hold."""

    def forward(self, input: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """The normalised map."""
        return rearrange(super().forward(rearrange(input, "b c y x -> b y x c")), "b y x c -> b c y x")


def build_norm(channels: int, groups: int) -> nn.Module:
    """Group normalisation with the epsilon of the published tokenizers; `PlaceNorm` for 0 groups."""
    return nn.GroupNorm(groups, channels, eps=1e-6) if groups else PlaceNorm(channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Twice norm, swish, 3x3 convolution, added to the input (through a 1x1 convolution where the widths differ)."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = build_norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = build_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d y x"]:
        """The map after the block."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.nin_shortcut(x) + hidden


class AttentionBlock(nn.Module):
    """Single-head self-attention over all places of the map, added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = build_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """The map after the block."""
        normal = self.norm(x)
        q, k, v = (rearrange(project(normal), "b c y x -> b 1 (y x) c") for project in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(mixed, "b 1 (y x) c -> b c y x", y=x.shape[2]))


class Downsample(nn.Module):
    """Half the resolution: zero row below, zero column to the right, 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c h w"]:
        """The smaller map."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c h w"]:
        """The larger map."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention if any, then a change of resolution."""

    def __init__(self, channels: int, out_channels: int, blocks: int, attention: bool, groups: int) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.res = nn.ModuleList(ResidualBlock(before, after, groups) for before, after in pairwise(widths))
        self.attn = nn.ModuleList(AttentionBlock(out_channels, groups) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d h w"]:
        """The map for the next level."""
        for index, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.upsample(self.downsample(x))


def middle(channels: int, attention: bool, groups: int) -> nn.ModuleList:
    """What stands between the levels and the codes: residual, attention (or nothing), residual."""
    between = AttentionBlock(channels, groups) if attention else nn.Identity()
    return nn.ModuleList(
        [ResidualBlock(channels, channels, groups), between, ResidualBlock(channels, channels, groups)]
    )


@dataclass(frozen=True)
class ConvShape:
    """What encoder and decoder have in common.

    Attributes:
        widths: channels of each level, finest first; each level halves the resolution of the one before.
        blocks: residual blocks a level.
        latent_width: channels of the coarse map that the encoder gives and the decoder takes.
        stem: side of the pixel square that is one place of the finest level.
        patches: change the resolution by 2x2 patches that do not overlap, and the width with it: a fraction of the cost
            of 3x3 convolutions at the finer resolution.
        attention: attention at the coarsest level and in the middle.
        middle: whether there are two more residual blocks at the coarsest resolution.
        groups: groups of the normalisations; 0 normalises each place by itself.
    """

    widths: Sequence[int]
    blocks: int
    latent_width: int
    stem: int
    patches: bool
    attention: bool
    middle: bool
    groups: int


class ConvEncoder(nn.Module):
    """Pixels to a coarse feature map."""

    def __init__(self, shape: ConvShape) -> None:
        super().__init__()
        widths, groups = shape.widths, shape.groups
        self.stem = shape.stem
        self.conv_in = nn.Conv2d(3 * shape.stem**2, widths[0], 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        before = widths[0]
        for index, width in enumerate(widths):
            last = index == len(widths) - 1
            level = Level(before, width, shape.blocks, shape.attention and last, groups)
            before = width
            if not last and shape.patches:
                level.downsample = nn.Conv2d(width, widths[index + 1], 2, stride=2)
                before = widths[index + 1]
            elif not last:
                level.downsample = Downsample(width)
            self.conv_blocks.append(level)
        self.mid = middle(widths[-1], shape.attention, groups) if shape.middle else nn.ModuleList()
        self.norm_out = build_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], shape.latent_width, 3, padding=1)

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b d gy gx"]:
        """The feature map."""
        x = self.conv_in(F.pixel_unshuffle(images, self.stem).contiguous(memory_format=torch.channels_last))
        for block in [*self.conv_blocks, *self.mid]:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class PlaceBlock(nn.Module):
    """Norm, linear layer to a wider vector, swish, linear layer back, added to the input: places do not mix."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up = nn.Linear(channels, hidden)
        self.down = nn.Linear(hidden, channels)

    def forward(self, x: Float[Tensor, "*places d"]) -> Float[Tensor, "*places d"]:
        """The vectors after the block."""
        return x + self.down(F.silu(self.up(self.norm(x))))


class NeighbourBlock(nn.Module):
    """A weighted look at the eight neighbours, channel by channel, added to the input; then a `PlaceBlock`."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.place = PlaceBlock(channels, hidden)

    def forward(self, x: Float[Tensor, "b gy gx d"]) -> Float[Tensor, "b gy gx d"]:
        """The map after the block."""
        # Contiguous, or the gradient of the kernels comes in an order of its own, which distributed training must undo.
        seen = self.look(rearrange(x, "b gy gx d -> b d gy gx").contiguous())
        return self.place(x + rearrange(seen, "b d gy gx -> b gy gx d"))


class PatchEncoder(nn.Module):
    """Pixels to a coarse feature map whose every place sees its own square of pixels and nothing else.

    Args:
        patch: side of that square.
        width: channels within.
        blocks: how many blocks.
        latent_width: channels of the result.
    """

    def __init__(self, patch: int, width: int, blocks: int, latent_width: int) -> None:
        super().__init__()
        self.patch = patch
        self.project_in = nn.Linear(3 * patch**2, width)
        self.blocks = nn.Sequential(*(PlaceBlock(width, 2 * width) for _ in range(blocks)))
        self.norm_out = nn.LayerNorm(width, eps=1e-6)
        self.project_out = nn.Linear(width, latent_width)

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b d gy gx"]:
        """The feature map."""
        patches = rearrange(images, "b c (gy p) (gx q) -> b gy gx (c p q)", p=self.patch, q=self.patch)
        x = self.blocks(self.project_in(patches))
        return rearrange(self.project_out(F.silu(self.norm_out(x))), "b gy gx d -> b d gy gx")


class ConvDecoder(nn.Module):
    """The way back from a coarse map to pixels."""

    def __init__(self, shape: ConvShape) -> None:
        super().__init__()
        widths, groups = list(reversed(shape.widths)), shape.groups
        self.stem = shape.stem
        self.conv_in = nn.Conv2d(shape.latent_width, widths[0], 3, padding=1)
        self.mid = middle(widths[0], shape.attention, groups) if shape.middle else nn.ModuleList()
        self.conv_blocks = nn.ModuleList()
        before = widths[0]
        for index, width in enumerate(widths):
            last = index == len(widths) - 1
            level = Level(before, width, shape.blocks, shape.attention and index == 0, groups)
            before = width
            if not last and shape.patches:
                level.upsample = nn.ConvTranspose2d(width, widths[index + 1], 2, stride=2)
                before = widths[index + 1]
            elif not last:
                level.upsample = Upsample(width)
            self.conv_blocks.append(level)
        self.norm_out = build_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 3 * shape.stem**2, 3, padding=1)

    def forward(self, latents: Float[Tensor, "b d gy gx"]) -> Float[Tensor, "b 3 y x"]:
        """Pixels, not clamped."""
        x = self.conv_in(latents.contiguous(memory_format=torch.channels_last))
        for block in [*self.mid, *self.conv_blocks]:
            x = block(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.stem)
