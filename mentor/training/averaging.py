"""The running average of the weights."""

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class Averaging(WeightAveraging):
    """Lightning's weight averaging with an exponential average that starts short.

    After n updates the average keeps the share min(decay, (1 + n) / (10 + n)), so that the first weights are forgotten
    in a few steps and validation makes sense from the start. Buffers are copied, not averaged: some count things.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(use_buffers=False, multi_avg_fn=self._average)

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
