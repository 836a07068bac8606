"""The norm of a gradient, and clipping to one, for whole parameters and for shards of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def total_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Euclidean norm over all elements of all gradients; of sharded ones over all processes, which all have to ask."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_gradients(parameters: Sequence[nn.Parameter], largest: float, norm: Float[Tensor, ""]) -> None:
    """Scale the parameters' gradients, whose norm is given, down to the largest norm if they have more."""
    torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
