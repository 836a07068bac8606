"""A learnable codebook: of unit vectors (LlamaGen, arXiv 2406.06525), or of any (VQGAN, arXiv 2012.09841)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mentor.config import Config
from mentor.tokenizers.clustering import Draws, draw_vectors, kmeans, sum_over_processes
from mentor.tokenizers.geometry import Space, Sphere
from mentor.tokenizers.quantizer import CodebookQuantizer, straight_through


class VQConfig(Config):
    """Learnable codebook.

    Attributes:
        codes: how many.
        width: numbers in a code vector.
        unit: scale latents and code vectors to length 1; else they are compared as they are.
        commitment: weight of the loss that draws latents to their codes; the one that draws codes has weight 1.
        usage_decay: decay per batch of the average by which a code's use is judged.
        restart_below: a code used less often than this share of the even share 1 / codes is dead; it moves onto a
            vector of the batch. 0 never restarts.
        noise: standard deviation of the noise on each number of a warm-up latent.
        kmeans_vectors: vectors per code that the k-means start takes, as far as the batch has them.
    """

    kind: Literal["vq"] = "vq"
    codes: int = Field(default=1024, gt=1)
    width: int = Field(default=8, gt=1)
    unit: bool = True
    commitment: float = Field(default=0.25, ge=0)
    usage_decay: float = Field(default=0.95, gt=0, lt=1)
    restart_below: float = Field(default=0.08, ge=0, lt=1)
    noise: float = Field(default=0.05, ge=0)
    kmeans_vectors: int = Field(default=16, gt=0)


class VectorQuantizer(CodebookQuantizer):
    """Nearest of learnable vectors to the latent.

    Codes that no latent chooses are restarted on vectors of the batch. A code is judged only after as many batches as
    the average looks back; a code that was never chosen does not count as used at any time.
    """

    usage: Float[Tensor, "v"]
    age: Float[Tensor, "v"]

    def __init__(self, config: VQConfig) -> None:
        super().__init__(Sphere() if config.unit else Space(), config.noise)
        self.config = config
        self.width = config.width
        self.vocab_size = config.codes
        # Named as in the published weights.
        self.embedding = nn.Embedding(config.codes, config.width)
        nn.init.normal_(self.embedding.weight)
        self.register_buffer("usage", torch.zeros(config.codes))
        self.register_buffer("age", torch.zeros(config.codes))

    @property
    def codebook(self) -> Float[Tensor, "v c"]:
        """The code vectors where they lie, float32."""
        return self.place(self.embedding.weight.float())

    def choose_codes(self, placed: Float[Tensor, "n c"], draws: Draws) -> None:
        """Centres of clusters among the vectors of all processes."""
        drawn = draw_vectors(placed, self.config.kmeans_vectors * self.vocab_size, draws)
        centres, _ = kmeans(drawn, self.vocab_size, self.geometry)
        self.embedding.weight.copy_(centres)
        self.usage.zero_()
        self.age.zero_()

    def quantize(self, latents: Float[Tensor, "n c"], draws: Draws | None) -> tuple[Tensor, Tensor, Tensor]:
        """Code vectors, ids, and codebook plus commitment loss (equation 1 of arXiv 2110.04627)."""
        placed = self.place(latents)
        if self.training:
            # Before the codes are used, so that none changes between a forward and its backward pass.
            self._restart(placed, draws or Draws.own())
        codebook = self.codebook
        if self.training:
            # A code that was put into the middle of vectors of this very batch has no gradient but rounding, and Adam,
            # which divides by the size, would take a step wherever that points.
            codebook = torch.where((self.age == 0).unsqueeze(1), codebook.detach(), codebook)
        ids = self.geometry.likeness(placed.detach(), codebook.detach()).argmax(dim=-1)
        vectors = F.embedding(ids, codebook)
        if self.training:
            self._count(ids)
        loss = F.mse_loss(vectors, placed.detach()) + self.config.commitment * F.mse_loss(placed, vectors.detach())
        return straight_through(vectors, placed), ids, loss

    @torch.no_grad()
    def _count(self, ids: Int[Tensor, "n"]) -> None:
        counts = sum_over_processes(torch.bincount(ids, minlength=self.vocab_size).to(self.usage.dtype))
        self.usage.lerp_(counts / counts.sum(), 1 - self.config.usage_decay)
        self.age += 1

    @torch.no_grad()
    def _restart(self, placed: Float[Tensor, "n c"], draws: Draws) -> None:
        patience = 1 / (1 - self.config.usage_decay)
        seen = 1 - self.config.usage_decay**self.age
        dead = (self.age >= patience) & (self.usage < self.config.restart_below / self.vocab_size * seen)
        # `usage` is the same on all processes, so all of them agree here and join in drawing, or none does.
        dead = dead.nonzero().squeeze(1)
        if not len(dead):
            return
        # Likelier where the codes fit badly, as in k-means++: many vectors are alike, and one code is enough for them.
        error = self.geometry.best - self.geometry.likeness(placed, self.codebook).amax(dim=-1)
        drawn = draw_vectors(placed, len(dead), draws, weights=error.clamp(min=1e-6))
        # Where there are too few vectors, the other codes wait for the next batch.
        dead = dead[: len(drawn)]
        self.embedding.weight[dead] = drawn.to(self.embedding.weight.dtype)
        self.usage[dead] = 0
        self.age[dead] = 0
