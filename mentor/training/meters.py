"""Means over examples, kept apart by task and joined over processes."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class TaskMeans:
    """Running means of several quantities for each task.

    The tasks are fixed from the start, so that all processes join equally many numbers, whichever tasks each has met.
    """

    def __init__(self, tasks: Sequence[str], quantities: Sequence[str]) -> None:
        self._rows = {task: row for row, task in enumerate(tasks)}
        self._quantities = tuple(quantities)
        self._sums = torch.zeros(len(tasks), 1 + len(self._quantities), dtype=torch.float64)

    def add(self, tasks: Sequence[str], valid: Bool[Tensor, "b"], quantities: dict[str, Float[Tensor, "b"]]) -> None:
        """Count the valid examples' quantities under their tasks."""
        columns = [valid, *(quantities[name].detach() for name in self._quantities)]
        values = torch.stack([column.to(torch.float64) for column in columns], dim=1)
        values = torch.where(valid.unsqueeze(1), values, torch.zeros_like(values))
        self._sums = self._sums.to(values.device)
        rows = torch.tensor([self._rows[task] for task in tasks], device=values.device)
        self._sums.index_add_(0, rows, values)

    def joined(self) -> Float[Tensor, "_ _"]:
        """The sums so far over all processes; they go on as they are."""
        sums = self._sums.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return sums.cpu()

    def restore(self, sums: Float[Tensor, "_ _"]) -> None:
        """Go on from what `joined` gave; only the first process takes it, since it is already the sum over all."""
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._sums = torch.zeros_like(sums) if together and torch.distributed.get_rank() else sums.clone()

    def take(self) -> dict[str, float]:
        """`quantity` over all examples and `quantity/task` for each task that was met, in any process; starts anew."""
        sums = self._sums
        self._sums = torch.zeros_like(sums)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        total = sums.sum(dim=0)
        means: dict[str, float] = {}
        for column, name in enumerate(self._quantities, start=1):
            if total[0]:
                means[name] = float(total[column] / total[0])
            for task, row in self._rows.items():
                if sums[row, 0]:
                    means[f"{name}/{task}"] = float(sums[row, column] / sums[row, 0])
        return means
