"""Updates of low rank to the backbone's weights: where they are, and how they act on the prompt's tokens alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mentor.adapters.settings import LoRAConfig
from mentor.models import Backbone

_ATTENTION = ("attention.qkv", "attention.out")
_FEED_FORWARD = ("feed_forward.gate_up", "feed_forward.down")

# Name of a linear layer in the backbone -> A (down) and B (up) of its update.
Update = tuple[Float[Tensor, "r m"], Float[Tensor, "n r"]]


def targets(config: LoRAConfig, layers: int) -> list[str]:
    """Names in the backbone of the linear layers whose weights are updated."""
    parts = _ATTENTION + _FEED_FORWARD if config.preset == "all_linear" else _ATTENTION
    return [f"blocks.{layer}.{part}" for layer in range(layers) for part in parts]


def linear(backbone: Backbone, name: str) -> nn.Linear:
    """The backbone's linear layer of this name."""
    layer = backbone.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


class PrefixGate:
    """Lets updates act on the tokens of a prompt alone. Outside of a reading they do nothing.

    Attributes:
        factors: 1 for tokens of the prompt, 0 for those of the image behind it; None outside of a reading.
    """

    def __init__(self) -> None:
        self.factors: Float[Tensor, "n 1"] | None = None

    @contextmanager
    def reading(self, prompt: int, tokens: int, like: Tensor) -> Iterator[None]:
        """Within, so many tokens of a prompt and of an image pass, on the device of `like`."""
        self.factors = torch.cat((like.new_ones(prompt, 1), like.new_zeros(tokens, 1)))
        try:
            yield
        finally:
            self.factors = None

    def hook(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Float[Tensor, "b m d"]) -> Tensor:
        """The update that a layer gives, where it may act (a forward hook of torch)."""
        if self.factors is None:
            return torch.zeros_like(output)
        # The last block may be asked for the last tokens only.
        return output * self.factors[-output.shape[1] :].to(output.dtype)


class GatedLinear(nn.Module):
    """A linear layer with an update that acts on the tokens of prompts alone.

    Args:
        base: the layer as it is.
        update: A and B, B times its scale.
        gate: opened while prompts are read.
    """

    down: Tensor
    up: Tensor

    def __init__(self, base: nn.Module, update: Update, gate: PrefixGate) -> None:
        super().__init__()
        self.base = base
        self.gate = gate
        self.register_buffer("down", update[0], persistent=False)
        self.register_buffer("up", update[1], persistent=False)

    def forward(self, x: Float[Tensor, "b n m"]) -> Float[Tensor, "b n d"]:
        """The product, with the update where it may act."""
        y = self.base(x)
        if self.gate.factors is None:
            return y
        update = (x.to(self.down.dtype) @ self.down.T) @ self.up.T
        return y + (update * self.gate.factors[-x.shape[1] :].to(update.dtype)).to(y.dtype)


def stacked(updates: list[tuple[Update, float]]) -> Update:
    """Several updates of a layer, each with its scale, as one: A below A, B beside B."""
    down = torch.cat([down for (down, _), _ in updates])
    up = torch.cat([up * scale for (_, up), scale in updates], dim=1)
    return down, up


def product(updates: list[tuple[Update, float]]) -> Float[Tensor, "n m"]:
    """The sum of the updates of a layer, in float64, so that their order makes no difference that float32 could see."""
    return torch.stack([scale * (up.double() @ down.double()) for (down, up), scale in updates]).sum(dim=0)


def updates_of(weights: Mapping[str, Tensor]) -> dict[str, Update]:
    """Name of a linear layer -> its update, of an adapter's weights."""
    found = {}
    for name, down in weights.items():
        if name.startswith("lora.") and name.endswith(".down"):
            layer = name.removeprefix("lora.").removesuffix(".down")
            found[layer] = (down, weights[f"lora.{layer}.up"])
    return found
