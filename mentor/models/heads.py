"""What turns codes into input tokens and hidden states into predictions of codes."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mentor.config import Config


class ARHeadConfig(Config):
    """Softmax over the codebook.

    Attributes:
        tied: let similar codes share what is learned of them, by way of their code vectors, both where codes enter and
            where they are predicted; without it every code is learned on its own.
    """

    kind: Literal["ar"] = "ar"
    tied: bool = True


class CodeEmbedding(nn.Module):
    """Input token of a code: a free vector plus, when tied, a projection of the code vector."""

    codebook: Float[Tensor, "v c"]

    def __init__(self, config: ARHeadConfig, codebook: Float[Tensor, "v c"], width: int) -> None:
        super().__init__()
        self.free = nn.Embedding(codebook.shape[0], width)
        nn.init.normal_(self.free.weight, std=0.02)
        self.register_buffer("codebook", standardise(codebook))
        self.tied = nn.Linear(codebook.shape[1], width, bias=False) if config.tied else None
        if self.tied is not None:
            nn.init.normal_(self.tied.weight, std=codebook.shape[1] ** -0.5)

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The tokens of `ids`."""
        tokens = self.free(ids)
        return tokens if self.tied is None else tokens + self.tied(self.codebook[ids])


class ARHead(nn.Module):
    """Logits over the codebook: a free linear layer plus, when tied, the match of a projected state with each code."""

    codebook: Float[Tensor, "v c"]

    def __init__(self, config: ARHeadConfig, codebook: Float[Tensor, "v c"], width: int) -> None:
        super().__init__()
        self.free = nn.Linear(width, codebook.shape[0], bias=False)
        nn.init.zeros_(self.free.weight)
        self.register_buffer("codebook", standardise(codebook))
        self.tied = nn.Linear(width, codebook.shape[1], bias=False) if config.tied else None
        if self.tied is not None:
            nn.init.normal_(self.tied.weight, std=(width * codebook.shape[1]) ** -0.5)

    def forward(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "b t v"]:
        """Unnormalised log-probabilities of every code."""
        logits = self.free(hidden)
        return logits if self.tied is None else logits + self.tied(hidden) @ self.codebook.to(hidden.dtype).T


def standardise(codebook: Float[Tensor, "v c"]) -> Float[Tensor, "v c"]:
    """The codebook with mean 0 and variance 1 over all its numbers, whatever the quantizer's scale."""
    codebook = codebook.detach().float()
    spread = codebook.std()
    return (codebook - codebook.mean()) / torch.where(spread > 0, spread, torch.ones_like(spread))
