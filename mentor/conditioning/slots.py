"""What conditioners over pretrained encoders have in common: features through an MLP, and a nothing that is as long."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mentor.conditioning.conditioner import Conditioner
from mentor.conditioning.prefix import Dropped, Prefix, Span
from mentor.types import Prompt


class SlotConditioner(Conditioner):
    """An encoder's features through a two-layer MLP without biases (LlamaGen, arXiv 2406.06525).

    What stands for nothing is a learned feature for each slot, through the same MLP. As in LlamaGen, a prompt of n
    tokens has the last n of the slots, and the nothing that it is compared with has the same ones.

    Args:
        slots: tokens that a prompt may take.
        features: numbers in a feature.
        width: of the prefix's tokens.
    """

    reads_codes: ClassVar[bool] = False
    null_as_long: ClassVar[bool] = True

    def __init__(self, slots: int, features: int, width: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(features, width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)
        self.nothing = nn.Parameter(torch.randn(slots, features) * features**-0.5)

    def null_prefix(self, tokens: int) -> Prefix:
        """The prefix that stands for nothing beside one of so many tokens."""
        return self.arrange([self.nothing[-tokens:]], [[Span("null", "", 0, tokens)]])

    def null_tokens(self, prompt: Prompt) -> int:
        """How many slots an empty prompt has: those of the prompt that it replaces, if it does, and else all."""
        return self.count(prompt.instead_of) if isinstance(prompt, Dropped) else len(self.nothing)

    def arrange(self, rows: Sequence[Float[Tensor, "l c"]], spans: Sequence[Sequence[Span]]) -> Prefix:
        """The prefix of prompts with these features, each as long as it is."""
        device, most = self.nothing.device, max(len(row) for row in rows)
        features = torch.stack([F.pad(row.to(device), (0, 0, most - len(row), 0)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(most, device=device) >= most - lengths.unsqueeze(1)
        hidden = F.gelu(self.project_in(features), approximate="tanh")
        cells = torch.full((*mask.shape, 2), -1, device=device)
        return Prefix(self.project_out(hidden) * mask.unsqueeze(-1), mask, cells, spans)
