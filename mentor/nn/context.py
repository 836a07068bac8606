"""A prompt's keys and values for tokens that all see each other, as denoising a whole picture has them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mentor.nn.attention import attend
from mentor.nn.cache import PrefixCache


class ContextCache:
    """Rows of prompts; the tokens behind them look at their prompt and at each other, and leave nothing behind.

    So the prompt is read once, and the picture as often as it takes steps.

    Args:
        prefixes: of each row, moved to the right so that all end together.
        tokens: behind each prefix, always so many.
    """

    def __init__(self, prefixes: Sequence[PrefixCache], tokens: int) -> None:
        first = prefixes[0].keys[0]
        self.rows, self.tokens = len(prefixes), tokens
        self.prefix = max(prefix.length for prefix in prefixes)
        _, heads, _, width = first.shape
        shape = (self.rows, heads, self.prefix + tokens, width)
        layers = len(prefixes[0].keys)
        self.keys = [first.new_zeros(shape) for _ in range(layers)]
        self.values = [first.new_zeros(shape) for _ in range(layers)]
        seen = torch.ones(self.rows, 1, 1, shape[2], dtype=torch.bool, device=first.device)
        for row, prefix in enumerate(prefixes):
            start = self.prefix - prefix.length
            seen[row, ..., :start] = False
            for layer in range(layers):
                self.keys[layer][row, :, start : self.prefix] = prefix.keys[layer][0]
                self.values[layer][row, :, start : self.prefix] = prefix.values[layer][0]
        self.mask = None if bool(seen.all()) else seen

    def first(self, rows: int) -> "ContextCache":
        """The first rows alone, over the same memory."""
        if rows == self.rows:
            return self
        part = object.__new__(ContextCache)
        part.rows, part.tokens, part.prefix = rows, self.tokens, self.prefix
        part.keys, part.values = [keys[:rows] for keys in self.keys], [values[:rows] for values in self.values]
        part.mask = None if self.mask is None else self.mask[:rows]
        return part

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "b h q k"],
        keys: Float[Tensor, "b g n k"],
        values: Float[Tensor, "b g n k"],
    ) -> Float[Tensor, "b h q k"]:
        """What the queries gather from the prompt and from all tokens of this step."""
        self.keys[layer][:, :, self.prefix :] = keys
        self.values[layer][:, :, self.prefix :] = values
        return attend(queries, self.keys[layer], self.values[layer], self.mask)
