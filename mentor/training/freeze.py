"""Parameters that stay as they are, chosen by patterns over their names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from mentor.config import near
from mentor.errors import UserError


def freeze(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop training the parameters whose name fits one of the glob patterns; returns their names.

    Args:
        module: holds the parameters; names are as in its `named_parameters`.
        patterns: such as `backbone.blocks.0.*` or `conditioner.*`; `*` also spans dots.

    Raises:
        UserError: a pattern fits no parameter, or nothing is left to train.
    """
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise UserError(
                f"freeze: the pattern {pattern!r} fits no parameter{near(pattern, [*names, *parts])}: "
                f"the parts are {', '.join(parts)}; write for example {parts[0]}.*"
            )
    frozen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if len(frozen) == len(names):
        raise UserError(f"freeze: the patterns {', '.join(patterns)} leave nothing to train: take fewer")
    chosen = set(frozen)
    for name, parameter in module.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)
    return frozen
