"""The generator: conditioner, backbone and head, over a grid of codes it was built for."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mentor.conditioning import Condition, ConditionerConfig, TextTokenizer, build_conditioner
from mentor.config import Config
from mentor.models.backbone import Backbone, BackboneConfig
from mentor.models.heads import ARHead, ARHeadConfig, CodeEmbedding
from mentor.types import CodeSpec


class GeneratorConfig(Config):
    """The parts of a generator.

    Attributes:
        grid_std: standard deviation that the grid's row and column embeddings start with. It must be about as loud as
            the content of a token, or attention finds a cell's counterpart in the reference only after long training.
    """

    conditioner: ConditionerConfig
    backbone: BackboneConfig
    head: ARHeadConfig
    grid_std: float = 0.5


class Generator(nn.Module):
    """Writes a grid of codes token by token after a prefix (MENTOR, arXiv 2507.09574).

    The prefix sees itself in both directions, image tokens see the prefix and what was written before. Each token is
    placed at the cell that it *predicts*: the start token at cell 0, code i at cell i + 1. That is the place that a
    reference's cell has too, so the query that predicts a cell finds its counterpart at distance zero.
    """

    def __init__(
        self, config: GeneratorConfig, text_tokenizer: TextTokenizer, spec: CodeSpec, codebook: Float[Tensor, "v c"]
    ) -> None:
        super().__init__()
        width = config.backbone.width
        self.config = config
        self.spec = spec
        self.conditioner = build_conditioner(config.conditioner, text_tokenizer, spec, width)
        self.embedding = CodeEmbedding(config.head, codebook, width)
        self.rows = nn.Parameter(torch.randn(spec.grid[0], width) * config.grid_std)
        self.columns = nn.Parameter(torch.randn(spec.grid[1], width) * config.grid_std)
        self.backbone = Backbone(config.backbone)
        self.head = ARHead(config.head, codebook, width)

    def forward(self, condition: Condition, ids: Int[Tensor, "b gy gx"]) -> Float[Tensor, "b t v"]:
        """Logits of every image token given the prompt and the true tokens before it (teacher forcing)."""
        prefix = self.conditioner(condition)
        tokens = rearrange(ids, "b gy gx -> b (gy gx)")[:, :-1]
        cells = self.token_cells(1, self.spec.tokens, tokens.device).expand(len(tokens), -1, -1)
        x = torch.cat((self.place(prefix.embeddings, prefix.cells), self.place(self.embedding(tokens), cells)), dim=1)
        coordinates = self.coordinates(torch.cat((prefix.cells, cells), dim=1), prefix.embeddings.shape[1])
        mask = prefix_lm_mask(prefix.mask, tokens.shape[1])
        return self.head(self.backbone(x, self.backbone.rotary(coordinates), mask, tail=self.spec.tokens))

    def token_cells(self, first: int, last: int, device: torch.device) -> Int[Tensor, "1 t 2"]:
        """(row, column) of the cells `first` to `last` (not included)."""
        cells = torch.arange(first, last, device=device)
        return torch.stack((cells // self.spec.grid[1], cells % self.spec.grid[1]), dim=-1).unsqueeze(0)

    def place(self, tokens: Float[Tensor, "b n d"], cells: Int[Tensor, "b n 2"]) -> Float[Tensor, "b n d"]:
        """The tokens with the embedding of their cell's row and column added, where they have one."""
        on_grid = (cells >= 0).all(dim=-1, keepdim=True)
        row, column = cells.clamp(min=0).unbind(dim=-1)
        return tokens + (self.rows[row] + self.columns[column]) * on_grid

    def coordinates(self, cells: Int[Tensor, "b n 2"], prefix: int) -> Float[Tensor, "b n 2"]:
        """What each token is turned by: its cell, and nothing for text (or for all of the prefix, if so configured)."""
        coordinates = cells.clamp(min=0).float()
        if not self.config.backbone.rope_prefix and prefix:
            keep = torch.arange(cells.shape[1], device=cells.device) >= prefix - 1
            coordinates = coordinates * keep.unsqueeze(-1)
        return coordinates


def prefix_lm_mask(prefix_mask: Bool[Tensor, "b p"], tokens: int) -> Bool[Tensor, "b 1 n n"]:
    """True where a token may look: at the whole prefix from everywhere, at image tokens only backwards.

    Padding columns are off for all; padding rows look at the prefix like the others, so that no row is empty.
    """
    rows, length = prefix_mask.shape
    total = length + tokens
    allowed = torch.ones(total, total, dtype=torch.bool, device=prefix_mask.device).tril()
    allowed[:, :length] = True
    keys = torch.cat((prefix_mask, prefix_mask.new_ones(rows, tokens)), dim=1)
    return allowed & rearrange(keys, "b m -> b 1 1 m")
