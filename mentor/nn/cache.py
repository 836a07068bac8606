"""Key-value caches for decoding: one for a prompt's prefix, and those that rows of tokens grow in behind it."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mentor.nn.attention import attend

# Columns of padding or of a shared prefix from which it pays to take a product more for reading them less.
WORTHWHILE = 64


class PrefixCache:
    """Keys and values of a prefix, as prefilling leaves them.

    Args:
        causal: whether its tokens see only what is before them; else all see each other.

    Attributes:
        keys: of each layer.
        values: of each layer.
    """

    def __init__(self, causal: bool = False) -> None:
        self.causal = causal
        self.keys: list[Float[Tensor, "b g p k"]] = []
        self.values: list[Float[Tensor, "b g p k"]] = []

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return self.keys[0].shape[2]

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "b h q k"],
        keys: Float[Tensor, "b g n k"],
        values: Float[Tensor, "b g n k"],
    ) -> Float[Tensor, "b h q k"]:
        """Keep the keys and values of the next layer; what the queries gather from all of them."""
        assert layer == len(self.keys), "a prefix is computed once"
        self.keys.append(keys.contiguous())
        self.values.append(values.contiguous())
        mask = None
        if self.causal and keys.shape[2] > 1:
            seen = torch.ones(keys.shape[2], keys.shape[2], dtype=torch.bool, device=keys.device).tril()
            mask = rearrange(seen[-queries.shape[2] :], "q n -> 1 1 q n")
        return attend(queries, keys, values, mask)

    def row(self, index: int) -> "PrefixCache":
        """One row of several that were computed together."""
        single = PrefixCache()
        single.keys = [keys[index : index + 1].clone() for keys in self.keys]
        single.values = [values[index : index + 1].clone() for values in self.values]
        return single


class KVCache:
    """Keys and values of every layer for rows that grow: allocated once, read only as far as they are filled.

    A row has the prefix in the first columns, moved to the right so that all rows' prefixes end together, and the
    image's tokens behind it. With `shared` the prefix stands apart, once for every `shared` neighbouring rows.

    Args:
        prefixes: of each row, or of each group of `shared` rows.
        tokens: how many tokens a row may get behind its prefix.
        shared: rows that have one prefix; 0 gives each row a copy.
    """

    def __init__(self, prefixes: Sequence[PrefixCache], tokens: int, shared: int = 0) -> None:
        first = prefixes[0].keys[0]
        self.layers, self.groups = len(prefixes[0].keys), len(prefixes)
        self.shared = shared
        self.prefix = max(prefix.length for prefix in prefixes)
        rows = len(prefixes) * max(shared, 1)
        _, heads, _, width = first.shape
        self.own = 0 if shared else self.prefix  # columns before the tokens
        self.length = self.own + tokens

        def make(count: int, columns: int) -> list[Tensor]:
            # Zeros: what is read before it is filled is multiplied by nothing, and nothing times NaN is NaN.
            return [first.new_zeros(count, heads, columns, width) for _ in range(self.layers)]

        self.keys, self.values = make(rows, self.length), make(rows, self.length)
        self.prefix_keys = make(self.groups, self.prefix) if shared else self.keys
        self.prefix_values = make(self.groups, self.prefix) if shared else self.values
        self.starts = torch.zeros(self.groups, dtype=torch.long, device=first.device)
        self.padded = False
        for group, prefix in enumerate(prefixes):
            self.enter(group, prefix)

    def enter(self, group: int, prefix: PrefixCache) -> None:
        """Put a prefix, no longer than the longest so far, in the place of the one of a row (or group of rows)."""
        start = self.prefix - prefix.length
        for layer in range(self.layers):
            self.prefix_keys[layer][group, :, start : self.prefix] = prefix.keys[layer][0]
            self.prefix_values[layer][group, :, start : self.prefix] = prefix.values[layer][0]
        self.starts[group] = start
        self.padded = self.padded or start > 0

    def place(self, positions: int | Int[Tensor, "b"], count: int, end: int) -> None:
        """Say where the next tokens go; what is there already is overwritten.

        Args:
            positions: which of the image's tokens each row's first new one is: one number for all rows, or one a row.
            count: tokens that each row gets.
            end: tokens that are read of a row: those before `positions + count` of all rows at least.
        """
        self.end = self.own + end
        device = self.starts.device
        if self.end > self.length:
            raise IndexError(f"the cache holds {self.length - self.own} tokens and {end} were asked for")
        if isinstance(positions, int):
            self.columns: slice | Tensor = slice(self.own + positions, self.own + positions + count)
            if count == 1 and end == positions + 1 and not self.padded:
                self.mask = self.prefix_mask = None
                return
            positions = torch.full((len(self.keys[0]),), positions, device=device)
        else:
            self.columns = self.own + positions.unsqueeze(-1) + torch.arange(count, device=device)
        last = rearrange(self.own + positions, "b -> b 1 1 1") + rearrange(
            torch.arange(count, device=device), "n -> 1 1 n 1"
        )
        seen = torch.arange(self.end, device=device) <= last
        starts = rearrange(self.starts, "b -> b 1 1 1")
        if self.shared:
            self.prefix_mask = torch.arange(self.prefix, device=device) < starts
        else:
            seen = seen & (torch.arange(self.end, device=device) >= starts)
        kind = self.keys[0].dtype
        self.mask = torch.zeros(seen.shape, dtype=kind, device=device).masked_fill_(~seen, float("-inf"))

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "b h q k"],
        keys: Float[Tensor, "b g n k"],
        values: Float[Tensor, "b g n k"],
    ) -> Float[Tensor, "b h q k"]:
        """Store keys and values where `place` said; what the queries gather from the prefix and the tokens so far."""
        if isinstance(self.columns, slice):
            self.keys[layer][:, :, self.columns] = keys
            self.values[layer][:, :, self.columns] = values
        else:
            rows = torch.arange(len(keys), device=keys.device).unsqueeze(-1)
            self.keys[layer][rows, :, self.columns] = keys.transpose(1, 2)
            self.values[layer][rows, :, self.columns] = values.transpose(1, 2)
        stored_keys, stored_values = self.keys[layer][:, :, : self.end], self.values[layer][:, :, : self.end]
        count, heads = queries.shape[2], queries.shape[1]
        mask = self.mask if self.mask is None else self.mask[:, :, -count:]
        if heads != keys.shape[1]:
            # Query heads of one key-value head are so many queries more: nothing is copied.
            repeat = heads // keys.shape[1]
            queries = rearrange(queries, "b (g r) q k -> b g (r q) k", r=repeat)
            mask = mask if mask is None or count == 1 else mask.repeat(1, 1, repeat, 1)
        if self.shared:
            gathered = self._attend_apart(layer, queries, stored_keys, stored_values, mask)
        else:
            gathered = attend(queries, stored_keys, stored_values, mask)
        return rearrange(gathered, "b g (r q) k -> b (g r) q k", q=count) if heads != keys.shape[1] else gathered

    def _attend_apart(
        self,
        layer: int,
        queries: Float[Tensor, "b g q k"],
        keys: Float[Tensor, "b g m k"],
        values: Float[Tensor, "b g m k"],
        mask: Float[Tensor, "b 1 q m"] | None,
    ) -> Float[Tensor, "b g q k"]:
        """One softmax over a prefix that several rows read in one product, and over each row's own tokens."""
        queries = queries * queries.shape[-1] ** -0.5
        together = rearrange(queries, "(s r) g q k -> s g (r q) k", r=self.shared)
        scores = together @ self.prefix_keys[layer].transpose(-1, -2)
        if self.prefix_mask is not None:
            scores = scores.masked_fill(self.prefix_mask, float("-inf"))
        own = queries @ keys.transpose(-1, -2)
        if mask is not None:
            own = own + mask
        scores = rearrange(scores, "s g (r q) p -> (s r) g q p", r=self.shared)
        weights = torch.cat((scores, own), dim=-1).softmax(dim=-1)
        shares = rearrange(weights[..., : self.prefix], "(s r) g q p -> s g (r q) p", r=self.shared)
        gathered = rearrange(shares @ self.prefix_values[layer], "s g (r q) k -> (s r) g q k", r=self.shared)
        return gathered + weights[..., self.prefix :] @ values

    def select(self, rows: Int[Tensor, "n"]) -> None:
        """Keep the given rows, in the given order; a row may be repeated.

        Raises:
            ValueError: rows share prefixes, and then go together or not at all.
        """
        if self.shared:
            raise ValueError("rows that share a prefix cannot be selected apart: make the cache with shared=0")
        self.keys = [keys.index_select(0, rows) for keys in self.keys]
        self.values = [values.index_select(0, rows) for values in self.values]
        self.prefix_keys, self.prefix_values = self.keys, self.values
        self.starts = self.starts.index_select(0, rows)
        self.groups = len(rows)


class BlockCache:
    """The rows of several conditions, one condition's below the other's, in one cache or in a cache for each.

    Args:
        blocks: a cache for each condition, all with the same number of pictures, or one with the rows of all.
        parts: how many conditions there are.
    """

    def __init__(self, blocks: Sequence[KVCache], parts: int) -> None:
        self.blocks = list(blocks)
        self.parts = parts

    def conditions(self, first: int, last: int) -> "BlockCache":
        """Some of the conditions alone, over the same memory; each must have a cache of its own."""
        if last - first == self.parts:
            return self
        assert len(self.blocks) == self.parts, "these conditions are kept together"
        return BlockCache(self.blocks[first:last], last - first)

    def place(self, positions: int | Int[Tensor, "b"], count: int, end: int) -> None:
        """Say where the next tokens go, as in `KVCache.place`; picture i has position i under every condition."""
        if isinstance(positions, Tensor):
            positions = positions.repeat(self.parts // len(self.blocks))
        for block in self.blocks:
            block.place(positions, count, end)

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "b h q k"],
        keys: Float[Tensor, "b g n k"],
        values: Float[Tensor, "b g n k"],
    ) -> Float[Tensor, "b h q k"]:
        """What the rows of each condition gather from their own prefixes and tokens."""
        if len(self.blocks) == 1:
            return self.blocks[0].attend(layer, queries, keys, values)
        parts = zip(self.blocks, *(part.chunk(len(self.blocks)) for part in (queries, keys, values)), strict=True)
        return torch.cat([block.attend(layer, *part) for block, *part in parts])

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether prefixes of these lengths, one for each condition, find room."""
        blocks = self.blocks * (self.parts // len(self.blocks))
        return all(length <= block.prefix for block, length in zip(blocks, lengths, strict=True))

    def enter(self, part: int, group: int, prefix: PrefixCache) -> None:
        """Put a prefix in the place of the one that a picture, or a group of pictures, has under a condition."""
        if len(self.blocks) == self.parts:
            self.blocks[part].enter(group, prefix)
        else:
            self.blocks[0].enter(part * (self.blocks[0].groups // self.parts) + group, prefix)

    def select(self, pictures: Int[Tensor, "n"]) -> None:
        """Keep the given pictures under every condition, in the given order; one may be repeated."""
        for block in self.blocks:
            parts = self.parts // len(self.blocks)
            rows = block.groups // parts
            block.select(torch.cat([pictures + part * rows for part in range(parts)]))
