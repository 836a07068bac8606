"""What every data module has: how far training has come, and what that number belongs to."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch

from mentor.data.collate import to_device
from mentor.data.settings import DataConfig
from mentor.errors import UserError
from mentor.types import Batch


class ResumableData(lightning.LightningDataModule, ABC):
    """Data whose state is the place in the order of global batches that training has come to.

    It lives here and not in the loader: Lightning gives every rank the loader state of rank 0, and restores a loader
    too late for schedulers that ask for the number of steps.

    Attributes:
        consumed: how far in the order of global batches training has come.
        left_out: numbers of global batches that are not handed out, because training did not bear them.
        skipped: samples that were left out, by reason.
        max_bad: share of samples that may be left out.
        report: takes a line for people whenever something was left out.

    Args:
        config: the settings.
        seed: of the run.
        max_bad: see above.
        report: see above.
    """

    def __init__(self, config: DataConfig, seed: int, max_bad: float, report: Callable[[str], None]) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.consumed = 0
        self.left_out: set[int] = set()
        self._to_leave_out: set[int] = set()
        self.skipped: Counter[str] = Counter()
        self.max_bad = max_bad
        self.report = report

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The batch on the device (Lightning's hook)."""
        return to_device(batch, device)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: how far training has come, and what that number belongs to."""
        state = {"consumed": self.consumed, "left_out": sorted(self.left_out), "skipped": dict(self.skipped)}
        return state | self.identity()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches that the state says were consumed.

        Raises:
            UserError: the state belongs to other data or other settings.
        """
        for name, here in self.identity().items():
            there = state_dict.get(name)
            if there != here:
                raise UserError(
                    f"cannot resume: the checkpoint was made with {name} {there!r}, this run has {here!r}: restore the "
                    "old one, say resume=false to start over, or begin another run.dir with init_from=RELEASE"
                )
        self.consumed = state_dict["consumed"]
        self.left_out = set(state_dict["left_out"]) | self._to_leave_out
        self.skipped = Counter(state_dict["skipped"])

    def leave_out(self, numbers: Iterable[int]) -> None:
        """Do not hand out the global batches of these numbers, from the next start of a loader on."""
        self._to_leave_out.update(numbers)
        self.left_out |= self._to_leave_out

    def from_the_beginning(self) -> None:
        """Forget how far training has come, for a start without a checkpoint."""
        self.consumed = 0
        self.skipped.clear()

    @abstractmethod
    def epochs(self, number: int) -> tuple[str, float]:
        """The task of a global batch, and how often training has seen the task's samples after it, on average."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the order of samples follows from: a run with another one cannot go on."""

    def rank_and_world(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
