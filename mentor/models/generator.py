"""What every generator has: a conditioner, a backbone over a grid of places, and a head of some kind."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mentor.conditioning import ConditionerConfig, Material, Prefix, build_conditioner
from mentor.config import Config
from mentor.models.adaptation import Adaptation
from mentor.models.backbone import Backbone, BackboneConfig, Edit
from mentor.models.heads import ARHeadConfig, HeadConfig
from mentor.nn.rope import Rotary
from mentor.types import CodeSpec


class GeneratorConfig(Config):
    """The parts of a generator.

    Attributes:
        grid_std: standard deviation that the grid's row and column embeddings start with. It must be about as loud as
            the content of a token, or attention finds a cell's counterpart in the reference only after long training.
        grid_embeddings: add them at all; without them tokens know their cell by rotary positions alone, as in LlamaGen.
        placement: where a token stands: at the `next` cell, which it predicts, or at its `own` as in LlamaGen, where
            what predicts the first cell stands nowhere.
        causal_prefix: let tokens of the prefix see only what is before them, as in LlamaGen and MENTOR.
    """

    conditioner: ConditionerConfig
    backbone: BackboneConfig
    head: HeadConfig
    grid_std: float = 0.5
    grid_embeddings: bool = True
    placement: Literal["next", "own"] = "next"
    causal_prefix: bool = False


class Generator(nn.Module, ABC):
    """A conditioner, a backbone and a head over the grid of codes that it was built for (MENTOR, arXiv 2507.09574).

    The prefix sees itself in both directions and nothing of the picture; tokens of the picture see the prefix. Each
    token is placed at the cell that it *predicts*. That is the place that a reference's cell has too, so the query that
    predicts a cell finds its counterpart at distance zero.

    Args:
        config: the parts.
        material: what the conditioner is made of beside its settings.
        spec: of the codes.
        make_embedding: makes, for this width, what turns codes or latents into input tokens.

    Attributes:
        ahead: how many cells ahead of its own a token is placed: 1 where it predicts the next one.
        sees_all: whether all tokens of a picture pass through the backbone in every step of drawing.
        adaptation: what adapters do while a prompt is read; None without any.
    """

    ahead: int = 0
    sees_all: bool = False

    def __init__(
        self,
        config: GeneratorConfig,
        material: Material,
        spec: CodeSpec,
        make_embedding: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        width = config.backbone.width
        self.config = config
        self.spec = spec
        self.material = material
        self.conditioner = build_conditioner(config.conditioner, material, spec, width)
        self.embedding = make_embedding(width)
        self.rows = self.columns = None
        if config.grid_embeddings:
            self.rows = nn.Parameter(torch.randn(spec.grid[0], width) * config.grid_std)
            self.columns = nn.Parameter(torch.randn(spec.grid[1], width) * config.grid_std)
        self.backbone = Backbone(config.backbone)
        self.adaptation: Adaptation | None = None

    @property
    def kept_apart(self) -> tuple[str, ...]:
        """Beginnings of the names of tensors that are kept with the material."""
        return tuple(f"conditioner.{name}" for name in self.conditioner.apart)

    @property
    def draws(self) -> Literal["codes", "continuous", "quantised"]:
        """What the head predicts of a picture."""
        head = self.config.head
        return "codes" if isinstance(head, ARHeadConfig) else head.latents

    @abstractmethod
    def read_out(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n _"]:
        """What drawing needs of hidden states: logits of codes, or the states themselves."""

    def reading(self, prefix: Prefix, tokens: int) -> AbstractContextManager[Edit | None]:
        """Within, adapters see the prefix and so many image tokens behind it pass through the backbone."""
        return nullcontext() if self.adaptation is None else self.adaptation.reading(prefix, tokens)

    def token_cells(self, first: int, last: int, device: torch.device) -> Int[Tensor, "1 t 2"]:
        """(row, column) of the cells `first` to `last` (not included)."""
        cells = torch.arange(first, last, device=device)
        return torch.stack((cells // self.spec.grid[1], cells % self.spec.grid[1]), dim=-1).unsqueeze(0)

    def place(self, tokens: Float[Tensor, "b n d"], cells: Int[Tensor, "b n 2"]) -> Float[Tensor, "b n d"]:
        """The tokens with the embedding of their cell's row and column added, where they have one."""
        if self.rows is None or self.columns is None:
            return tokens
        on_grid = (cells >= 0).all(dim=-1, keepdim=True)
        row, column = cells.clamp(min=0).unbind(dim=-1)
        return tokens + (self.rows[row] + self.columns[column]) * on_grid

    def turns(self, cells: Int[Tensor, "b n 2"], prefix: int) -> Rotary:
        """What each token is turned by: its cell, and nothing for text (or for all of the prefix, if so configured).

        Args:
            cells: of the tokens.
            prefix: how many of them, the first ones, are the prefix.
        """
        config = self.config.backbone
        coordinates = cells.clamp(min=0).float()
        places = torch.arange(cells.shape[1], device=cells.device)
        if not config.rope_prefix and prefix:
            coordinates = coordinates * (places >= prefix - 1).unsqueeze(-1)
        rotary = self.backbone.rotary(coordinates)
        if config.legacy_prefix and prefix:
            rotary = rotary * rearrange(places >= prefix, "n -> n 1 1")
        return rotary


def prefix_lm_mask(
    prefix: Bool[Tensor, "b p"], tokens: int, causal: bool = False, both_ways: bool = False
) -> Bool[Tensor, "b 1 n n"]:
    """True where a token may look: the prefix at itself, image tokens at the whole prefix and at image tokens before.

    Padding columns are off for all; padding rows look at the prefix like the others, so that no row is empty.

    Args:
        prefix: True on the prefix's tokens, False on padding.
        tokens: image tokens behind it.
        causal: let the prefix look only backwards too; padding then looks at itself.
        both_ways: let image tokens look at all image tokens.
    """
    rows, length = prefix.shape
    total = length + tokens
    allowed = torch.ones(total, total, dtype=torch.bool, device=prefix.device).tril()
    if not causal:
        allowed[:, :length] = True
    if both_ways:
        allowed[length:, length:] = True
    keys = torch.cat((prefix, prefix.new_ones(rows, tokens)), dim=1)
    mask = allowed & rearrange(keys, "b m -> b 1 1 m")
    return mask | torch.eye(total, dtype=torch.bool, device=mask.device) if causal else mask
