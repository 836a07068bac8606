"""Linear layers whose weights never change again, laid out for the products of decoding.

A step of decoding multiplies a few rows by every weight once and waits for memory. On the CPU, oneDNN's own layout of
the weights halves the time against `torch.nn.functional.linear`; weights of fewer bytes take less again. These
operations are those that torch's compiler calls for packed weights; where a build of torch lacks them, the plain
product stands in.
"""

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mentor.errors import UserError

Precision = Literal["fp32", "bf16", "int8"]

# oneDNN's kernels have blocks of rows: fewer rows than this take longer than as many.
BLOCK_ROWS = 4
# From so many weights on it pays to fill a single block up.
LARGE = 200_000
# Up to so many rows are filled up to whole blocks, more of them to multiples of this; at most so many go at a time.
FEW_ROWS, MOST_ROWS = 64, 256


def can_pack() -> bool:
    """Whether this build of torch has oneDNN's packed products."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself; where it is imitated, it takes longer than float32."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    return can_pack() and capabilities.startswith("AVX512") and _supported("_is_avx512_bf16_supported")


def has_fast_int8() -> bool:
    """Whether this processor adds up products of 8-bit integers itself, and torch has them."""
    return hasattr(torch.ops.quantized, "linear_dynamic") and _supported("_is_vnni_supported")


def _supported(name: str) -> bool:
    check = getattr(torch.cpu, name, None)
    return bool(check and check())


class PackedLinear(nn.Module):
    """The product with a weight that is kept in oneDNN's layout, in float32 or bfloat16; `x` and the result in float32.

    The result of a row depends on that row alone, bit for bit. oneDNN keeps what it prepared for every number of rows
    it has met, so rows are filled up to few different numbers: or memory would grow with every new length of a prompt.
    """

    def __init__(self, weight: Float[Tensor, "n m"], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.fills_blocks = weight.numel() >= LARGE
        weight = weight.detach().to(dtype)
        self.product: Callable[..., Tensor] | None = None
        self.packed = weight
        if can_pack():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, BLOCK_ROWS)
            self.product = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        """The product."""
        flat = x.flatten(0, -2)
        if self.product is None:
            y = F.linear(flat.to(self.dtype), self.packed)
        elif len(flat) > MOST_ROWS:
            y = torch.cat([self._product(part) for part in flat.split(MOST_ROWS)])
        else:
            y = self._product(flat)
        return y.float().view(*x.shape[:-1], -1)

    def _product(self, x: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
        assert self.product is not None
        rows = len(x)
        step = BLOCK_ROWS if rows <= FEW_ROWS else FEW_ROWS
        missing = -rows % step
        if missing and (rows > BLOCK_ROWS or self.fills_blocks):
            x = F.pad(x, (0, 0, 0, missing))
        y = self.product(x.to(self.dtype), self.packed, None, "none", [], "")
        return y[:rows] if len(x) > rows else y


class Int8Linear(nn.Module):
    """The product in 8-bit integers, on the CPU: weights with a scale a row, `x` with a scale a token.

    The library scales all tokens alike. So every token is brought to the range [-1, 1] first, and a token of its own
    pins that range; then no token's result depends on who else is in the batch.
    """

    pin: Float[Tensor, "1 m"]

    def __init__(self, weight: Float[Tensor, "n m"]) -> None:
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack(_quantised(weight.detach().float()), None)
        pin = torch.zeros(1, weight.shape[1])
        pin[0, 0], pin[0, 1] = -1, 1
        self.register_buffer("pin", pin, persistent=False)
        self.product = torch.ops.quantized.linear_dynamic.default
        self._scaled: Tensor = pin

    def forward(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        """The product."""
        flat = x.flatten(0, -2)
        rows = len(flat)
        scale = flat.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-20)
        if rows > FEW_ROWS:
            scaled = torch.cat((flat / scale, self.pin))
        else:
            # The steps of decoding find the same room again, with the pin in it.
            if len(self._scaled) != rows + 1:
                self._scaled = self.pin.repeat(rows + 1, 1)
            scaled = self._scaled
            torch.div(flat, scale, out=scaled[:rows])
        return self.product(scaled, self.packed)[:rows].mul_(scale).view(*x.shape[:-1], -1)


class WeightOnlyInt8Linear(nn.Module):
    """The product with weights kept as 8-bit integers and a scale a row, for GPUs: a compiler joins both steps."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Float[Tensor, "n m"]) -> None:
        super().__init__()
        scale = row_scales(weight.float())
        self.register_buffer("weight", (weight.float() / scale).round().to(torch.int8), persistent=False)
        self.register_buffer("scale", scale.squeeze(-1).to(weight.dtype), persistent=False)

    def forward(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        """The product, in the type of `x`."""
        return F.linear(x, self.weight.to(x.dtype)) * self.scale


def row_scales(weight: Float[Tensor, "n m"]) -> Float[Tensor, "n 1"]:
    """What the largest weight of each row is 127 times of."""
    return weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-20) / 127


def _quantised(weight: Float[Tensor, "n m"]) -> Tensor:
    scale = row_scales(weight).squeeze(-1)
    with warnings.catch_warnings():
        # Quantised tensors are to go one day; what is to follow them takes a quarter longer (docs/performance.md).
        warnings.filterwarnings("ignore", message=".*quantize_per_channel", category=UserWarning)
        return torch.quantize_per_channel(weight, scale, torch.zeros_like(scale, dtype=torch.long), 0, torch.qint8)


def pack_product(weight: Float[Tensor, "n m"], precision: Precision) -> nn.Module:
    """The product with `weight` as a layer without bias, for where the weight lies.

    Raises:
        UserError: 8-bit integers are asked for, and the processor or this build of torch has no products of them.
    """
    if weight.device.type == "cpu":
        if precision == "int8":
            if not has_fast_int8():
                raise UserError("precision int8 needs a processor with VNNI and torch's quantized products: take bf16")
            return Int8Linear(weight)
        return PackedLinear(weight, torch.bfloat16 if precision == "bf16" else torch.float32)
    return gpu_product(weight, precision)


def gpu_product(weight: Float[Tensor, "n m"], precision: Precision) -> nn.Module:
    """The product with `weight` as GPUs are fastest with."""
    weight = weight.detach() if precision == "fp32" else weight.detach().bfloat16()
    if precision == "int8":
        return WeightOnlyInt8Linear(weight)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
