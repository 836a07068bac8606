"""Pixels as the tensors that models read, and back; what only handles files can do without torch."""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mentor.data.transforms import Pixels


def to_tensor(pixels: Pixels) -> Float[Tensor, "c y x"]:
    """uint8 pixels as float32 in [-1, 1], channels first."""
    # Turned while they are still bytes, of which there are a quarter as many.
    channels = np.ascontiguousarray(rearrange(pixels, "y x c -> c y x"))
    return torch.from_numpy(channels).float().div_(127.5).sub_(1.0)


def to_pixels(image: Float[Tensor, "c y x"]) -> Pixels:
    """The inverse of `to_tensor`, rounded to the nearest of 256 values; what lies outside [-1, 1] is clamped."""
    scaled = image.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return rearrange(scaled, "c y x -> y x c").contiguous().numpy()
