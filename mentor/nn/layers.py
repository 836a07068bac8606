"""Normalisation, feed-forward and the transformer block."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mentor.nn.attention import Cache, SelfAttention
from mentor.nn.modulation import Modulation
from mentor.nn.rope import Rotary


class RMSNorm(nn.Module):
    """`x` over its root mean square, in float32, then scaled by a learned weight (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The normalised `x`, in its own type."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return FewPassesRMSNorm.apply(x.float(), self.weight, self.eps).to(x.dtype)
        if x.device.type == "cpu":
            # The root of n^2 + d eps in one go: 10 us for a token where torch's own, which is not fused, takes 18.
            norm = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
            root = torch.hypot(norm, norm.new_full((), (self.eps * x.shape[-1]) ** 0.5))
            return (x / root * (self.weight * x.shape[-1] ** 0.5)).to(x.dtype)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class FewPassesRMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient written out.

    On the CPU a norm is bound by memory, and automatic differentiation of its formula passes over the tokens more than
    twice as often as it need: 5.1 against 2.3 ms for 5,120 tokens of width 192, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "... d"], weight: Float[Tensor, "d"], eps: float) -> Float[Tensor, "... d"]:
        """The normalised and scaled `x`."""
        scale = (torch.linalg.vecdot(x, x) / x.shape[-1] + eps).rsqrt_().unsqueeze(-1)
        normal = x * scale
        ctx.save_for_backward(normal, scale, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of `x` and of the weight."""
        normal, scale, weight = ctx.saved_tensors
        (gradient,) = gradients
        for_weight = torch.linalg.vecdot(gradient.flatten(0, -2), normal.flatten(0, -2), dim=0)
        inner = gradient * weight
        share = torch.linalg.vecdot(inner, normal).unsqueeze(-1) / normal.shape[-1]
        return inner.addcmul_(normal, share, value=-1).mul_(scale), for_weight, None


def swiglu_hidden(width: int, multiple: int = 256) -> int:
    """Hidden width of the gated feed-forward: 2/3 of four times the width, rounded up to `multiple`."""
    return -(-int(2 * 4 * width / 3) // multiple) * multiple


class SwiGLU(nn.Module):
    """Gated feed-forward w2(silu(w1 x) * w3 x), without biases (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The transformed tokens."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then feed-forward, each added to its input."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, eps)
        self.attention = SelfAttention(width, heads, kv_heads)
        self.feed_forward_norm = RMSNorm(width, eps)
        self.feed_forward = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Rotary,
        mask: Bool[Tensor, "b 1 n m"] | None,
        cache: Cache | None = None,
        layer: int = 0,
        tail: int | None = None,
        modulation: Modulation | None = None,
    ) -> Float[Tensor, "b m d"]:
        """The tokens after this block, or only the last `tail` of them; `modulation` is for those that have noise."""
        if modulation is not None:
            return self._modulated(x, rotary, mask, cache, layer, tail, modulation)
        gathered = self.attention(self.attention_norm(x), rotary, mask, cache, layer, tail)
        x = (x if tail is None else x[:, -tail:]) + self.dropout(gathered)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def _modulated(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Rotary,
        mask: Bool[Tensor, "b 1 n m"] | None,
        cache: Cache | None,
        layer: int,
        tail: int | None,
        modulation: Modulation,
    ) -> Float[Tensor, "b m d"]:
        normal = modulation.enter(self.attention_norm(x), 0)
        gathered = modulation.leave(self.attention(normal, rotary, mask, cache, layer, tail), 0)
        x = (x if tail is None else x[:, -tail:]) + self.dropout(gathered)
        normal = modulation.enter(self.feed_forward_norm(x), 1)
        return x + self.dropout(modulation.leave(self.feed_forward(normal), 1))
