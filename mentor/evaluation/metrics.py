"""Measures of pictures and masks, one number an example, and how two scores are put together."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

# A picture that equals its target has no error to take the logarithm of; it counts as this good.
HIGHEST_PSNR = 60.0


def psnr(images: Float[Tensor, "b c y x"], targets: Float[Tensor, "b c y x"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio of each picture in [-1, 1], in dB, at most `HIGHEST_PSNR`.

    A mean over pictures is a mean of these, not the ratio of the mean error, which the worst pictures would rule.
    """
    error = (images.double() - targets.double()).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4.0 / error)).clamp(max=HIGHEST_PSNR).float()


def intersection_over_union(predicted: Bool[np.ndarray, "y x"], true: Bool[np.ndarray, "y x"]) -> float:
    """Shared area over joint area of two masks; 1 where both are empty."""
    joint = int((predicted | true).sum())
    return int((predicted & true).sum()) / joint if joint else 1.0


def product(concept: float, prompt: float) -> float:
    """CP x PF of DreamBench++ (arXiv 2406.16855): high only where the subject is kept *and* the prompt is followed."""
    return concept * prompt


def imbalance(concept: float, prompt: float) -> float | None:
    """|log(CP / PF)|: 0 where both are equal, the same whichever is the larger; None where one of them is 0."""
    return abs(math.log(concept / prompt)) if concept > 0 and prompt > 0 else None
