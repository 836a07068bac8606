"""One of a number of classes as the whole prompt, as LlamaGen's class-conditional models have it (arXiv 2406.06525)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from mentor.conditioning.conditioner import Conditioner, shown
from mentor.conditioning.prefix import Condition, Prefix, Span
from mentor.config import Config
from mentor.errors import UserError
from mentor.types import CodeSpec, Prompt, TextSegment


class ClassLabelConfig(Config):
    """Settings of the class-label conditioner.

    Attributes:
        classes: how many there are.
    """

    kind: Literal["class_label"] = "class_label"
    classes: int = Field(default=1000, gt=0)

    def longest(self, spec: CodeSpec) -> int:
        """Prefix tokens that a prompt may take."""
        return 1


class ClassLabelConditioner(Conditioner):
    """The class's own vector as a prefix of one token, which predicts the first image token.

    A prompt is the number of a class, in digits. The row behind the last class stands for nothing.
    """

    reads_images: ClassVar[bool] = False
    reads_codes: ClassVar[bool] = False

    def __init__(self, config: ClassLabelConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.classes = nn.Embedding(config.classes + 1, width)
        nn.init.normal_(self.classes.weight, std=0.02)

    def forward(self, condition: Condition) -> Prefix:
        """The prefix of a batch of prompts.

        Raises:
            UserError: a prompt is not the number of a class.
        """
        device = self.classes.weight.device
        rows = torch.tensor([self._row(prompt) for prompt in condition.prompts], device=device).unsqueeze(1)
        mask = torch.ones_like(rows, dtype=torch.bool)
        cells = torch.full((*rows.shape, 2), -1, device=device)
        spans = [[Span("text" if prompt else "null", "", 0, 1)] for prompt in condition.prompts]
        return Prefix(self.classes(rows), mask, cells, spans)

    def count(self, prompt: Prompt) -> int:
        """Tokens that the prompt's prefix has: one.

        Raises:
            UserError: the prompt is not the number of a class.
        """
        self._row(prompt)
        return 1

    def _row(self, prompt: Prompt) -> int:
        if not prompt:
            return self.config.classes
        text = prompt[0].text.strip() if len(prompt) == 1 and isinstance(prompt[0], TextSegment) else ""
        if not (text.isascii() and text.isdigit() and int(text) < self.config.classes):
            last = self.config.classes - 1
            raise UserError(f"the model draws classes, and {shown(prompt)} is none: give a number from 0 to {last}")
        return int(text)
