"""Continuous latents as a network wants them: one vector a token, of mean 0 and variance 1."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class LatentScale(nn.Module):
    """Between an image tokenizer's latents and tokens whose numbers have mean 0 and variance 1 in each channel.

    Mean and spread are those of the codebook, whose codes are used about evenly and lie where the latents lie; so they
    are known before any picture is seen.

    Args:
        codebook: every code vector as the decoder reads it.
    """

    mean: Float[Tensor, "c"]
    spread: Float[Tensor, "c"]

    def __init__(self, codebook: Float[Tensor, "v c"]) -> None:
        super().__init__()
        codebook = codebook.detach().float()
        spread = codebook.std(dim=0)
        self.register_buffer("mean", codebook.mean(dim=0))
        self.register_buffer("spread", torch.where(spread > 0, spread, torch.ones_like(spread)))

    def tokens(self, latents: Float[Tensor, "b c gy gx"]) -> Float[Tensor, "b t c"]:
        """The tokens of latents, in raster order."""
        return (rearrange(latents.float(), "b c gy gx -> b (gy gx) c") - self.mean) / self.spread

    def latents(self, tokens: Float[Tensor, "b t c"], rows: int) -> Float[Tensor, "b c gy gx"]:
        """The latents of tokens over a grid of so many rows."""
        return rearrange(tokens * self.spread + self.mean, "b (gy gx) c -> b c gy gx", gy=rows)


class LatentEmbedding(nn.Linear):
    """Input token of a continuous one, about as loud as the token of a code."""

    def __init__(self, latents: int, width: int) -> None:
        super().__init__(latents, width)
        nn.init.normal_(self.weight, std=latents**-0.5)
        nn.init.zeros_(self.bias)
