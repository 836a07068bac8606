"""The Q-Former: learned queries that read an image's patches beside the prompt's text.

BLIP-2's (arXiv 2301.12597), aware of the text as in InstructBLIP (arXiv 2305.06500); it is a variant of MENTOR's (arXiv
2507.09574). Where BLIP gives it a vocabulary of its own, this one is given the text encoder's vectors of the tokens.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mentor.config import Config

# As in BERT, whose arithmetic this is.
_EPSILON = 1e-12
_STD = 0.02


class QFormerConfig(Config):
    """Learned queries that look at the patches beside the prompt's text: so many tokens an image.

    Attributes:
        tokens: an image.
        layers: of attention among queries and text, and feed-forwards.
        heads: of the attention.
        width: of queries and text inside.
        cross_every: queries look at the patches in the first layer and in every so many.
    """

    kind: Literal["qformer"] = "qformer"
    tokens: int = Field(default=32, gt=0)
    layers: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)
    width: int = Field(default=768, gt=0)
    cross_every: int = Field(default=2, gt=0)

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "QFormerConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class QFormer(nn.Module):
    """What an image's patches tell about a text, in few tokens.

    Args:
        config: its shape.
        patch_width: numbers in a patch's vector.
        text_width: numbers in a vector of a token of text, and in the tokens that come out.
        longest: tokens that a text may have.
    """

    def __init__(self, config: QFormerConfig, patch_width: int, text_width: int, longest: int) -> None:
        super().__init__()
        width = config.width
        self.queries = nn.Parameter(torch.empty(config.tokens, width))
        self.project_text = nn.Linear(text_width, width)
        self.positions = nn.Embedding(longest, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.layers = nn.ModuleList()
        for number in range(config.layers):
            looks, last = number % config.cross_every == 0, number == config.layers - 1
            self.layers.append(QFormerLayer(width, config.heads, patch_width if looks else None, not last))
        self.project = nn.Linear(width, text_width)
        nn.init.normal_(self.queries, std=_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, patches: Float[Tensor, "r n c"], texts: Sequence[Float[Tensor, "_ w"]]) -> Float[Tensor, "r q w"]:
        """The tokens of each image.

        Args:
            patches: of each image.
            texts: the text that stands beside each image, as vectors of its tokens; shorter ones are padded.
        """
        return self.project(self.read(patches, texts))

    def read(self, patches: Float[Tensor, "r n c"], texts: Sequence[Float[Tensor, "_ w"]]) -> Float[Tensor, "r q d"]:
        """The queries behind the last layer."""
        device, count = patches.device, len(self.queries)
        words = nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        places = torch.arange(words.shape[1], device=device)
        queries = repeat(self.queries, "q d -> r q d", r=len(patches))
        tokens = self.norm(torch.cat((queries, self.project_text(words) + self.positions(places)), dim=1))
        mask = F.pad(places < lengths.unsqueeze(1), (count, 0), value=True)
        for layer in self.layers:
            tokens = layer(tokens, count, patches, mask)
        return tokens[:, :count]


class QFormerLayer(nn.Module):
    """Queries and text attend to each other, queries perhaps to patches; each has a feed-forward of its own.

    Args:
        width: of queries and text.
        heads: of the attention.
        patch_width: numbers in a patch's vector; None where the queries do not look at patches.
        feeds_text: whether text goes on to another layer.
    """

    def __init__(self, width: int, heads: int, patch_width: int | None, feeds_text: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, width)
        self.cross = None if patch_width is None else Attention(width, heads, patch_width)
        self.feed_queries = FeedForward(width)
        self.feed_text = FeedForward(width) if feeds_text else None

    def forward(
        self,
        tokens: Float[Tensor, "r m d"],
        count: int,
        patches: Float[Tensor, "r n c"],
        mask: Bool[Tensor, "r m"],
    ) -> Float[Tensor, "r k d"]:
        """Queries, and text behind them if it goes on.

        Args:
            tokens: queries and text.
            count: how many of them are queries.
            patches: of each image.
            mask: True on queries and text, False on padding.
        """
        asking = tokens if self.feed_text is not None else tokens[:, :count]
        tokens = self.attention(asking, tokens, rearrange(mask, "r m -> r 1 1 m"))
        queries = tokens[:, :count]
        if self.cross is not None:
            queries = self.cross(queries, patches, None)
        queries = self.feed_queries(queries)
        return queries if self.feed_text is None else torch.cat((queries, self.feed_text(tokens[:, count:])), dim=1)


class Attention(nn.Module):
    """Attention with BERT's arithmetic: added to what asks, then normalised."""

    def __init__(self, width: int, heads: int, source_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(
        self, tokens: Float[Tensor, "r q d"], source: Float[Tensor, "r n c"], mask: Bool[Tensor, "r 1 1 n"] | None
    ) -> Float[Tensor, "r q d"]:
        """The tokens after a look at the source; `mask` is True where it may be looked at."""
        parts = (self.query(tokens), self.key(source), self.value(source))
        query, key, value = (rearrange(part, "r n (h k) -> r h n k", h=self.heads) for part in parts)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.norm(self.out(rearrange(seen, "r h n k -> r n (h k)")) + tokens)


class FeedForward(nn.Module):
    """BERT's: two linear layers with a GELU between, added and normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, tokens: Float[Tensor, "r n d"]) -> Float[Tensor, "r n d"]:
        """The tokens one step on."""
        return self.norm(self.narrow(F.gelu(self.widen(tokens))) + tokens)
