"""The gradient of an accumulation in progress, for checkpoints that are written in the middle of one."""

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor


def gradients_so_far(module: nn.Module, processes: int) -> dict[str, Tensor]:
    """The gradient of each parameter that has one in any process, as the mean over all of them. Every one has to call.

    Of a sharded parameter, whose gradient is reduced after every batch, it is that mean already.
    """
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    there = torch.tensor([parameter.grad is not None for parameter in parameters.values()], dtype=torch.int32)
    if processes > 1:
        distributed.all_reduce(there, distributed.ReduceOp.MAX)
    gradients = {}
    for (name, parameter), somewhere in zip(parameters.items(), there.tolist(), strict=True):
        if somewhere:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
            if processes > 1 and not isinstance(gradient, DTensor):
                distributed.all_reduce(gradient)
                gradient /= processes
            gradients[name] = gradient
    return gradients
