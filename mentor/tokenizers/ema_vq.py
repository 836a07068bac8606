"""A codebook on the unit sphere that follows running averages, by the vector-quantize-pytorch library."""

from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mentor.config import Config
from mentor.tokenizers.clustering import Draws, draw_vectors, kmeans, world_size
from mentor.tokenizers.geometry import Sphere
from mentor.tokenizers.quantizer import CodebookQuantizer, straight_through

if TYPE_CHECKING:
    from vector_quantize_pytorch import VectorQuantize


class EMAVQConfig(Config):
    """Codebook of unit vectors, each the running average of the latents that chose it (arXiv 1711.00937, appendix A).

    Attributes:
        codes: how many.
        width: numbers in a code vector.
        commitment: weight of the loss that draws latents to their codes.
        decay: decay per batch of the averages.
        restart_below: a code chosen by fewer latents per batch than this moves onto a vector of the batch.
        noise: standard deviation of the noise on each number of a warm-up latent.
        kmeans_vectors: vectors per code that the k-means start takes, as far as the batch has them.
    """

    kind: Literal["ema_vq"] = "ema_vq"
    codes: int = Field(default=1024, gt=1)
    width: int = Field(default=8, gt=1)
    commitment: float = Field(default=0.25, ge=0)
    decay: float = Field(default=0.95, gt=0, lt=1)
    restart_below: float = Field(default=0.1, ge=0)
    noise: float = Field(default=0.05, ge=0)
    kmeans_vectors: int = Field(default=16, gt=0)


class EMAVectorQuantizer(CodebookQuantizer):
    """Nearest of averaged unit vectors to the normalised latent; the codebook learns without gradients."""

    def __init__(self, config: EMAVQConfig) -> None:
        super().__init__(Sphere(), config.noise)
        self.config = config
        self.width = config.width
        self.vocab_size = config.codes
        self.library = self._build(synchronised=False)
        self._synchronised = False

    def _build(self, synchronised: bool) -> "VectorQuantize":
        # The library loads torch's compiler and a computer algebra: longer than loading a model and drawing with it.
        from vector_quantize_pytorch import VectorQuantize

        return VectorQuantize(
            dim=self.config.width,
            codebook_size=self.config.codes,
            decay=self.config.decay,
            use_cosine_sim=True,
            commitment_weight=self.config.commitment,
            threshold_ema_dead_code=0,  # its own draw of vectors depends on the number of processes
            rotation_trick=False,
            sync_codebook=synchronised,
        )

    @property
    def codebook(self) -> Float[Tensor, "v c"]:
        """The unit code vectors, float32."""
        return self.library.codebook.float()

    def choose_codes(self, placed: Float[Tensor, "n c"], draws: Draws) -> None:
        """Centres of clusters among the vectors of all processes, each as heavy as its cluster."""
        drawn = draw_vectors(placed, self.config.kmeans_vectors * self.vocab_size, draws)
        centres, shares = kmeans(drawn, self.vocab_size, self.geometry)
        sizes = shares * len(drawn)
        state = self.library.state_dict()
        state["_codebook.embed"] = centres.unsqueeze(0)
        state["_codebook.cluster_size"] = sizes.unsqueeze(0)
        state["_codebook.embed_avg"] = (centres * sizes.unsqueeze(1)).unsqueeze(0)
        self.library.load_state_dict(state)

    def quantize(self, latents: Float[Tensor, "n c"], draws: Draws | None) -> tuple[Tensor, Tensor, Tensor]:
        """Code vectors, ids and commitment loss; in training the averages move on after the codes are chosen."""
        placed = self.place(latents)
        if not self.training:
            ids = self.nearest(placed)
            vectors = self.codebook[ids]
            return straight_through(vectors, placed), ids, self.config.commitment * F.mse_loss(placed, vectors)
        self._join_processes()
        vectors, ids, loss = self.library(placed.unsqueeze(0))
        self._restart(placed, draws or Draws.own())
        return straight_through(vectors.squeeze(0), placed), ids.squeeze(0), loss.squeeze()

    @torch.no_grad()
    def _restart(self, placed: Float[Tensor, "n c"], draws: Draws) -> None:
        state = self.library.state_dict()  # the tensors themselves, not copies
        sizes = state["_codebook.cluster_size"][0]
        # The sizes are the same on all processes, so all of them agree here and join in drawing, or none does.
        dead = (sizes < self.config.restart_below).nonzero().squeeze(1)
        if not len(dead):
            return
        drawn = draw_vectors(placed, len(dead), draws)
        # Where there are too few vectors, the other codes wait for the next batch.
        dead = dead[: len(drawn)]
        state["_codebook.embed"][0, dead] = drawn
        # As large as one that just about lives.
        state["_codebook.embed_avg"][0, dead] = self.config.restart_below * drawn
        sizes[dead] = self.config.restart_below

    def _join_processes(self) -> None:
        """Share the averages among processes; the library decides that when built, often before they are joined."""
        if self._synchronised or world_size() == 1:
            return
        shared = self._build(synchronised=True).to(self.codebook.device)
        shared.load_state_dict(self.library.state_dict())
        self.library = shared.train(self.training)
        self._synchronised = True
