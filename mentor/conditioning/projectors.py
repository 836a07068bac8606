"""What makes tokens for a text encoder of an image's patches."""

from typing import Literal

import torch
from einops import repeat
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from mentor.config import Config


class MLPProjectorConfig(Config):
    """Two linear layers with a GELU between (LLaVA-1.5, arXiv 2310.03744): a token for each patch."""

    kind: Literal["mlp"] = "mlp"


class ResamplerConfig(Config):
    """Learned queries that look at the patches: so many tokens an image, whatever its patches (arXiv 2204.14198).

    Attributes:
        tokens: an image.
        layers: of attention over patches and queries, and a feed-forward.
        heads: of the attention.
    """

    kind: Literal["resampler"] = "resampler"
    tokens: int = Field(default=32, gt=0)
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=8, gt=0)


class MLPProjector(nn.Sequential):
    """A token for each patch."""

    def __init__(self, patch_width: int, width: int) -> None:
        super().__init__(nn.Linear(patch_width, width), nn.GELU(), nn.Linear(width, width))


class Resampler(nn.Module):
    """Learned queries gather from the patches and from each other what an image's few tokens tell."""

    def __init__(self, config: ResamplerConfig, patch_width: int, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(config.tokens, width) * width**-0.5)
        self.project = nn.Linear(patch_width, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Float[Tensor, "r n c"]) -> Float[Tensor, "r q d"]:
        """The tokens of each image."""
        memory = self.project(patches)
        tokens = repeat(self.queries, "q d -> r q d", r=len(patches))
        for layer in self.layers:
            tokens = layer(tokens, memory)
        return self.norm(tokens)
