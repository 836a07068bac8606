"""The contract that every quantizer keeps; tests/unit/tokenizers/test_tokenizers_quantizers.py holds each to it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mentor.errors import UserError
from mentor.tokenizers.clustering import Draws
from mentor.tokenizers.geometry import Geometry


@dataclass(frozen=True)
class Quantized:
    """Latents on the codebook.

    Attributes:
        latents: the code vectors, float32; in training the gradient passes straight through to the quantizer's input.
        ids: which codes they are.
        loss: what the quantizer adds to the training loss (0 where it has nothing to add).
    """

    latents: Float[Tensor, "b c y x"]
    ids: Int[Tensor, "b y x"]
    loss: Float[Tensor, ""]


class Quantizer(nn.Module, ABC):
    """Puts each vector of a map onto the nearest of a finite number of code vectors.

    All arithmetic is float32, inside autocast too: with thousands of codes of a few numbers each, the nearest code in
    bfloat16 is often another one. In eval mode nothing changes and the result depends on the input alone.

    Attributes:
        width: numbers in a code vector.
        vocab_size: how many codes there are.
        started: whether the codes were chosen by data, as `start` does.
    """

    width: int
    vocab_size: int
    started: Bool[Tensor, ""]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("started", torch.tensor(False))

    @property
    @abstractmethod
    def codebook(self) -> Float[Tensor, "v c"]:
        """Every code vector as a decoder reads it."""

    @abstractmethod
    def place(self, latents: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The vectors where codes can lie (on the unit sphere, within bounds), still continuous."""

    @abstractmethod
    def nearest(self, placed: Float[Tensor, "n c"]) -> Int[Tensor, "n"]:
        """The codes nearest to placed vectors; `nearest(codebook[ids]) == ids`."""

    @abstractmethod
    def quantize(self, latents: Float[Tensor, "n c"], draws: Draws | None) -> tuple[Tensor, Tensor, Tensor]:
        """Code vectors with straight-through gradient, ids and loss of unplaced vectors; may learn when in training.

        What learning draws by chance comes from `draws`, if they are given, so that it does not depend on which process
        has which picture.
        """

    @abstractmethod
    def blur(self, placed: Float[Tensor, "n c"], draws: Draws) -> Float[Tensor, "n c"]:
        """Placed vectors with noise about as large as the quantisation error to come."""

    def choose_codes(self, placed: Float[Tensor, "n c"], draws: Draws) -> None:
        """Take codes that suit these placed vectors, the same on all processes; codes that are fixed stay."""

    @torch.no_grad()
    def start(self, latents: Float[Tensor, "b c y x"], draws: Draws | None = None) -> None:
        """Choose the codes by the latents of a batch; all processes call this together."""
        self._check(latents)
        with torch.autocast(latents.device.type, enabled=False):
            placed = self.place(rearrange(latents.float(), "b c y x -> (b y x) c"))
            self.choose_codes(placed, draws or Draws.own())
        self.started.fill_(True)

    def forward(self, latents: Float[Tensor, "b c y x"], draws: Draws | None = None) -> Quantized:
        """The latents on the codebook.

        Args:
            latents: of pictures.
            draws: the pictures' chance, where they have a place among those of other processes.

        Raises:
            UserError: the number of channels is not the quantizer's width.
        """
        return self._over_map(latents, lambda flat: self.quantize(flat, draws))

    def relax(self, latents: Float[Tensor, "b c y x"], draws: Draws | None = None) -> Quantized:
        """The latents placed but not quantised, with noise in training: what a decoder is warmed up with.

        `ids` are the nearest codes as they stand and mean nothing before `start`.
        """

        def relaxed(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            placed = self.place(flat)
            with torch.no_grad():
                ids = self.nearest(placed)
            # All weights take part, so that distributed training finds none without a gradient.
            loss = sum((0.0 * weight.sum() for weight in self.parameters()), placed.new_zeros(()))
            return self.blur(placed, draws or Draws.own()) if self.training else placed, ids, loss

        return self._over_map(latents, relaxed)

    def lookup(self, ids: Int[Tensor, "b y x"]) -> Float[Tensor, "b c y x"]:
        """The code vectors of `ids`."""
        return rearrange(self.codebook[ids], "b y x c -> b c y x")

    def _over_map(self, latents: Tensor, function: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> Quantized:
        self._check(latents)
        with torch.autocast(latents.device.type, enabled=False):
            flat = rearrange(latents.float(), "b c y x -> (b y x) c")
            vectors, ids, loss = function(flat)
        b, _, y, x = latents.shape
        return Quantized(
            rearrange(vectors, "(b y x) c -> b c y x", b=b, y=y, x=x),
            rearrange(ids, "(b y x) -> b y x", b=b, y=y, x=x),
            loss,
        )

    def _check(self, latents: Tensor) -> None:
        if latents.ndim != 4 or latents.shape[1] != self.width:
            raise UserError(
                f"the quantizer got latents of shape {tuple(latents.shape)}, "
                f"it takes (batch, {self.width}, rows, columns)"
            )


class CodebookQuantizer(Quantizer):
    """A quantizer that takes the nearest of a set of vectors.

    Args:
        geometry: where they lie, and what is near.
        noise: standard deviation of the noise on each number of a warm-up latent.
    """

    def __init__(self, geometry: Geometry, noise: float) -> None:
        super().__init__()
        self.geometry = geometry
        self.noise = noise

    def place(self, latents: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The vectors where codes can lie."""
        return self.geometry.place(latents)

    def nearest(self, placed: Float[Tensor, "n c"]) -> Int[Tensor, "n"]:
        """The codes that are most like them."""
        return self.geometry.likeness(placed, self.codebook).argmax(dim=-1)

    def blur(self, placed: Float[Tensor, "n c"], draws: Draws) -> Float[Tensor, "n c"]:
        """The vectors with Gaussian noise, where codes can lie."""
        return self.place(placed + self.noise * draws.normal("blur", placed))


def straight_through(vectors: Float[Tensor, "n c"], source: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """Exactly `vectors` with the gradient of `source` (arXiv 1308.3432)."""
    return vectors.detach() + (source - source.detach())
