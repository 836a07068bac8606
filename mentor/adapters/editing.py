"""Edits of hidden states at the beginning and the end of a prompt."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mentor.adapters.settings import EditsConfig
from mentor.conditioning import Prefix, Span
from mentor.errors import UserError
from mentor.models.backbone import Edit


class Editor(nn.Module):
    """h + R (W h + b - R^T h): moves what h has along the columns of R to what W and b say (arXiv 2404.03592, eq. 3).

    It begins as good as nothing: W is R^T, and b is 0. R is the orthonormal factor of a trained matrix (QR, with
    positive diagonal), so that it is the matrix itself as long as that is orthonormal.

    Args:
        width: of a hidden state.
        rank: columns of R.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        # Row by row in memory, as sharded training wants its parameters.
        self.rotation = nn.Parameter(orthonormal(torch.randn(width, rank)).contiguous())
        self.weight = nn.Parameter(self.rotation.detach().T.clone(memory_format=torch.contiguous_format))
        self.bias = nn.Parameter(torch.zeros(rank))

    def forward(self, h: Float[Tensor, "b n d"], strength: float = 1.0) -> Float[Tensor, "b n d"]:
        """The edited states; the edit is computed in float32, and multiplied by `strength`."""
        with torch.autocast(h.device.type, enabled=False):
            rotation = orthonormal(self.rotation.float())
            moved = h.float() @ (self.weight.float().T - rotation) + self.bias
            return h + (strength * moved @ rotation.T).to(h.dtype)


class Editors(nn.Module):
    """An adapter's edits behind the blocks of a backbone.

    Args:
        config: where they are.
        layers: blocks of the backbone.
        width: of a hidden state.

    Raises:
        UserError: a layer is named that the backbone has not, or the rank is above the width.
    """

    def __init__(self, config: EditsConfig, layers: int, width: int) -> None:
        super().__init__()
        chosen = range(layers) if config.layers is None else config.layers
        if max(chosen) >= layers:
            raise UserError(f"adapter.edits.layers has {max(chosen)}, and the model's layers are 0 to {layers - 1}")
        if config.rank > width:
            raise UserError(f"adapter.edits.rank {config.rank} is above the model's width {width}: take less")
        self.config = config
        self.sites = [site for site, count in (("first", config.first), ("last", config.last)) if count]
        self.layers = nn.ModuleDict(
            {str(layer): nn.ModuleDict({site: Editor(width, config.rank) for site in self.sites}) for layer in chosen}
        )

    def edit(self, prefix: Prefix, tokens: int, strength: float = 1.0) -> Edit:
        """What is done to the hidden states of a prefix with so many image tokens behind it."""
        masks = places(prefix, self.config)
        length = prefix.mask.shape[1]

        def apply(layer: int, x: Float[Tensor, "b m d"]) -> Float[Tensor, "b m d"]:
            # The last block may give the last tokens only.
            left_out = length + tokens - x.shape[1]
            if str(layer) not in self.layers or left_out >= length:
                return x
            prompt, rest = x[:, : length - left_out], x[:, length - left_out :]
            edited = prompt
            for site, editor in self._at(layer):
                edited = torch.where(masks[site][:, left_out:, None], editor(prompt, strength), edited)
            return torch.cat((edited, rest), dim=1)

        return apply

    def _at(self, layer: int) -> Iterable[tuple[str, nn.Module]]:
        sites = self.layers[str(layer)]
        assert isinstance(sites, nn.ModuleDict)
        return sites.items()


def orthonormal(matrix: Float[Tensor, "d r"]) -> Float[Tensor, "d r"]:
    """The matrix's orthonormal factor whose triangular one has a positive diagonal: itself, if it is orthonormal."""
    factor, triangle = torch.linalg.qr(matrix)
    return factor * torch.where(torch.diagonal(triangle) < 0, -1.0, 1.0)


def places(prefix: Prefix, config: EditsConfig) -> Mapping[str, Bool[Tensor, "b p"]]:
    """Site -> True at the tokens of each row that are edited there. The null condition has none."""
    rows, length = prefix.mask.shape
    first = torch.zeros(rows, length, dtype=torch.bool)
    last = torch.zeros(rows, length, dtype=torch.bool)
    for row, spans in enumerate(prefix.spans):
        tokens = _tokens(spans, config)
        # Rows are padded on the left, spans count from a row's first token.
        padding = length - (spans[-1].end if spans else 0)
        beginning = tokens[: config.first]
        end = tokens[len(beginning) :][-config.last :] if config.last else []
        first[row, [padding + token for token in beginning]] = True
        last[row, [padding + token for token in end]] = True
    device = prefix.mask.device
    return {"first": first.to(device), "last": last.to(device)}


def _tokens(spans: Iterable[Span], config: EditsConfig) -> list[int]:
    spans = list(spans)
    if any(span.kind == "null" for span in spans):
        return []
    return [token for span in spans if span.kind in config.segments for token in range(span.start, span.end)]
