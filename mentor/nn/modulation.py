"""How far a picture has been denoised, told to a transformer: embedded, and turned into shifts, scales and gates."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Sines and cosines that a time is described by.
FEATURES = 256


@dataclass(frozen=True)
class Modulation:
    """What a block does to noisy tokens, by how noisy they are (AdaLN, arXiv 2212.09748, section 3.2).

    Attributes:
        values: shift, scale and gate of attention, then of the feed-forward.
        tokens: the last ones of a sequence, which they are for; all before are left as they are.
    """

    values: Float[Tensor, "b 6 d"]
    tokens: int

    def enter(self, x: Float[Tensor, "b n d"], part: int) -> Float[Tensor, "b n d"]:
        """The normalised tokens as attention (part 0) or the feed-forward (part 1) gets them."""
        shift, scale, _ = self.values[:, 3 * part : 3 * part + 3].unsqueeze(2).unbind(1)
        return self._on_last(x, lambda tokens: modulate(tokens, shift, scale))

    def leave(self, x: Float[Tensor, "b n d"], part: int) -> Float[Tensor, "b n d"]:
        """What attention or the feed-forward adds to the tokens, scaled by 1 + gate."""
        gate = 1 + self.values[:, 3 * part + 2 : 3 * part + 3]
        return self._on_last(x, lambda tokens: tokens * gate.to(tokens.dtype))

    def _on_last(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        before = x.shape[1] - self.tokens
        return change(x) if before <= 0 else torch.cat((x[:, :before], change(x[:, before:])), dim=1)


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
) -> Float[Tensor, "b n d"]:
    """`x` scaled by 1 + scale, then shifted; in the type of `x`."""
    return torch.addcmul(shift.to(x.dtype), x, 1 + scale.to(x.dtype))


def time_features(time: Float[Tensor, "b"], width: int = FEATURES) -> Float[Tensor, "b w"]:
    """Cosines, then sines, of a time between 0 and 1000, at wavelengths from 2 pi to 2 pi 10000 (arXiv 2006.11239)."""
    half = width // 2
    frequencies = 10000.0 ** -(torch.arange(half, device=time.device, dtype=torch.float32) / half)
    angles = time.float().unsqueeze(-1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeEmbedding(nn.Module):
    """A vector for each time, by a two-layer MLP over its sines and cosines."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        for layer in (self.mlp[0], self.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, time: Float[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """The vectors of times between 0 and 1000."""
        return self.mlp(time_features(time))
