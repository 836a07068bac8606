"""The decoder-only transformer; sizes follow LlamaGen's table (arXiv 2406.06525)."""

from collections.abc import Callable, Sequence

from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from mentor.config import Config
from mentor.nn.attention import Cache
from mentor.nn.layers import Block, RMSNorm, swiglu_hidden
from mentor.nn.modulation import Modulation
from mentor.nn.rope import Rotary, rotary_table

# Changes hidden states behind a block: called with the block's number and the last tokens that it gives.
Edit = Callable[[int, Float[Tensor, "b m d"]], Float[Tensor, "b m d"]]


class BackboneConfig(Config):
    """Size and shape of the decoder.

    Attributes:
        width: width of a token, a multiple of `heads`.
        kv_heads: key-value heads (grouped-query attention); 0 means as many as `heads`.
        hidden: width within the gated feed-forward; 0 takes 2/3 of four widths, rounded up to a multiple of 256.
        rope_base: base of the rotary frequencies; 10000 at 16 x 16 and above, less on small grids, where long waves
            would leave most pairs still.
        rope_prefix: whether reference cells in the prefix are turned like the target cells they stand for (the
            default), or left alone like all of MENTOR's prefix.
        legacy_prefix: make queries and keys of the prefix zero, so that it is seen by its values alone, each as much as
            the others. LlamaGen's published weights were trained so (its issue 54); good for nothing else.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int = 0
    hidden: int = Field(default=0, ge=0)
    dropout: float = 0.0
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_prefix: bool = True
    legacy_prefix: bool = False

    @model_validator(mode="after")
    def _check_shape(self) -> "BackboneConfig":
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} must split into {self.heads} heads of a width that 4 divides")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads {self.heads}")
        return self


class Backbone(nn.Module):
    """Pre-norm decoder over embedded tokens; it knows nothing of prompts or codebooks."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.kv_heads = config.kv_heads or config.heads
        self.head_width = config.width // config.heads
        hidden = config.hidden or swiglu_hidden(config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, self.kv_heads, hidden, config.dropout, config.norm_eps)
            for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
        # Residual branches start small, so that depth does not blow up the stream (GPT-2's rule).
        if isinstance(module, Block):
            scale = 0.02 / (2 * self.config.layers) ** 0.5
            nn.init.normal_(module.attention.out.weight, std=scale)
            nn.init.normal_(module.feed_forward.down.weight, std=scale)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Rotary,
        mask: Bool[Tensor, "b 1 n m"] | None,
        cache: Cache | None = None,
        tail: int | None = None,
        edit: Edit | None = None,
        modulations: Sequence[Modulation] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Hidden states after the last block, normalised.

        Args:
            x: embedded tokens.
            rotary: what each token is turned by, from `rotary`.
            mask: True where a query (n) may look at a key (m); None lets all look at all.
            cache: keys and values so far; the new tokens are added to it, and it says who may look at what.
            tail: give the states of the last `tail` tokens only. The last block then spares the others' feed-forward,
                a tenth of all work in four blocks when half of the sequence is a prefix.
            edit: changes the states behind each block.
            modulations: of each block, by the noise in its last tokens; None where there is no noise.
        """
        for layer, block in enumerate(self.blocks):
            modulation = None if modulations is None else modulations[layer]
            x = block(x, rotary, mask, cache, layer, tail if layer == len(self.blocks) - 1 else None, modulation)
            if edit is not None:
                x = edit(layer, x)
        return self.norm(x)

    def rotary(self, coordinates: Float[Tensor, "b n 2"]) -> Rotary:
        """What turns tokens at these (row, column)."""
        return rotary_table(coordinates, self.head_width, self.config.rope_base)
