"""The running average of the weights."""

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor


class Averaging(WeightAveraging):
    """Lightning's weight averaging with an exponential average that starts short.

    After n updates the average keeps the share min(decay, (1 + n) / (10 + n)), so that the first weights are forgotten
    in a few steps and validation makes sense from the start. Buffers are copied, not averaged: some count things.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(use_buffers=False, multi_avg_fn=self._average)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Average after every update; a module whose weights have jumped says so and is averaged anew from there."""
        if getattr(pl_module, "restart_averaging", False) and self._average_model is not None:
            self._average_model.n_averaged.zero_()
            pl_module.restart_averaging = False  # type: ignore[assignment]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def finish(self, module: lightning.LightningModule) -> None:
        """Put the averaged weights into `module`, as training's end does; for a run that had no step left to do."""
        if self._average_model is not None:
            self._copy_average_to_current(module)

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        count = int(updates)
        decay = min(self.decay, (1 + count) / (10 + count))
        for average, weight in zip(averaged, current, strict=True):
            average.lerp_(weight, 1 - decay)
