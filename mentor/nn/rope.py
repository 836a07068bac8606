"""Rotary positions over a grid: half of the pairs turn with the row, half with the column, as in LlamaGen's decoder."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def rotary_table(
    coordinates: Float[Tensor, "b n 2"], head_width: int, base: float
) -> tuple[Float[Tensor, "b 1 n half"], Float[Tensor, "b 1 n half"]]:
    """Cosines and sines that turn queries and keys by their grid position.

    Args:
        coordinates: (row, column) of each token. (0, 0) leaves a token unrotated, which is what text gets.
        head_width: width of one head, a multiple of four.
        base: the longest wavelength's base; small grids want a small one.

    Returns:
        Two float32 tables. The first quarter of the pairs follows the row, the second the column; frequencies are
        base^(-2j / (head_width / 2)).
    """
    pairs = head_width // 4
    exponents = torch.arange(pairs, device=coordinates.device, dtype=torch.float32) * 2 / (head_width / 2)
    frequencies = base**-exponents
    angles = rearrange(coordinates.float(), "b n two -> b n two 1") * frequencies
    angles = rearrange(angles, "b n two pairs -> b 1 n (two pairs)")
    return angles.cos(), angles.sin()


def apply_rotary(
    x: Float[Tensor, "b h n k"], cosines: Float[Tensor, "b 1 n half"], sines: Float[Tensor, "b 1 n half"]
) -> Float[Tensor, "b h n k"]:
    """`x` with its interleaved pairs (2i, 2i + 1) turned, computed in float32 and given back in the type of `x`."""
    # A turn is a product of complex numbers; spelled out in real ones it takes four times as long on the CPU.
    pairs = torch.view_as_complex(rearrange(x.float(), "b h n (half two) -> b h n half two", two=2).contiguous())
    turned = torch.view_as_real(pairs * torch.complex(cosines, sines))
    return rearrange(turned, "b h n half two -> b h n (half two)").to(x.dtype)
