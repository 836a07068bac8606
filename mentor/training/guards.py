"""Watches every update before it is made: is the loss a number, is the gradient, is the loss as it usually is?

The guard also clips gradients, since it knows their norm already: watching costs next to nothing. All processes come to
the same judgement, because each of them sees the mean of the losses and the norm of the reduced gradient.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed

from mentor.errors import UserError
from mentor.training.config import GuardConfig
from mentor.training.joint import JointOptimizer
from mentor.training.norms import clip_gradients, total_norm
from mentor.training.spikes import UsualLoss
from mentor.types import Batch

# So many events are kept in checkpoints and in the summary.
KEPT = 200
# So many samples are named in a line for people.
NAMED = 4


class RollBack(Exception):
    """Training is to go on from the last checkpoint, without the global batches of these numbers."""

    def __init__(self, positions: Sequence[int], event: dict[str, Any]) -> None:
        super().__init__(f"batches {list(positions)}")
        self.positions = tuple(positions)
        self.event = event


class Guard(Callback):
    """Judges each update, and acts as the settings say.

    Attributes:
        counts: what was done how often, over all starts of the run.
        events: the last of what was noticed, each a plain dictionary.
        norm: norm of the last update's gradient, before clipping, of the model that is trained.

    Args:
        config: the settings.
        clip: largest norm of a gradient; 0 leaves it as it is.
        say: takes a line for people.
    """

    def __init__(self, config: GuardConfig, clip: float, say: Callable[[str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self.events: list[dict[str, Any]] = []
        self.norm = math.nan
        self._config, self._clip, self._say = config, clip, say
        self._usual = UsualLoss(config.spike_sigmas, config.spike_window)
        self._in_a_row = 0
        self._last_bad = -1
        self._loss: Tensor | None = None
        self._keys: list[str] = []
        self._tasks: set[str] = set()
        self._positions: list[int] = []
        self._before: list[tuple[Tensor, Tensor]] = []
        self._epochs: dict[str, int] = {}
        self._carried: dict[str, Any] | None = None

    def carry(self, guard: "Guard", event: dict[str, Any]) -> None:
        """Take over what a guard knew whose training was rolled back; the checkpoint's state would be older."""
        self._carried = guard.state_dict()
        self._carried["usual"] = None
        self._carried["events"] = [*guard.events, event][-KEPT:]
        self._carried["counts"]["rolled_back"] = guard.counts["rolled_back"] + 1

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take up what was carried over (Lightning's hook)."""
        if self._carried is not None:
            self.load_state_dict(self._carried)
            self._carried = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note which samples the update comes from (Lightning's hook)."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._loss = None
            self._keys, self._tasks, self._positions = [], set(), []
            if self._config.nonfinite == "skip" or self._config.spike == "skip":
                changing = pl_module.changed_by_forward()  # type: ignore[operator]
                self._before = [(tensor, tensor.detach().clone()) for tensor in changing]
        self._keys.extend(batch.keys)
        self._tasks.update(batch.tasks)
        self._positions.append(trainer.datamodule.consumed - 1)  # type: ignore[attr-defined]

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Add up the loss of the update's batches (Lightning's hook)."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss = loss.detach().float() / (scaler.get_scale() if scaler is not None else 1.0)
        self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Judge, act, and clip (Lightning's hook).

        Raises:
            UserError: the run is to stop.
            RollBack: it is to go back.
        """
        assert isinstance(optimizer, JointOptimizer)
        teams = [[one for one in team if one.grad is not None] for team in optimizer.groups_to_clip]
        norms = [total_norm([one.grad for one in team]) for team in teams if team]  # type: ignore[misc]
        assert self._loss is not None
        loss, *values = torch.stack([self._loss, *(norm.to(self._loss) for norm in norms)]).tolist()
        loss = _mean_over_processes(loss)
        self.norm = values[0] if values else math.nan
        step = trainer.global_step
        self._look_ahead(trainer, optimizer, step)
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        task = "+".join(sorted(self._tasks))
        if not math.isfinite(loss) or not (scaled or all(map(math.isfinite, values))):
            what = "loss" if not math.isfinite(loss) else "gradient"
            number = loss if what == "loss" else next(one for one in values if not math.isfinite(one))
            self._act(self._config.nonfinite, optimizer, step, task, f"the {what} is {number}", "nonfinite")
            return
        limit = self._usual.limit(task)
        if loss > limit:
            told = f"the loss is {loss:.4g}, far above its usual range up to {limit:.4g}"
            self._act(self._config.spike, optimizer, step, task, told, "spike")
            if self._config.spike != "report":
                return
        else:
            self._usual.add(task, loss)
        if self._positions[0] > self._last_bad:
            self._in_a_row = 0
        if self._clip:
            for team, norm in zip((team for team in teams if team), norms, strict=True):
                clip_gradients(team, self._clip, norm)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps (Lightning's hook)."""
        return {
            "counts": dict(self.counts),
            "events": [dict(event) for event in self.events],
            "usual": self._usual.state_dict(),
            "in_a_row": self._in_a_row,
            "last_bad": self._last_bad,
            "epochs": dict(self._epochs),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave (Lightning's hook)."""
        self.counts = Counter(state_dict["counts"])
        self.events = list(state_dict["events"])
        self._in_a_row, self._last_bad = state_dict["in_a_row"], state_dict["last_bad"]
        self._epochs = dict(state_dict["epochs"])
        if state_dict["usual"] is not None:
            self._usual.load_state_dict(state_dict["usual"])

    def note(self, event: dict[str, Any], line: str) -> None:
        """Keep an event, and tell it."""
        self.events = [*self.events, event][-KEPT:]
        self._say(line)

    def _act(self, policy: str, optimizer: JointOptimizer, step: int, task: str, told: str, kind: str) -> None:
        """Do what the policy says about an update that should not be made as it is."""
        self.counts[kind] += 1
        keys = _all_keys(self._keys)
        names = ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
        where = f"{told} at update {step} (task {task}; samples {names})"
        event = {"step": step, "kind": kind, "what": told, "policy": policy, "task": task, "samples": keys}
        if policy == "report":
            self.note(event, f"guard: {where}")
            return
        self._in_a_row += 1
        self._last_bad = max(self._last_bad, *self._positions)
        if policy == "stop" or self._in_a_row > self._config.in_a_row:
            again = "" if policy == "stop" else f", {self._config.in_a_row} times in a row (guard.in_a_row)"
            raise UserError(
                f"{where}{again}: no update was made; lower optimizer.lr, raise optimizer.warmup, look at those "
                f"samples, or say guard.{kind}=skip or rollback; the same command goes on from the last checkpoint"
            )
        if policy == "rollback":
            raise RollBack(self._positions, event)
        self.counts["skipped"] += 1
        self.note(event, f"guard: {where}: no update was made ({self.counts['skipped']} skipped so far)")
        optimizer.skip = True
        for tensor, before in self._before:
            tensor.data.copy_(before)

    def _look_ahead(self, trainer: lightning.Trainer, optimizer: JointOptimizer, step: int) -> None:
        """Notice a learning rate that is used up, and data that begin anew."""
        if step + 1 < trainer.max_steps and not any(group["lr"] for group in optimizer.param_groups):
            told = f"the learning rate is 0 at update {step} of {trainer.max_steps}: nothing more is learned"
            if self._config.exhausted == "stop":
                raise UserError(f"{told}; raise optimizer.min_ratio or lower trainer.max_steps")
            if not self.counts["exhausted"]:
                self.note({"step": step, "kind": "exhausted", "what": told, "policy": "report"}, f"guard: {told}")
            self.counts["exhausted"] += 1
        for position in self._positions:
            task, epochs = trainer.datamodule.epochs(position)  # type: ignore[attr-defined]
            limit = self._config.max_epochs
            if limit is not None and epochs > limit:
                raise UserError(
                    f"training has seen the samples of the task {task!r} {limit:g} times at update {step}, as often as "
                    "guard.max_epochs allows: raise it, lower trainer.max_steps, or add data"
                )
            # The end of the first epoch is worth a line, the others are in the log.
            if math.ceil(epochs) > max(1, self._epochs.get(task, 1)):
                self._epochs[task] = math.ceil(epochs)
                told = f"training has seen every sample of the task {task!r} {self._epochs[task] - 1} time(s)"
                event = {"step": step, "kind": "epoch", "what": told, "policy": "report", "task": task}
                if self._epochs[task] == 2:
                    self.note(event, f"{told} at update {step}; they begin anew, in another order")
                else:
                    self.events = [*self.events, event][-KEPT:]


def _mean_over_processes(value: float) -> float:
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    together = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(together)
    return float(together) / distributed.get_world_size()


def _all_keys(keys: Sequence[str]) -> list[str]:
    """The samples of all processes, each rank's row by row as in the global batch."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(keys)
    shares: list[list[str]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(shares, list(keys))
    return [key for row in zip(*shares, strict=True) for key in row]
