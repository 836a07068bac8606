"""Rotary positions over a grid: half of the pairs turn with the row, half with the column, as in LlamaGen's decoder."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Rotary = Float[Tensor, "b 1 n half 2"]


def rotary_table(coordinates: Float[Tensor, "b n 2"], head_width: int, base: float) -> Rotary:
    """Cosines and sines, side by side, that turn queries and keys by their grid position.

    Args:
        coordinates: (row, column) of each token. (0, 0) leaves a token unrotated, which is what text gets.
        head_width: width of one head, a multiple of four.
        base: the longest wavelength's base; small grids want a small one.

    Returns:
        A float32 table. The first quarter of the pairs follows the row, the second the column; frequencies are
        base^(-2j / (head_width / 2)).
    """
    pairs = head_width // 4
    exponents = torch.arange(pairs, device=coordinates.device, dtype=torch.float32) * 2 / (head_width / 2)
    frequencies = base**-exponents
    angles = rearrange(coordinates.float(), "b n two -> b n two 1") * frequencies
    angles = rearrange(angles, "b n two pairs -> b 1 n (two pairs)")
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def apply_rotary(x: Float[Tensor, "b h n k"], rotary: Rotary) -> Float[Tensor, "b h n k"]:
    """`x` with its interleaved pairs (2i, 2i + 1) turned, computed in float32 and given back in the type of `x`."""
    pairs = x.float().unflatten(-1, (-1, 2))
    # A turn is a product of complex numbers; spelled out in real ones it takes four times as long on the CPU.
    turned = turn_as_complex(pairs, rotary) if x.device.type == "cpu" else turn_as_real(pairs, rotary)
    return turned.flatten(-2).to(x.dtype)


def turn_as_complex(pairs: Float[Tensor, "b h n half 2"], rotary: Rotary) -> Float[Tensor, "b h n half 2"]:
    """The pairs turned, as one product of complex numbers."""
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary))


def turn_as_real(pairs: Float[Tensor, "b h n half 2"], rotary: Rotary) -> Float[Tensor, "b h n half 2"]:
    """The pairs turned, by real numbers alone, which is what a compiler for GPUs understands."""
    (even, odd), (cosines, sines) = pairs.unbind(-1), rotary.unbind(-1)
    return torch.stack((even * cosines - odd * sines, even * sines + odd * cosines), dim=-1)
