"""The AR head: what turns codes into input tokens, and hidden states into predictions of codes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mentor.config import Config


class ARHeadConfig(Config):
    """Softmax over the codebook.

    Attributes:
        tied: let similar codes share what is learned of them, by way of a function of the code vectors, both where
            codes enter and where they are predicted; without it every code is learned on its own.
        hidden: hidden width of that function; 0 makes it linear, which leaves the shared part of a prediction no more
            freedom than a code vector has numbers.
    """

    kind: Literal["ar"] = "ar"
    tied: bool = True
    hidden: int = Field(default=256, ge=0)


class CodeVectors(nn.Module):
    """A vector for each code: a free one plus, when tied, a function of the code vector.

    Args:
        config: what the codes share.
        codebook: the code vectors.
        width: of the vectors.
        scale: standard deviation that the numbers of the shared part start with.
    """

    codebook: Float[Tensor, "v c"]

    def __init__(self, config: ARHeadConfig, codebook: Float[Tensor, "v c"], width: int, scale: float) -> None:
        super().__init__()
        codes, size = codebook.shape
        self.free = nn.Embedding(codes, width)
        self.register_buffer("codebook", standardise(codebook))
        self.tied: nn.Module | None = None
        if config.tied and config.hidden:
            first, last = nn.Linear(size, config.hidden), nn.Linear(config.hidden, width, bias=False)
            # Steep and shifted, so that the hidden units tell neighbouring codes apart from the beginning.
            nn.init.normal_(first.weight, std=2 * size**-0.5)
            nn.init.normal_(first.bias)
            # The mean square of GELU at a standard deviation of 5 ** 0.5 is about 2.
            nn.init.normal_(last.weight, std=scale * (2 * config.hidden) ** -0.5)
            self.tied = nn.Sequential(first, nn.GELU(), last)
        elif config.tied:
            self.tied = nn.Linear(size, width, bias=False)
            nn.init.normal_(self.tied.weight, std=scale * size**-0.5)
        self._fixed: Tensor | None = None

    def fix(self) -> None:
        """From now on the weights stay as they are: the vectors are looked up and not computed."""
        self._fixed = self.table().detach()

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The vectors of `ids`."""
        if self._fixed is not None:
            return self._fixed[ids]
        vectors = self.free(ids)
        return vectors if self.tied is None else vectors + self.tied(self.codebook[ids])

    def table(self) -> Float[Tensor, "v d"]:
        """The vectors of all codes."""
        return self.free.weight if self.tied is None else self.free.weight + self.tied(self.codebook)


class CodeEmbedding(CodeVectors):
    """Input token of a code."""

    def __init__(self, config: ARHeadConfig, codebook: Float[Tensor, "v c"], width: int) -> None:
        super().__init__(config, codebook, width, scale=1.0)
        nn.init.normal_(self.free.weight, std=0.02)


class ARHead(nn.Module):
    """Logits over the codebook: the match of a hidden state with each code's vector."""

    def __init__(self, config: ARHeadConfig, codebook: Float[Tensor, "v c"], width: int) -> None:
        super().__init__()
        # Logits of variance 1 for states of variance 1.
        self.vectors = CodeVectors(config, codebook, width, scale=width**-0.5)
        nn.init.zeros_(self.vectors.free.weight)
        self._product: Callable[[Tensor], Tensor] | None = None

    def forward(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "b t v"]:
        """Unnormalised log-probabilities of every code."""
        if self._product is not None:
            return self._product(hidden)
        return functional.linear(hidden, self.vectors.table().to(hidden.dtype))

    def fix(self, make_product: Callable[[Float[Tensor, "v d"]], Callable[[Tensor], Tensor]]) -> None:
        """From now on the weights stay as they are: the codes' vectors are computed once and not at every call.

        Args:
            make_product: makes the product with a matrix.
        """
        self._product = make_product(self.vectors.table().detach())

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Within, the weights must stay as they are."""
        before = self._product
        if before is None:
            self.fix(lambda table: lambda hidden: functional.linear(hidden, table.to(hidden.dtype)))
        try:
            yield
        finally:
            self._product = before


def standardise(codebook: Float[Tensor, "v c"]) -> Float[Tensor, "v c"]:
    """The codebook with mean 0 and variance 1 over all its numbers, whatever the quantizer's scale."""
    codebook = codebook.detach().float()
    spread = codebook.std()
    return (codebook - codebook.mean()) / torch.where(spread > 0, spread, torch.ones_like(spread))
