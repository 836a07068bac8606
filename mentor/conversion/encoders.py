"""Encoders of transformers inside other projects' checkpoints, found by transformers' own names."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mentor.errors import UserError

# A tensor of each encoder whose name says where the others are.
_ANCHORS = {"text_encoder": "encoder.final_layer_norm.weight", "vision_encoder": "pre_layrnorm.weight"}
# Names of one tensor, of which a checkpoint may have either or both.
_TIED = {"shared.weight": "encoder.embed_tokens.weight", "encoder.embed_tokens.weight": "shared.weight"}


def find_prefixes(theirs: Mapping[str, Tensor], region: str, what: str) -> dict[str, str]:
    """What stands before the names of each encoder's tensors in a checkpoint.

    Args:
        theirs: the weights by name.
        region: what all of their names begin with.
        what: how messages call the checkpoint.

    Raises:
        UserError: an encoder is not there, or there several times.
    """
    prefixes = {}
    for encoder, anchor in _ANCHORS.items():
        found = [name for name in theirs if name.startswith(region) and name.endswith(f".{anchor}")]
        if len(found) != 1:
            raise UserError(
                f"{what} has {len(found)} tensors called {region}...{anchor}, by which its {encoder} is known: "
                "it must have one"
            )
        prefixes[encoder] = found[0].removesuffix(anchor)
    return prefixes


def map_encoders(
    names: Iterable[str], prefixes: Mapping[str, str], theirs: Iterable[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """For each tensor of the encoders among `names`, which are a generator's, what the checkpoint calls it.

    Args:
        names: of all tensors of a generator.
        prefixes: from `find_prefixes`.
        theirs: the names that the checkpoint has; None for one that is yet to be written.
    """
    known = None if theirs is None else set(theirs)
    sources = {}
    for encoder, prefix in prefixes.items():
        beginning = f"conditioner.{encoder}."
        for name in names:
            if name.startswith(beginning):
                own = name.removeprefix(beginning)
                if known is not None and prefix + own not in known and prefix + _TIED.get(own, own) in known:
                    own = _TIED[own]
                sources[name] = (prefix + own,)
    return sources


def distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """How far weights are from others of the same names: length of the difference over length of the others."""
    squares = torch.zeros(2, dtype=torch.float64)
    for name, tensor in before.items():
        squares += torch.stack([(after[name] - tensor).double().square().sum(), tensor.double().square().sum()])
    return float((squares[0] / squares[1]).sqrt())
