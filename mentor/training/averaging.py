"""The running average of the weights."""

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from mentor.training.sharding import local_part, reshard

_WEIGHTS = "current_model_state"
_STATE = "averaging_state"


class Averaging(Callback):
    """Keeps an exponential average of the trained weights, which validation and the release use.

    After n updates the average keeps the share min(decay, (1 + n) / (10 + n)), so that the first weights are forgotten
    in a few steps and validation makes sense from the start. Buffers are not averaged: some count things. Parameters
    that are not trained need no average. Of sharded weights each process averages its shard.

    A checkpoint has the average as `state_dict` and the weights that are trained as `current_model_state`, whenever it
    is written: also while a validation has the average in the module.

    Args:
        decay: the share that stays, in the end.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._updates = 0
        self._step = 0
        self._trained: list[str] = []
        self._averages: dict[str, Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        # Parameters that are exchanged with their average for a validation.
        self._exchanged: set[str] = set()
        self._finished = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Note what is trained (Lightning's hook)."""
        if stage == "fit":
            self._trained = [name for name, parameter in pl_module.named_parameters() if parameter.requires_grad]

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Average after every update; a module whose weights have jumped says so and is averaged anew from there."""
        if getattr(pl_module, "restart_averaging", False):
            self._updates = 0
            pl_module.restart_averaging = False  # type: ignore[assignment]
        if trainer.global_step <= self._step:
            return
        self._step = trainer.global_step
        pairs = self._pairs(pl_module).values()
        averages, weights = [average for average, _ in pairs], [weight for _, weight in pairs]
        if self._updates:
            self._average(averages, weights, self._updates)
        else:
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)
        self._updates += 1

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate the average (Lightning's hook)."""
        self._exchange(pl_module, into=True)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on with the weights (Lightning's hook)."""
        self._exchange(pl_module, into=False)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Put the weights back if a validation was interrupted (Lightning's hook)."""
        self._exchange(pl_module, into=False)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the average in the module (Lightning's hook)."""
        self.finish(pl_module)

    def finish(self, module: lightning.LightningModule) -> None:
        """Put the averaged weights into `module` for good, as training's end does; for a run that had no step left."""
        if self._finished:
            return
        self._exchange(module, into=False)
        with torch.no_grad():
            for average, weight in self._pairs(module).values():
                weight.copy_(average)
        self._averages, self._parameters, self._finished = {}, {}, True

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the average, and tell it from the weights (Lightning's hook).

        Raises:
            RuntimeError: training has ended, and the weights are gone.
        """
        if self._finished:
            raise RuntimeError("a checkpoint after the end of training would have the average in the weights' place")
        self._pairs(pl_module)
        inside = checkpoint["state_dict"]
        weights, averages = dict(inside), dict(inside)
        for name, average in self._averages.items():
            (weights if name in self._exchanged else averages)[name] = average
        checkpoint[_WEIGHTS], checkpoint["state_dict"] = weights, averages
        checkpoint[_STATE] = {"updates": self._updates, "step": self._step}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take average and weights back (Lightning's hook); Lightning has loaded the average as if it were weights."""
        if _WEIGHTS not in checkpoint:
            return
        reshard(pl_module)
        self._averages = {name: checkpoint["state_dict"][name] for name in self._trained}
        self._updates, self._step = int(checkpoint[_STATE]["updates"]), int(checkpoint[_STATE]["step"])
        pl_module.load_state_dict(checkpoint[_WEIGHTS])

    def _pairs(self, module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each trained parameter what this process holds of the average and of what the module has."""
        reshard(module)
        if not self._parameters:
            parameters = dict(module.named_parameters())
            # Kept, since a sharded module that an error has left in the middle of a step shows others.
            self._parameters = {name: parameters[name] for name in self._trained}
        pairs = {}
        # What is made in inference mode, in which one process validates, could not be changed afterwards.
        with torch.inference_mode(False), torch.no_grad():
            for name, held in self._parameters.items():
                parameter = held.detach()
                if name not in self._averages:
                    self._averages[name] = parameter.clone()
                elif self._averages[name].device != parameter.device:  # a checkpoint is loaded before the module moves
                    self._averages[name] = self._averages[name].to(parameter.device)
                pairs[name] = (local_part(self._averages[name]), local_part(parameter))
        return pairs

    @torch.no_grad()
    def _exchange(self, module: nn.Module, into: bool) -> None:
        """Exchange weights and average, as far as they are not yet where they belong."""
        if self._finished or not self._trained or not (into or self._exchanged):
            return
        for name, (average, weight) in self._pairs(module).items():
            if (name in self._exchanged) != into:
                kept = average.clone()
                average.copy_(weight)
                weight.copy_(kept)
                self._exchanged ^= {name}

    @torch.no_grad()
    def _average(self, averages: Sequence[Tensor], weights: Sequence[Tensor], updates: int) -> None:
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, 1 - decay)
