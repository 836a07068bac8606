"""What an adapter is made of: updates of low rank to weights, edits of hidden states, or both."""

from typing import Literal

from pydantic import Field, model_validator

from mentor.config import Config

Preset = Literal["attn", "all_linear", "prefix_attn"]
Segment = Literal["text", "image", "start"]


class LoRAConfig(Config):
    """Updates of low rank (LoRA, arXiv 2106.09685): W + alpha / rank * B A, of which A and B are trained.

    Attributes:
        preset: which weights of the backbone: "attn" has those of attention, "all_linear" those of feed-forwards too.
            "prefix_attn" has those of attention for the prompt's tokens alone: the steps of decoding stay the base's,
            and what the adapter does is in the keys and values that they find.
        rank: of the updates.
        alpha: their scale, times the rank.
        dropout: in training, of what goes into the updates.
    """

    preset: Preset = "attn"
    rank: int = Field(default=8, gt=0)
    alpha: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def scaling(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


class EditsConfig(Config):
    """Edits of hidden states (LoReFT, arXiv 2404.03592; MRT, arXiv 2503.00723): h + R (W h + b - R^T h), R orthonormal.

    They act on tokens of the prompt while it is read, at its beginning and at its end, each with edits of their own.
    Nothing else is touched: neither the null condition nor an image token.

    Attributes:
        rank: columns of R.
        first: so many tokens at the beginning.
        last: so many at the end; a token that is among the first is not among these.
        segments: kinds of segments whose tokens count. "start" is the token behind the prompt that predicts the first
            code, where the conditioner has one.
        layers: blocks of the backbone behind which there are edits, from 0; None is all.
    """

    rank: int = Field(default=4, gt=0)
    first: int = Field(default=4, ge=0)
    last: int = Field(default=4, ge=0)
    segments: tuple[Segment, ...] = Field(default=("text", "image", "start"), min_length=1)
    layers: tuple[int, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check_sites(self) -> "EditsConfig":
        if not self.first + self.last:
            raise ValueError("first and last are both 0: no token would be edited")
        if self.layers is not None and (min(self.layers) < 0 or len(set(self.layers)) < len(self.layers)):
            raise ValueError(f"layers {list(self.layers)} must be different numbers from 0 on")
        return self


class AdapterConfig(Config):
    """The parts of an adapter, at least one of them.

    Attributes:
        lora: updates of weights.
        edits: of hidden states.
    """

    lora: LoRAConfig | None = None
    edits: EditsConfig | None = None

    @property
    def mergeable(self) -> bool:
        """Whether all that the adapter does can be done by the model's weights."""
        return self.edits is None and self.lora is not None and self.lora.preset != "prefix_attn"

    @model_validator(mode="after")
    def _check_parts(self) -> "AdapterConfig":
        if self.lora is None and self.edits is None:
            raise ValueError("an adapter has lora, edits or both: say adapter=lora, adapter=mrt or adapter=lora_mrt")
        return self
