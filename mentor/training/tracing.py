"""What a training step would take, found by running it on tensors that have shapes and no numbers.

The step's own code runs, so what is counted changes with it. Nothing is allocated or computed; a step of any size takes
about a millisecond an operation.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class Traced(NamedTuple):
    """What a piece of work takes.

    Attributes:
        bytes: of tensors that are alive at once, at most; without the modules' weights and their gradients.
        flops: additions and multiplications of matrix products, convolutions and attention.
    """

    bytes: int
    flops: int


def trace(modules: Sequence[nn.Module], work: Callable[[], Tensor | None]) -> Traced:
    """What `work` would take, and the backward pass from the loss that it returns, if it returns one.

    What libraries take within an operation is not seen, nor what an allocator holds back.

    Args:
        modules: all that `work` uses; they are spoiled.
        work: makes its own inputs on the CPU, and must not ask for the value of a number.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in modules:
            module.to_empty(device="cpu")
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)
        weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        with Meter(weights) as meter:
            loss = work()
            if loss is not None:
                loss.backward()
    return Traced(meter.peak, meter.flops)


def autocast(precision: Precision, accelerator: bool) -> torch.autocast:
    """Within, a traced forward pass takes the types that training in this precision would.

    On an accelerator attention is fused. The CPU has a fused kernel for float16, which is as large as bfloat16, and the
    model does without one for bfloat16 there; so float16 stands for both where it is for an accelerator.
    """
    fused = accelerator or precision == "16-mixed"
    return torch.autocast(
        "cpu", dtype=torch.float16 if fused else torch.bfloat16, enabled=precision != "32-true", cache_enabled=True
    )


class Meter(TorchDispatchMode):
    """Counts the work of operations, and the bytes of tensors that they make, for as long as anyone holds them.

    Attributes:
        live: bytes now.
        peak: bytes at most so far.
        flops: additions and multiplications so far.

    Args:
        others: tensors that are not counted.
    """

    def __init__(self, others: Sequence[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in others}
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        # Attention as the CPU has it, which torch does not know how to count.
        self._rules = {**flop_registry, attention: _attention, backward: _attention_backward}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if (rule := self._rules.get(func._overloadpacket)) is not None:
            self.flops += rule(*args, **(kwargs or {}), out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        # Views share a storage; it has one object in Python for as long as it lives.
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _attention(queries: Tensor, keys: Tensor, values: Tensor, *others: Any, out_val: Any, **options: Any) -> int:
    return sdpa_flop_count(queries.shape, keys.shape, values.shape)


def _attention_backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, *others: Any, out_val: Any, **options: Any
) -> int:
    return sdpa_backward_flop_count(gradient.shape, queries.shape, keys.shape, values.shape)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
