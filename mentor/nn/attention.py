"""Attention with grouped-query heads."""

import math
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mentor.nn.rope import Rotary, apply_rotary


class Cache(Protocol):
    """Keeps keys and values of earlier tokens, and lets new ones look at them."""

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "b h q k"],
        keys: Float[Tensor, "b g n k"],
        values: Float[Tensor, "b g n k"],
    ) -> Float[Tensor, "b h q k"]:
        """Store keys and values of `layer`; what the queries, of the last of these tokens, gather from all they see."""
        ...


def attend(
    queries: Float[Tensor, "b h n k"],
    keys: Float[Tensor, "b g m k"],
    values: Float[Tensor, "b g m k"],
    mask: Bool[Tensor, "b 1 n m"] | Float[Tensor, "b 1 n m"] | None,
) -> Float[Tensor, "b h n k"]:
    """Softmax attention; `g` key-value heads serve `h` query heads in equal groups.

    A mask is True where one may look, or a number that is added to the match of query and key.
    """
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys = keys.repeat_interleave(groups, dim=1)
        values = values.repeat_interleave(groups, dim=1)
    # The CPU's fused kernel is several times slower than plain products in a bfloat16 backward pass.
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and torch.is_grad_enabled():
        scores = (queries / math.sqrt(queries.shape[-1])) @ keys.transpose(-1, -2)
        if mask is not None:
            scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1) @ values
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


class SelfAttention(nn.Module):
    """Multi-head self-attention without biases; `kv_heads` below `heads` shares keys and values among query heads."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Rotary,
        mask: Bool[Tensor, "b 1 n m"] | None,
        cache: Cache | None = None,
        layer: int = 0,
        tail: int | None = None,
    ) -> Float[Tensor, "b m d"]:
        """What the last `tail` tokens (None: all) gather from those they may see.

        Who may see whom says the mask, or in its place the cache, which also has the tokens before these.
        """
        # In torch's own words: in a step of one token, einops would take a tenth of a small model's time.
        heads = self.qkv(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        turned = apply_rotary(heads[:, : self.heads + self.kv_heads], rotary)
        queries, keys = turned[:, : self.heads], turned[:, self.heads :]
        values = heads[:, self.heads + self.kv_heads :]
        if tail is not None:
            queries, mask = queries[:, :, -tail:], None if mask is None else mask[:, :, -tail:]
        gathered = attend(queries, keys, values, mask) if cache is None else cache.attend(layer, queries, keys, values)
        return self.out(gathered.transpose(1, 2).flatten(2))
