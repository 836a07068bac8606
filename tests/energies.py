"""How far two sets of samples are apart."""

import torch
from torch import Tensor


def energy_distance(one: Tensor, other: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'|, unbiased: 0 on average for samples of the same distribution."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return 2 * torch.cdist(one, other).mean() - within(one) - within(other)
