"""Parameters that stay as they are: chosen by patterns over their names, hashed before training and after."""

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from mentor.config import near
from mentor.errors import UserError
from mentor.training.sharding import local_part, reshard


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


def frozen_digest(module: nn.Module) -> str:
    """The sha256 (hex) of all parameters of the module that are not trained; empty where all of them are.

    Of a sharded module it covers what this process holds. Parameters are taken one at a time, in the order of their
    names, with their types and shapes; where they lie makes no difference.
    """
    return _combined(_digests(module, _frozen_names(module)))


class FrozenWatch(Callback):
    """Hashes what is not trained before the first step, and again when asked to.

    A run that goes on compares with what its first start had, which is in the checkpoints; one that is sharded, and may
    go on with other shards, with what this start had.

    Args:
        apart: modules by name that are used and are no part of the trained one; nothing in them may change.
    """

    def __init__(self, apart: Mapping[str, nn.Module] | None = None) -> None:
        self._apart = dict(apart or {})
        self._before: dict[str, str] | None = None
        self._names: list[str] = []
        self._whole = True
        self.facts: dict[str, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Hash it, with all weights loaded and shared out (Lightning's hook)."""
        if self._before is None or _is_sharded(pl_module):
            self._before = self._take(pl_module)
            self._whole = not _is_sharded(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The hashes, for checkpoints (Lightning's hook)."""
        return {"sha256": self._before} if self._before is not None and self._whole else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the hashes of the first start (Lightning's hook)."""
        self._before, self._whole = state_dict.get("sha256"), True

    def check(self, module: nn.Module) -> None:
        """Nothing, where all of it is as it was before the first step; every process has to call.

        Afterwards `facts` tells how many parameters there are and their sha256, of all processes' shards if they are
        sharded, and is None where there are none.

        Raises:
            RuntimeError: something has changed. In each process, also where only another one has it.
        """
        after = self._take(module)
        before = self._before
        if before is None or (self._whole and _is_sharded(module)):
            before = after  # no step was left to take
        changed = [name for name in after if before.get(name) != after[name]]
        told = [(changed, _combined(after))]
        if distributed.is_available() and distributed.is_initialized():
            gathered: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(gathered, told[0])
            told = gathered
        if names := sorted({name for each, _ in told for name in each}):
            raise RuntimeError(
                f"frozen parameters have changed while training: {', '.join(names[:5])} ({len(names)} in all); "
                "the weights are in the checkpoint, and no release is written"
            )
        if not after:
            return
        digests = [digest for _, digest in told]
        together = digests[0] if len(set(digests)) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
        self.facts = {"parameters": self._count(module), "sha256": together}

    def _take(self, module: nn.Module) -> dict[str, str]:
        reshard(module)
        # A module that was made whole again for drawing does not know what was frozen.
        self._names = self._names or _frozen_names(module)
        digests = _digests(module, self._names)
        for part, other in self._apart.items():
            # All that is kept of it: codes that are counted and not trained are buffers.
            digests |= {f"{part}.{name}": _digest(tensor) for name, tensor in other.state_dict().items()}
        return digests

    def _count(self, module: nn.Module) -> int:
        parameters = dict(module.named_parameters())
        own = sum(parameters[name].numel() for name in self._names)
        return own + sum(weight.numel() for other in self._apart.values() for weight in other.parameters())


def _is_sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def _frozen_names(module: nn.Module) -> list[str]:
    return sorted(name for name, parameter in module.named_parameters() if not parameter.requires_grad)


def _digests(module: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """The sha256 of each of these parameters."""
    parameters = dict(module.named_parameters())
    return {name: _digest(parameters[name]) for name in names}


def _digest(parameter: Tensor) -> str:
    local = local_part(parameter.detach()).cpu().contiguous()
    digest = hashlib.sha256(f"{local.dtype} {tuple(local.shape)}".encode())
    digest.update(local.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _combined(digests: Mapping[str, str]) -> str:
    if not digests:
        return ""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()
