"""The generator of continuous tokens: one after the other, or hidden ones in any order (arXiv 2406.11838)."""

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mentor.conditioning import Condition, Material
from mentor.diffusion import Draws
from mentor.models.generator import Generator, GeneratorConfig, prefix_lm_mask
from mentor.models.heads import DiffusionHead, DiffusionHeadConfig, LatentEmbedding, LatentScale
from mentor.nn.context import ContextCache
from mentor.types import CodeSpec


class ContinuousGenerator(Generator):
    """Hidden states of the backbone, from which a small MLP draws continuous tokens by denoising them.

    In raster order the backbone is that of `CodeGenerator`, with latents in the place of codes. In random order
    (masked generation) hidden tokens enter as one learned vector at their cell, all tokens see each other, and each
    hidden one is predicted at its own place.
    """

    def __init__(
        self, config: GeneratorConfig, material: Material, spec: CodeSpec, codebook: Float[Tensor, "v c"]
    ) -> None:
        settings = config.head
        assert isinstance(settings, DiffusionHeadConfig)
        super().__init__(config, material, spec, lambda width: LatentEmbedding(spec.code_width, width))
        self.settings = settings
        self.ahead = int(config.placement == "next" and settings.order == "raster")
        self.sees_all = settings.order == "random"
        self.hidden_token: nn.Parameter | None = None
        if settings.order == "random":
            self.hidden_token = nn.Parameter(torch.randn(config.backbone.width) * 0.5)
        self.head = DiffusionHead(settings, spec.code_width, config.backbone.width)
        self.scale = LatentScale(codebook)

    def forward(
        self, condition: Condition, tokens: Float[Tensor, "b t c"], hidden: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The state that tells of every token: in raster order by those before it, in random order by those shown.

        Args:
            condition: the prompts.
            tokens: the true ones, of mean 0 and variance 1.
            hidden: of random order: True where a token is to be predicted.
        """
        prefix = self.conditioner(condition)
        if self.hidden_token is None:
            x = self.embedding(tokens[:, :-1])
        else:
            assert hidden is not None
            x = self.enter(tokens, hidden)
        count = x.shape[1]
        cells = self.token_cells(self.ahead, self.ahead + count, tokens.device).expand(len(x), -1, -1)
        x = torch.cat((self.place(prefix.embeddings, prefix.cells), self.place(x, cells)), dim=1)
        rotary = self.turns(torch.cat((prefix.cells, cells), dim=1), prefix.embeddings.shape[1])
        mask = prefix_lm_mask(prefix.mask, count, self.config.causal_prefix, self.hidden_token is not None)
        with self.reading(prefix, count) as edit:
            return self.backbone(x, rotary, mask, tail=self.spec.tokens, edit=edit)

    def enter(self, tokens: Float[Tensor, "b t c"], hidden: Bool[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Input tokens of random order: those that are shown, and the same one for all that are hidden."""
        assert self.hidden_token is not None
        return torch.where(hidden.unsqueeze(-1), self.hidden_token, self.embedding(tokens))

    def losses(
        self, condition: Condition, latents: Float[Tensor, "b c gy gx"], draws: Draws
    ) -> tuple[Float[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Loss of every token, and which of them count: all in raster order, those that were hidden in random order.

        Args:
            condition: the prompts.
            latents: of the true pictures.
            draws: the chance of each picture.
        """
        clean = self.scale.tokens(latents)
        rows, count, width = clean.shape
        hidden = self._hide(draws, count) if self.hidden_token is not None else None
        states = self(condition, clean, hidden)
        times = self.settings.repeats
        uniform, noise = draws.uniform(times, count), draws.normal(times, count, width)
        losses = self.head.loss(
            repeat(clean, "b t c -> (b r t) c", r=times),
            repeat(states, "b t d -> (b r t) d", r=times),
            uniform.flatten(),
            rearrange(noise, "b r t c -> (b r t) c"),
        )
        losses = rearrange(losses, "(b r t) -> b r t", b=rows, t=count).mean(dim=1)
        return losses, torch.ones_like(losses, dtype=torch.bool) if hidden is None else hidden

    def _hide(self, draws: Draws, count: int) -> Bool[Tensor, "b t"]:
        """Which tokens are hidden: a share from a normal distribution that is cut off, at random places."""
        settings = self.settings
        normal = torch.distributions.Normal(settings.mask_mean, settings.mask_std)
        low, high = normal.cdf(torch.tensor([settings.mask_least, 1.0]))
        share = normal.icdf(low + (high - low) * draws.uniform().double().cpu()).clamp(settings.mask_least, 1.0)
        number = (share * count).ceil().to(draws.device).clamp(1, count)
        return draws.order(count).argsort(dim=1) < number.unsqueeze(1)

    def states(
        self, tokens: Float[Tensor, "b t c"], hidden: Bool[Tensor, "b t"], cache: ContextCache
    ) -> Float[Tensor, "b t d"]:
        """What `forward` gives in random order, for prompts that are read already."""
        cells = self.token_cells(0, self.spec.tokens, tokens.device)
        x = self.place(self.enter(tokens, hidden), cells).to(self.backbone.norm.weight.dtype)
        return self.backbone(x, self.turns(cells, 0), None, cache)

    def read_out(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The states, which the head draws tokens by."""
        return hidden
