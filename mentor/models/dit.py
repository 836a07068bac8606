"""The diffusion transformer: a picture denoised as a whole, after the same prefix as the other generators have."""

import torch
from jaxtyping import Float
from torch import Tensor

from mentor.conditioning import Condition, Material
from mentor.diffusion import Draws
from mentor.models.generator import Generator, GeneratorConfig, prefix_lm_mask
from mentor.models.heads import DiTConfig, DiTHead, LatentEmbedding, LatentScale
from mentor.nn.context import ContextCache
from mentor.types import CodeSpec


class DiffusionTransformer(Generator):
    """Predicts the noise in continuous latents (DiT, arXiv 2212.09748), with the prompt in context.

    Tokens of the picture see each other and the prefix, and are modulated by the time. The prefix sees itself alone and
    no time, so it is read once for all steps of a picture.
    """

    sees_all = True

    def __init__(
        self, config: GeneratorConfig, material: Material, spec: CodeSpec, codebook: Float[Tensor, "v c"]
    ) -> None:
        assert isinstance(config.head, DiTConfig)
        super().__init__(config, material, spec, lambda width: LatentEmbedding(spec.code_width, width))
        self.head = DiTHead(config.head, spec.code_width, config.backbone.width, config.backbone.layers)
        self.scale = LatentScale(codebook)

    def forward(
        self, condition: Condition, noisy: Float[Tensor, "b t c"], time: Float[Tensor, "b"]
    ) -> Float[Tensor, "b t c"]:
        """The prediction for noisy tokens at these times, in the process's unit, given the prompts."""
        prefix = self.conditioner(condition)
        length = prefix.embeddings.shape[1]
        cells = self.token_cells(0, self.spec.tokens, noisy.device).expand(len(noisy), -1, -1)
        x = torch.cat((self.place(prefix.embeddings, prefix.cells), self.place(self.embedding(noisy), cells)), dim=1)
        rotary = self.turns(torch.cat((prefix.cells, cells), dim=1), length)
        mask = prefix_lm_mask(prefix.mask, self.spec.tokens, self.config.causal_prefix, both_ways=True)
        modulations, last = self.head.modulations(time, self.spec.tokens)
        with self.reading(prefix, self.spec.tokens) as edit:
            hidden = self.backbone(x, rotary, mask, tail=self.spec.tokens, edit=edit, modulations=modulations)
        return self.head(hidden, last)

    def losses(self, condition: Condition, latents: Float[Tensor, "b c gy gx"], draws: Draws) -> Float[Tensor, "b t"]:
        """Mean squared error of the prediction in every token, at one time for each picture.

        Args:
            condition: the prompts.
            latents: of the true pictures.
            draws: the chance of each picture.
        """
        process, clean = self.head.process, self.scale.tokens(latents)
        time = process.times(draws.uniform())
        noise = draws.normal(*clean.shape[1:])
        predicted = self(condition, process.noisy(clean, noise, time), time)
        return (predicted.float() - process.target(clean, noise, time)).square().mean(dim=-1)

    def denoise(
        self, noisy: Float[Tensor, "b t c"], time: Float[Tensor, "b"], cache: ContextCache
    ) -> Float[Tensor, "b t c"]:
        """What `forward` gives, for prompts that are read already."""
        cells = self.token_cells(0, self.spec.tokens, noisy.device)
        dtype = self.backbone.norm.weight.dtype
        x = self.place(self.embedding(noisy), cells).to(dtype)
        modulations, last = self.head.modulations(time, self.spec.tokens)
        hidden = self.backbone(x, self.turns(cells, 0), None, cache, modulations=modulations)
        return self.head(hidden.to(last.dtype), last)

    def read_out(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The states: of a prompt alone there is nothing to predict."""
        return hidden
