"""What a training process keeps in memory from step to step, and writes to the disk: all of it can be counted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mentor.training.blueprint import Blueprint


@dataclass(frozen=True)
class States:
    """Bytes that stay from step to step, of one process. Each can be counted exactly.

    Attributes:
        weights: parameters and buffers of what is trained.
        gradients: of the parameters that are trained.
        optimizer: its state, once every parameter has had a gradient.
        average: the running average of the weights.
        image_tokenizer: the frozen one, beside a generator.
        buckets: in which distributed training sums up gradients.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    image_tokenizer: int
    buckets: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


def count_states(blueprint: Blueprint, averaged: bool, processes: int = 1, sharded: bool = False) -> States:
    """The states of the process that has most.

    Args:
        blueprint: what is trained.
        averaged: whether a running average is kept.
        processes: that train together.
        sharded: whether they share parameters, gradients, the optimizer's state and the average, by rows.
    """
    share = processes if sharded else 1
    parameters = list(blueprint.module.parameters())
    trained = size_of((parameter for parameter in parameters if parameter.requires_grad), share)
    frozen = blueprint.image_tokenizer if blueprint.generator is not None else nn.Module()
    return States(
        weights=size_of(parameters, share) + size_of(blueprint.module.buffers()),
        gradients=trained,
        optimizer=optimizer_bytes(blueprint.optimizer, share),
        average=trained if averaged else 0,
        image_tokenizer=size_of((*frozen.parameters(), *frozen.buffers())),
        buckets=trained if processes > 1 and not sharded else 0,
    )


def size_of(tensors: Iterable[Tensor], processes: int = 1) -> int:
    """Bytes of the tensors, each counted once; of processes that share them by rows, those of the first one."""
    return sum(_share(tensor, processes) for tensor in {id(one): one for one in tensors}.values())


def _share(tensor: Tensor, processes: int) -> int:
    size = tensor.numel() * tensor.element_size()
    rows = tensor.shape[0] if tensor.ndim else 1
    return size // max(1, rows) * -(-rows // processes)


def optimizer_bytes(optimizer: Optimizer, processes: int = 1) -> int:
    """Bytes of an optimizer's state once all parameters have had a gradient.

    The optimizer itself makes a step on the meta device, for one parameter of each kind: states follow from shapes.

    Args:
        optimizer: on the meta device.
        processes: how many share what is as large as a parameter.
    """
    alike: list[list[nn.Parameter]] = []
    for group in optimizer.param_groups:
        kinds: dict[Any, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            kinds.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
        alike.extend(kinds.values())
    for first, *_ in alike:
        first.grad = torch.empty_like(first)
    optimizer.step()
    total = 0
    for first, *others in alike:
        state = [value for value in optimizer.state[first].values() if isinstance(value, Tensor)]
        large = [value for value in state if value.shape == first.shape]
        small = [value for value in state if value.shape != first.shape]
        total += (size_of(large, processes) + size_of(small)) * (1 + len(others))
        first.grad = None
    return total


def checkpoint_bytes(blueprint: Blueprint, averaged: bool) -> int:
    """About what a checkpoint takes on the disk, of all processes together."""
    average = count_states(blueprint, averaged).average
    return size_of(blueprint.module.state_dict().values()) + average + optimizer_bytes(blueprint.optimizer)


def release_bytes(blueprint: Blueprint) -> int:
    """About what a release takes on the disk."""
    return size_of(blueprint.image_tokenizer.state_dict().values()) + (
        size_of(blueprint.generator.state_dict().values()) if blueprint.generator is not None else 0
    )
