"""What happens around training steps: seeds, rows of the logs, progress and sample grids."""

import random
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from mentor.data.seeds import seed_from
from mentor.training.grids import Row, draw_grid, grid_tensor
from mentor.training.guards import Guard
from mentor.training.logs import MetricsTable
from mentor.training.sharding import whole
from mentor.types import Batch


class Illustrating(Protocol):
    """A training module that can show what it does with a batch: a caption and equally many pictures an example."""

    def illustrate(self, batch: Batch) -> list[Row]:
        """A row for each example."""
        ...


class StepSeeds(Callback):
    """Seeds all global generators anew before each batch, so that a resumed run draws what the uninterrupted one would.

    Processes draw differently, as their rows of a batch differ. What must not depend on their number is drawn from
    generators of its own.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed by the run's seed, the number of updates done, the part of an accumulation and the process (hook)."""
        part = batch_idx % trainer.accumulate_grad_batches
        seed = seed_from("step", self._seed, trainer.global_step, part, trainer.global_rank)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  (the global one is the one to be fixed)


class Rows(Callback):
    """Makes the module write its row of the logs before a checkpoint is written, which so holds what comes after it.

    Args:
        guard: knows the norm of the gradient.
        every: updates between two rows.
    """

    def __init__(self, guard: Guard, every: int) -> None:
        self._guard, self._every = guard, every
        self._step = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin after the step that the run goes on from (Lightning's hook)."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write the row when an update has made it due (Lightning's hook)."""
        step = trainer.global_step
        if step == self._step or step % self._every:
            return
        self._step = step
        pl_module.write_row(outputs)  # type: ignore[operator]
        more = {"train/grad_norm": self._guard.norm, "train/lr": trainer.optimizers[0].param_groups[0]["lr"]}
        for logger in trainer.loggers:
            logger.log_metrics(more, step=step)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the latest numbers, which the model card names (Lightning's hook)."""
        checkpoint["metrics"] = dict(pl_module.metrics)  # type: ignore[arg-type]

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take them back (Lightning's hook)."""
        pl_module.metrics.update(checkpoint["metrics"])  # type: ignore[union-attr]


class DueValidation(Callback):
    """Makes up for a validation that was due where the run goes on, if the logs do not have its numbers.

    Lightning takes it for done. A stop before or within it is the usual reason.

    Args:
        every: updates between validations; 0 for never.
        table: the run's numbers so far.
    """

    def __init__(self, every: int, table: MetricsTable) -> None:
        self._every, self._table = every, table

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate (Lightning's hook)."""
        step = trainer.global_step
        if not self._every or not step or step % self._every or step >= trainer.max_steps:
            return
        validated = trainer.strategy.broadcast(self._table.has(step, "val/"))
        if validated:
            return
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True


class Progress(Callback):
    """Says how far training is and how long it will take: a bar on a terminal, else a line every tenth.

    Args:
        title: what is being trained.
        batch_size: examples of an update over all processes, for the speed.
        file: where to write; standard error if left out.
    """

    def __init__(self, title: str, batch_size: int, file: TextIO | None = None) -> None:
        self._title = title
        self._batch_size = batch_size
        self._file = file or sys.stderr
        self._bar: Bar | None = None
        self._first_step = 0
        self._step = 0
        self._started = 0.0
        self._loss: Tensor | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin at the step that the run begins or goes on with (Lightning's hook)."""
        self._first_step = self._step = trainer.global_step
        self._started = time.monotonic()
        if trainer.is_global_zero and self._file.isatty():
            title, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
            columns = (title, BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(file=self._file), refresh_per_second=2)
            self._bar.add_task(self._title, total=trainer.max_steps, completed=self._step, note="")
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move on with every update (Lightning's hook)."""
        step = trainer.global_step
        if step == self._step or not trainer.is_global_zero:
            return
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            loss = loss.detach().float() * trainer.accumulate_grad_batches
            # A mean over all steps at first, and over some fifty later.
            share = max(0.02, 1 / (step - self._first_step))
            self._loss = loss if self._loss is None else self._loss.lerp(loss, share)
        if self._bar is not None:
            note = f"loss {self._shown_loss()}, {self._speed(step):.0f} samples/s, left"
            self._bar.update(self._bar.task_ids[0], completed=step, note=note)
        elif step * 10 // trainer.max_steps > self._step * 10 // trainer.max_steps:
            self._print_line(step, trainer.max_steps)
        self._step = step

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the bar (Lightning's hook)."""
        self._close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar (Lightning's hook)."""
        self._close()

    def _print_line(self, step: int, steps: int) -> None:
        left = (time.monotonic() - self._started) / (step - self._first_step) * (steps - step)
        print(
            f"{self._title}: step {step}/{steps} ({100 * step // steps} %), loss {self._shown_loss()}, "
            f"{self._speed(step):.0f} samples/s, {clock(left)} left",
            file=self._file,
            flush=True,
        )

    def _shown_loss(self) -> str:
        return "?" if self._loss is None else f"{float(self._loss):.3f}"

    def _speed(self, step: int) -> float:
        return (step - self._first_step) * self._batch_size / max(1e-9, time.monotonic() - self._started)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Samples(Callback):
    """Draws the same few validation examples of each task at every validation, with the weights it validates.

    Must stand before the averaging callback, which takes the averaged weights out again when validation ends.

    `step` is the number of the update that was validated last.

    Args:
        folder: gets one PNG a validation, named by the step.
        count: examples of each task.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.step = -1
        self._folder = folder
        self._count = count
        self._taken: dict[str, Batch] = {}

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first examples of each task (Lightning's hook)."""
        task = batch.tasks[0]
        if trainer.is_global_zero and self._count and task not in self._taken:
            self._taken[task] = batch.first(self._count)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw and save (Lightning's hook)."""
        self.step = trainer.global_step
        if not self._count:
            return
        with whole(pl_module):
            rows = self.rows(pl_module) if trainer.is_global_zero else []
        if not rows:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        draw_grid(rows).save(self._folder / f"{self.step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", grid_tensor(rows), trainer.global_step)

    def rows(self, module: Any) -> list[Row]:
        """Captions and pictures of all kept examples as `module`, an `Illustrating` one, sees them now."""
        return [row for batch in self._taken.values() for row in module.illustrate(batch)]


def clock(seconds: float) -> str:
    """A duration as 1:02:03 or 2:03."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
