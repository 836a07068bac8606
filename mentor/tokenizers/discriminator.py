"""The discriminator of adversarial training: it judges patches of a picture, not the whole (arXiv 1611.07004)."""

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from mentor.config import Config
from mentor.errors import UserError


class DiscriminatorConfig(Config):
    """Sizes of the discriminator; the defaults are those of VQGAN (arXiv 2012.09841) and LlamaGen (arXiv 2406.06525).

    Attributes:
        channels: width of the first layer; each further one is twice as wide, up to eight times.
        layers: how many layers halve the resolution. Three judge patches of 70 x 70 px, two of 34 x 34, one of 16 x 16.
        groups: groups of the normalisations; 0 for none. The models before this one normalise over the batch, whose
            running statistics belong to a process: neither a resumed run nor another number of processes keeps them.
    """

    channels: int = Field(default=64, gt=0)
    layers: int = Field(default=3, gt=0)
    groups: int = Field(default=32, ge=0)

    @property
    def widths(self) -> list[int]:
        """Channels after each layer but the last, which has one."""
        return [self.channels * min(2**layer, 8) for layer in range(self.layers + 1)]

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest picture that has a patch."""
        return 3 * 2**self.layers

    @model_validator(mode="after")
    def _check_groups(self) -> "DiscriminatorConfig":
        for width in self.widths[1:]:
            if self.groups and width % self.groups:
                raise ValueError(f"a layer has {width} channels, which {self.groups} groups do not divide: change one")
        return self


class Discriminator(nn.Module):
    """4x4 convolutions with leaky rectifiers; those of the first layers halve the resolution."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, len(widths)):
            stride = 2 if layer < config.layers else 1
            # The norm has a bias of its own.
            bias = not config.groups
            parts.append(nn.Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=bias))
            if config.groups:
                parts.append(nn.GroupNorm(config.groups, widths[layer]))
            parts.append(nn.LeakyReLU(0.2))
        parts.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*parts)
        self.apply(_initialise)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b gy gx"]:
        """How real each patch looks, as a logit: above 0 rather real, below rather drawn.

        Raises:
            UserError: the pictures are smaller than a patch needs.
        """
        self.check_size(images)
        return self.layers(images.contiguous(memory_format=torch.channels_last)).squeeze(1)

    def check_size(self, images: Float[Tensor, "b 3 y x"]) -> None:
        """Nothing, where the pictures are large enough.

        Raises:
            UserError: they are not.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.config.smallest:
            raise UserError(
                f"pictures of {height} x {width} px: a discriminator of {self.config.layers} layers takes "
                f"{self.config.smallest} px and more, say loss.adversarial.discriminator.layers with fewer"
            )


def _initialise(part: nn.Module) -> None:
    """Weights as in the paper's appendix 6.2."""
    if isinstance(part, nn.Conv2d):
        nn.init.normal_(part.weight, 0.0, 0.02)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    elif isinstance(part, nn.GroupNorm):
        nn.init.normal_(part.weight, 1.0, 0.02)
        nn.init.zeros_(part.bias)
