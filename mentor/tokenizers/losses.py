"""How far a drawn picture is from its target, for training and for people."""

from typing import Literal, assert_never

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mentor.config import Config
from mentor.tokenizers.discriminator import DiscriminatorConfig

# hinge: Lim and Ye 2017, as LlamaGen has it; non_saturating: Goodfellow et al. 2014, section 3; vanilla: as in VQGAN's
# code, the second's discriminator with the first's generator.
AdversarialKind = Literal["hinge", "non_saturating", "vanilla"]


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
    """Weighted difference of pictures in a space of luma and colour differences."""

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


class AdversarialLossConfig(Config):
    """A discriminator that learns to tell drawn pictures from real ones, and what it teaches the image tokenizer.

    Attributes:
        weight: of the adversarial part in the image tokenizer's loss; see `adaptive`.
        adaptive: take the weight as the ratio in which both parts move the drawn pictures: it is multiplied by the norm
            of the pixel loss's gradient with respect to the pictures over that of the adversarial one (VQGAN's equation
            7, at the pictures in place of the last layer). A weight as such means little, since it has to outweigh a
            pixel loss that shrinks all the time: the 0.5 of LlamaGen, beside a perceptual loss, is far too much here.
        start: share of all updates before it begins. A discriminator finds bad pictures without being taught, and
            teaches nothing by that.
        kind: the two losses.
        lr: learning rate of the discriminator at its peak; it has AdamW, and the warm-up and cosine of the optimizer.
        betas: AdamW's.
        discriminator: its sizes.
    """

    weight: float = Field(default=0.5, ge=0)
    adaptive: bool = True
    start: float = Field(default=0.5, ge=0, lt=1)
    kind: AdversarialKind = "hinge"
    lr: float = Field(default=2e-4, gt=0)
    betas: tuple[float, float] = (0.5, 0.9)
    discriminator: DiscriminatorConfig = DiscriminatorConfig()


def discriminator_loss(
    real: Float[Tensor, "b gy gx"], fake: Float[Tensor, "b gy gx"], kind: AdversarialKind
) -> Float[Tensor, ""]:
    """What the discriminator minimises; half the sum over real and drawn pictures, as in VQGAN (arXiv 2012.09841).

    Args:
        real: logits of real pictures, to be above 0.
        fake: logits of drawn pictures, to be below 0.
        kind: hinge is 1 at indifference, the two others log 2.
    """
    match kind:
        case "hinge":
            return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2
        case "non_saturating" | "vanilla":
            # -log sigmoid(x) = softplus(-x): the cross entropy to "real", and with the sign turned to "drawn".
            return (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()) / 2
        case _:
            assert_never(kind)


def generator_loss(fake: Float[Tensor, "b gy gx"], kind: AdversarialKind) -> Float[Tensor, ""]:
    """What the image tokenizer minimises to be taken for real: it falls as the logits of its pictures rise."""
    match kind:
        case "hinge" | "vanilla":
            return -fake.float().mean()
        case "non_saturating":
            return F.softplus(-fake.float()).mean()
        case _:
            assert_never(kind)


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
