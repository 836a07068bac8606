"""Attention with grouped-query heads and a key-value cache that is read only as far as it is filled."""

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mentor.nn.rope import apply_rotary

Rotary = tuple[Float[Tensor, "b 1 n half"], Float[Tensor, "b 1 n half"]]


class KVCache:
    """Keys and values of every layer, allocated once.

    Rows can be reordered with `select`, so that a sampler may drop, copy or regroup its particles.
    """

    def __init__(
        self, layers: int, rows: int, heads: int, length: int, head_width: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (rows, heads, length, head_width)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.length = length
        self.filled = 0

    def append(
        self, layer: int, keys: Float[Tensor, "b g n k"], values: Float[Tensor, "b g n k"]
    ) -> tuple[Float[Tensor, "b g m k"], Float[Tensor, "b g m k"]]:
        """All that `layer` has stored so far, the new tokens included; `advance` moves on after the last layer."""
        end = self.filled + keys.shape[2]
        if end > self.length:
            raise IndexError(f"the cache holds {self.length} tokens and {end} were asked for")
        self.keys[layer][:, :, self.filled : end] = keys
        self.values[layer][:, :, self.filled : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as stored."""
        self.filled += tokens

    def select(self, rows: Int[Tensor, "n"]) -> None:
        """Keep the given rows, in the given order; a row may be repeated."""
        self.keys = [keys.index_select(0, rows) for keys in self.keys]
        self.values = [values.index_select(0, rows) for values in self.values]


def attend(
    queries: Float[Tensor, "b h n k"],
    keys: Float[Tensor, "b g m k"],
    values: Float[Tensor, "b g m k"],
    mask: Bool[Tensor, "b 1 n m"] | None,
) -> Float[Tensor, "b h n k"]:
    """Softmax attention; `g` key-value heads serve `h` query heads in equal groups; mask True where one may look."""
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
        cache: KVCache | None = None,
        layer: int = 0,
        tail: int | None = None,
    ) -> Float[Tensor, "b m d"]:
        """What the last `tail` tokens (None: all) gather from those they may see, stored ones in a cache included."""
        heads = rearrange(self.qkv(x), "b n (h k) -> b h n k", k=self.head_width)
        queries, keys, values = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        queries, keys = apply_rotary(queries, *rotary), apply_rotary(keys, *rotary)
        if cache is not None:
            keys, values = cache.append(layer, keys, values)
        if tail is not None:
            queries, mask = queries[:, :, -tail:], None if mask is None else mask[:, :, -tail:]
        return self.out(rearrange(attend(queries, keys, values, mask), "b h n k -> b n (h k)"))
