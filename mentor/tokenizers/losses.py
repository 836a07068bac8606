"""How far a drawn picture is from its target, for training and for people."""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from mentor.config import Config


class PixelLossConfig(Config):
    """Weights of the parts; each part is a mean over pixels and the three channels luma, red and blue difference.

    Attributes:
        squared: of the squared difference.
        absolute: of the absolute difference.
        gradient: of the absolute difference between neighbours' differences, which keeps edges sharp.
        chroma: scale of the two colour differences against luma; about 0.6 weighs them as RGB does, more makes a young
            model learn colours before shapes. Absolute differences alone let it draw in gray for long.
    """

    squared: float = Field(default=6.0, ge=0)
    absolute: float = Field(default=0.2, ge=0)
    gradient: float = Field(default=0.1, ge=0)
    chroma: float = Field(default=0.6, gt=0)


class PixelLoss(nn.Module):
    """Weighted difference of pictures in a space of luma and colour differences.

    A perceptual or adversarial part would stand beside this one, as a module of its own with the same two arguments.
    """

    matrix: Float[Tensor, "3 3"]

    def __init__(self, config: PixelLossConfig) -> None:
        super().__init__()
        self.config = config
        luma = torch.tensor([0.299, 0.587, 0.114])
        red, _, blue = torch.eye(3)
        rows = torch.stack((luma, config.chroma * (red - luma), config.chroma * (blue - luma)))
        self.register_buffer("matrix", rows, persistent=False)

    def forward(self, images: Float[Tensor, "b 3 y x"], targets: Float[Tensor, "b 3 y x"]) -> Float[Tensor, ""]:
        """The weighted sum, averaged over the batch."""
        # The space is linear, so the difference can be taken before the change of space.
        difference = torch.einsum("ij,bjyx->biyx", self.matrix, images.float() - targets.float())
        loss = self.config.squared * difference.square().mean() + self.config.absolute * difference.abs().mean()
        rows, columns = difference.diff(dim=2).abs().mean(), difference.diff(dim=3).abs().mean()
        return loss + self.config.gradient * (rows + columns) / 2


def psnr(images: Float[Tensor, "b c y x"], targets: Float[Tensor, "b c y x"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio of each picture in dB, for values in [-1, 1] (a range of 2); 100 dB at most."""
    error = (images.float() - targets.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=4e-10))


def code_usage(counts: Float[Tensor, "v"]) -> Float[Tensor, ""]:
    """Share of the codes that occur at all."""
    return (counts > 0).float().mean()


def perplexity(counts: Float[Tensor, "v"]) -> Float[Tensor, ""]:
    """Exponential of the entropy of the codes' shares: how many codes there would be if all were used alike."""
    shares = counts.float() / counts.sum().clamp(min=1)
    return torch.special.entr(shares).sum().exp()
