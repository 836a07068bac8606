"""Which tensor of ours is made of which of theirs, checked to the last name and shape, and the way back."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mentor.errors import UserError


@dataclass(frozen=True)
class Mapped:
    """How a module of ours and the weights of another project correspond.

    Attributes:
        sources: for each tensor of ours the names of theirs that it has one below the other, each with as many rows.
        own: tensors of ours that theirs have no word for, with the values they get.
        ignored: patterns (of `re.fullmatch`) of names that are left out, and why.
    """

    sources: Mapping[str, tuple[str, ...]]
    own: Mapping[str, Tensor] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What became of a checkpoint.

    Attributes:
        tensors: how many of theirs were taken.
        parameters: numbers in them.
        left_out: names that were left out, by reason.
        types: of the tensors taken: the commonest under "*", others by name; what the way back gives them again.
        prefixes: what stands before the names of encoders within.
        notes: whatever else is worth knowing, a line each.
    """

    tensors: int
    parameters: int
    left_out: Mapping[str, list[str]]
    types: Mapping[str, str]
    prefixes: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def take(module: nn.Module, theirs: Mapping[str, Tensor], mapped: Mapped, what: str) -> Report:
    """Load `theirs` into `module`; every name and shape on both sides must be accounted for.

    Args:
        module: of ours; nothing in it changes unless everything fits.
        theirs: their tensors by name.
        mapped: how the two correspond.
        what: how messages call the checkpoint.

    Raises:
        UserError: names are missing or left over, or shapes differ; the message lists them.
    """
    left_out: dict[str, list[str]] = {}
    for name in theirs:
        for pattern, reason in mapped.ignored.items():
            if re.fullmatch(pattern, name):
                left_out.setdefault(reason, []).append(name)
    wanted = {name for names in mapped.sources.values() for name in names}
    missing = sorted(wanted - theirs.keys())
    unknown = sorted(theirs.keys() - wanted - {name for names in left_out.values() for name in names})
    own = module.state_dict()
    uncovered = sorted(own.keys() - mapped.sources.keys() - mapped.own.keys())
    assert not uncovered, f"the mapping says nothing of {uncovered}"
    shapes = [] if missing else list(_other_shapes(own, theirs, mapped))
    if missing or unknown or shapes:
        raise UserError(f"{what} does not fit: " + "; ".join(_complaints(missing, unknown, shapes)))
    state = {name: _below([theirs[part] for part in parts]) for name, parts in mapped.sources.items()}
    module.load_state_dict(state | dict(mapped.own))
    taken = [theirs[name] for name in wanted]
    return Report(len(taken), sum(tensor.numel() for tensor in taken), left_out, _types(theirs, wanted))


def give_back(module: nn.Module, mapped: Mapped, types: Mapping[str, str]) -> dict[str, Tensor]:
    """Their tensors again, from a module of ours; bit by bit those that `take` took, if it is unchanged.

    Args:
        module: of ours.
        mapped: how the two correspond.
        types: from the report of `take`; what is not named there is float32.
    """
    own, theirs = module.state_dict(), {}
    for name, parts in mapped.sources.items():
        pieces = own[name].chunk(len(parts)) if len(parts) > 1 else (own[name],)
        for part, tensor in zip(parts, pieces, strict=True):
            kind = types.get(part, types.get("*", "float32"))
            theirs[part] = tensor.to(getattr(torch, kind)).contiguous()
    return theirs


def _below(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


def _other_shapes(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], mapped: Mapped) -> Iterable[str]:
    for name, parts in mapped.sources.items():
        shape = tuple(own[name].shape)
        expected = (shape[0] // len(parts), *shape[1:]) if shape else ()
        for part in parts:
            if tuple(theirs[part].shape) != expected:
                yield f"{part} {tuple(theirs[part].shape)} against {expected}"


def _complaints(missing: list[str], unknown: list[str], shapes: list[str]) -> Iterable[str]:
    for word, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if names:
            yield f"{len(names)} {word} ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"


def _types(theirs: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, str]:
    kinds = {name: str(theirs[name].dtype).removeprefix("torch.") for name in sorted(names)}
    commonest = max(sorted(set(kinds.values())), key=list(kinds.values()).count)
    return {"*": commonest} | {name: kind for name, kind in kinds.items() if kind != commonest}
