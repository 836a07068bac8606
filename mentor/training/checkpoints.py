"""Checkpoints of a run: written whole or not at all, read without running code, left behind when a run is stopped."""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from mentor.errors import UserError

LAST = "last.ckpt"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's plugin for files: a checkpoint appears under its name only when all of it is on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            raise UserError(
                f"cannot write the checkpoint {path} ({error}): make room or choose another run.dir"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path` on the CPU. Only tensors and plain containers are read, whatever is asked for.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch raises several kinds for a damaged file
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the checkpoint {path} cannot be read ({reason[:120]}): say resume=false to start over"
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the file at `path` if there is one."""
        Path(path).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make sure that renamed files of `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Stopped(SystemExit):
    """A signal asked the run to stop, and it did, with a checkpoint. The exit code is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` fresh, and on SIGTERM or Ctrl-C finishes the step, saves and stops.

    Processes agree after each step, so that a signal that reached one of them stops all at the same step. A second
    Ctrl-C stops at once, without a checkpoint.

    Args:
        folder: where last.ckpt goes.
        every: updates between checkpoints; 0 for none but the timed ones.
        minutes: time between checkpoints at most.
    """

    def __init__(self, folder: Path, every: int, minutes: float) -> None:
        self.path = folder / LAST
        self._every = every
        self._seconds = 60 * minutes
        self._saved_at = 0.0
        self._step = 0
        self._signal = 0
        self._stop = 0

    @property
    def requested(self) -> int:
        """Number of the signal that asked to stop; 0 if none did."""
        return self._signal

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take over the signals from Lightning, which would save nothing or end with success (Lightning's hook).

        Lightning gives back all signals as they were before it when the run ends, however it ends.
        """
        self._saved_at = time.monotonic()
        self._step = trainer.global_step
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when it is time or a signal came (Lightning's hook)."""
        step = trainer.global_step
        if step == self._step:  # in the middle of an accumulation, which a checkpoint would cut in two
            return
        self._step = step
        self._stop, late = self._agreed(trainer)
        due = bool(self._every) and step % self._every == 0
        if due or late or self._stop or step >= trainer.max_steps:
            trainer.save_checkpoint(self.path)
            self._saved_at = time.monotonic()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop if it was agreed on and saved (Lightning's hook)."""
        if self._stop:
            raise Stopped(self._stop)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if it was agreed on and saved; not sooner, so that the step's numbers are logged (Lightning's hook)."""
        if self._stop:
            raise Stopped(self._stop)

    def _agreed(self, trainer: lightning.Trainer) -> tuple[int, bool]:
        """The signal that any process got, and whether it is time in any."""
        late = time.monotonic() - self._saved_at > self._seconds
        if trainer.world_size == 1:
            return self._signal, late
        state = torch.tensor([self._signal, int(late)], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(state, torch.distributed.ReduceOp.MAX)
        stop, any_late = state.tolist()
        return stop, bool(any_late)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
