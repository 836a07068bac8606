"""Several optimizers as one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class JointOptimizer(Optimizer):
    """Optimizers of different parameters, stepped, scheduled and saved as the one that Lightning's own loop takes.

    The parts work on this one's parameter groups and state, so that a schedule moves all of them, and what is saved
    looks like any optimizer's.

    Attributes:
        parts: the optimizers.
        groups_to_clip: the parameters of each model; the norm of the gradient is limited for each by itself.
        skip: leave the gradients at hand out: the next `step` moves nothing and takes this back. It concerns these
            gradients only, so clearing them takes it back too (a loss scaler may drop the step before it comes here).

    Args:
        models: the optimizers of each model.
    """

    def __init__(self, models: Sequence[Sequence[Optimizer]]) -> None:
        self.parts = [part for parts in models for part in parts]
        self.skip = False
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.groups_to_clip: list[list[nn.Parameter]] = [
            [parameter for part in parts for group in part.param_groups for parameter in group["params"]]
            for parts in models
        ]
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every part, after the closure if there is one, unless the closure asked to `skip`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.skip:
            self.skip = False
            return loss
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and the wish to skip them."""
        self.skip = False
        super().zero_grad(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave for the same parts."""
        super().load_state_dict(state_dict)
        self._share()  # loading puts new groups and a new state in place

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            end = first + len(part.param_groups)
            part.__setstate__({"state": self.state, "param_groups": self.param_groups[first:end]})
            first = end
