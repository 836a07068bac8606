"""The autoregressive generator: a picture as codes, written one after the other."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mentor.conditioning import Condition, Material
from mentor.models.generator import Generator, GeneratorConfig, prefix_lm_mask
from mentor.models.heads import ARHead, ARHeadConfig, CodeEmbedding
from mentor.types import CodeSpec


class CodeGenerator(Generator):
    """Writes a grid of codes token by token after a prefix (MENTOR, arXiv 2507.09574).

    Image tokens see the prefix and what was written before. The start token stands at cell 0, code i at cell i + 1. The
    settings can also give the layout of LlamaGen and of MENTOR's own code.
    """

    embedding: CodeEmbedding

    def __init__(
        self, config: GeneratorConfig, material: Material, spec: CodeSpec, codebook: Float[Tensor, "v c"]
    ) -> None:
        head = config.head
        assert isinstance(head, ARHeadConfig)
        super().__init__(config, material, spec, lambda width: CodeEmbedding(head, codebook, width))
        self.ahead = int(config.placement == "next")
        self.head = ARHead(head, codebook, config.backbone.width)

    def forward(self, condition: Condition, ids: Int[Tensor, "b gy gx"]) -> Float[Tensor, "b t v"]:
        """Logits of every image token given the prompt and the true tokens before it (teacher forcing)."""
        prefix = self.conditioner(condition)
        tokens = rearrange(ids, "b gy gx -> b (gy gx)")[:, :-1]
        cells = self.input_cells(tokens)
        x = torch.cat((self.place(prefix.embeddings, prefix.cells), self.place(self.embedding(tokens), cells)), dim=1)
        rotary = self.turns(torch.cat((prefix.cells, cells), dim=1), prefix.embeddings.shape[1])
        mask = prefix_lm_mask(prefix.mask, tokens.shape[1], self.config.causal_prefix)
        with self.reading(prefix, tokens.shape[1]) as edit:
            hidden = self.backbone(x, rotary, mask, tail=self.spec.tokens, edit=edit)
        return self.head(hidden)

    def read_out(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n v"]:
        """Logits over the codebook."""
        return self.head(hidden)

    def input_cells(self, ids: Int[Tensor, "b t"]) -> Int[Tensor, "b t 2"]:
        """(row, column) of the cells where the first image tokens are placed."""
        return self.token_cells(self.ahead, self.ahead + ids.shape[1], ids.device).expand(len(ids), -1, -1)
