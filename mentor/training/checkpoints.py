"""When a run writes checkpoints, what belongs in them besides weights, and how it stops."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import distributed

from mentor.errors import UserError
from mentor.training import checkpoint_files
from mentor.training.checkpoint_files import checkpoint_name, listed
from mentor.training.gradients import gradients_so_far
from mentor.training.sharded_files import put_back
from mentor.training.signals import Phase, Stopped, StopSignals

_GRADIENTS = "gradients"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's plugin for files: a checkpoint appears under its name only when all of it is on the disk.

    Args:
        settings: of the run, which go into the checkpoint.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` as the folder `path`.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        try:
            checkpoint_files.write_checkpoint(Path(path), checkpoint, self._settings)
        except (OSError, RuntimeError) as error:
            raise UserError(cannot_write(Path(path), error)) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint in the folder `path`. Only tensors and plain containers are read, whatever is asked for.

        Raises:
            UserError: it is missing or damaged.
        """
        # One that sharded training wrote is put together again.
        return put_back(checkpoint_files.read_state(Path(path), map_location or "cpu"), Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the folder `path` if there is one."""
        checkpoint_files.remove(Path(path))


def cannot_write(path: Path, error: BaseException) -> str:
    """What to say when a checkpoint could not be written: where, why, how much room it wants."""
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    known = checkpoint_size(path.parent)
    wants = f"; the last one took {in_megabytes(known)}" if known else ""
    return f"cannot write the checkpoint {path} ({reason}{wants}): make room, or choose another run.dir"


def checkpoint_size(folder: Path) -> int:
    """Bytes that the newest checkpoint in `folder` takes; 0 when there is none."""
    for _, path in listed(folder):
        return sum(file.stat().st_size for file in path.iterdir())
    return 0


def in_megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 10**9 else f"{size / 1e6:,.1f} MB"


class Checkpoints(Checkpoint):
    """Writes checkpoints in time; and when a signal comes, finishes the batch, saves and stops.

    Processes agree after each batch, so that a signal that reached one of them stops all at the same place. In the
    middle of an accumulation the checkpoint holds the gradient so far. A validation is always preceded by a
    checkpoint, so that a signal in it can end the run at once.

    Args:
        folder: where the checkpoints go.
        every: updates between checkpoints; 0 for none but the timed ones.
        minutes: time between checkpoints at most.
        keep: how many of the newest are kept.
        keep_every: those of a multiple of so many updates are kept for ever; 0 for none.
        skip_when_full: go on without a checkpoint for which there is no room.
        signals: what may have come.
        say: takes a line for people.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        minutes: float,
        keep: int,
        keep_every: int,
        skip_when_full: bool,
        signals: StopSignals,
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.skipped = 0
        self._every, self._seconds = every, 60 * minutes
        self._keep, self._keep_every, self._skip_when_full = keep, keep_every, skip_when_full
        self._signals, self._say = signals, say
        self._saved_at = 0.0
        self._step, self._saved = -1, 0
        self._stop = 0
        self._gradients: dict[str, torch.Tensor] = {}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the gradient of an accumulation in progress for the start (Lightning's hook)."""
        self._gradients = checkpoint.get(_GRADIENTS, {})
        self._saved = int(checkpoint["global_step"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on with an accumulation in progress; from now on, signals let a batch be finished (Lightning's hook)."""
        for name, parameter in pl_module.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter)
        self._gradients = {}
        self._saved_at = time.monotonic()
        self._step = trainer.global_step
        self._signals.enter(Phase.TRAINING)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when it is time or a signal came (Lightning's hook)."""
        stop, late = self._agreed(trainer)
        step = trainer.global_step
        updated, self._step = step != self._step, step
        if stop:
            self._stop = stop
            self._save(trainer)
        elif updated and ((self._every and step % self._every == 0) or late or step >= trainer.max_steps):
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the gradient of an accumulation in progress, as the mean over all processes (Lightning's hook)."""
        if not trainer.fit_loop._should_accumulate():
            return
        checkpoint[_GRADIENTS] = gradients_so_far(pl_module, trainer.world_size)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Make sure that everything is saved, and let signals end the run at once (Lightning's hook)."""
        if self._stop:
            raise Stopped(self._stop)
        if trainer.state.fn == "fit":
            if self._saved != trainer.global_step:
                self._save(trainer)
            if self._saved == trainer.global_step:
                self._signals.enter(Phase.EXPENDABLE)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Finish steps again when a signal comes (Lightning's hook)."""
        if trainer.state.fn == "fit":
            self._signals.enter(Phase.TRAINING)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if it was agreed on and saved (Lightning's hook)."""
        if self._stop:
            raise Stopped(self._stop)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Let signals end the run at once, since the last step has been saved (Lightning's hook)."""
        self._signals.enter(Phase.EXPENDABLE)

    def _save(self, trainer: lightning.Trainer) -> None:
        step = trainer.global_step
        target = self.folder / checkpoint_name(step)
        if self._no_room(trainer, target):
            return
        trainer.save_checkpoint(target)
        if trainer.is_global_zero:
            checkpoint_files.prune(self.folder, self._keep, self._keep_every)
        self._saved_at = time.monotonic()
        self._saved = step

    def _no_room(self, trainer: lightning.Trainer, target: Path) -> bool:
        """Whether this checkpoint has to be left out, by the first process's judgement."""
        told = ""
        if trainer.is_global_zero:
            needed = checkpoint_size(self.folder)
            free = shutil.disk_usage(self.folder if self.folder.is_dir() else trainer.default_root_dir).free
            if needed and free < 1.05 * needed:
                told = (
                    f"no room for the checkpoint {target}: it needs {in_megabytes(needed)}, and {in_megabytes(free)} "
                    "are free"
                )
        told = trainer.strategy.broadcast(told)
        if not told:
            return False
        if not self._skip_when_full:
            raise UserError(f"{told}: make room; the same command goes on from the last checkpoint")
        self.skipped += 1
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            self._say(f"{told}: going on without it, and trying again next time (guard.full_disk=skip)")
        return True

    def _agreed(self, trainer: lightning.Trainer) -> tuple[int, bool]:
        """The signal that any process got, and whether it is time in any."""
        late = time.monotonic() - self._saved_at > self._seconds
        if trainer.world_size == 1:
            return self._signals.requested, late
        state = torch.tensor([self._signals.requested, int(late)])
        distributed.all_reduce(state, distributed.ReduceOp.MAX)
        stop, any_late = state.tolist()
        return stop, bool(any_late)
