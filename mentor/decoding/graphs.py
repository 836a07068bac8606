"""CUDA graphs: the whole step of a token, captured once and then replayed without a word from Python."""

from collections.abc import Callable, Hashable

import torch
from jaxtyping import Int
from torch import Tensor

# Columns of the cache that a graph reads beyond what is filled, at most.
REACH = 256


class GraphRunner:
    """Runs steps that differ in a position alone.

    Without it a step of a small model takes the time in which Python launches some hundred kernels, not the GPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    @staticmethod
    def reach(position: int, tokens: int) -> int:
        """How many tokens the step at `position` reads: so many that few graphs do for a picture."""
        return min(-(-position // REACH) * REACH, tokens)

    def run(self, kind: Hashable, step: Callable[[Int[Tensor, "1"]], None], position: int) -> None:
        """Do `step` at `position`.

        Args:
            kind: what else the step depends on; each kind is captured once.
            step: reads the position from the tensor it is given, never asks the GPU for a number, and does the same
                when it is done twice.
            position: where.
        """
        self.position.fill_(position)
        if kind not in self.graphs:
            self.graphs[kind] = self._capture(step)
        self.graphs[kind].replay()

    def _capture(self, step: Callable[[Int[Tensor, "1"]], None]) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Libraries choose their kernels and take their memory before anything is recorded.
            for _ in range(2):
                step(self.position)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(self.position)
        return graph
