"""A few real training steps that leave nothing behind, to see how long one takes here."""

import statistics
import time
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from mentor.data.streammodule import TrainingData
from mentor.training.averaging import Averaging
from mentor.training.build import build_module
from mentor.training.config import TrainBase, TrainConfig
from mentor.training.trainer import wrong_machine

STEPS = 3


def measure_step(config: TrainConfig, datamodule: TrainingData) -> float:
    """Seconds of an update in this process: forward, backward and optimizer, without making batches; a median.

    The model is built for real and trained on the first batches. No file is written.
    """
    stopwatch = Stopwatch()
    average = [] if config.ema is None else [Averaging(config.ema.decay)]
    trainer = bare_trainer(config, 1, [stopwatch, *average])
    datamodule.consumed = 0
    trainer.fit(build_module(config, datamodule), datamodule=datamodule)
    return statistics.median(stopwatch.seconds)


def bare_trainer(config: TrainBase, devices: int, callbacks: list[Callback]) -> lightning.Trainer:
    """A trainer with the run's settings that logs, validates and saves nothing.

    Raises:
        UserError: the machine has not what the settings ask for.
    """
    own = config.trainer
    try:
        return lightning.Trainer(
            accelerator=own.accelerator,
            devices=devices,
            precision=own.precision,
            max_steps=STEPS,
            max_epochs=-1,
            accumulate_grad_batches=own.accumulate,
            gradient_clip_val=config.optimizer.clip or None,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            deterministic=own.deterministic,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        raise wrong_machine(own, devices, error) from error


class Stopwatch(Callback):
    """Takes the time of every update, from its first batch, which is there, to its end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._spent = 0.0
        self._began = 0.0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin (Lightning's hook)."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add up the batches of an update (Lightning's hook)."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._spent += time.perf_counter() - self._began
        if trainer.global_step > len(self.seconds):
            self.seconds.append(self._spent)
            self._spent = 0.0
