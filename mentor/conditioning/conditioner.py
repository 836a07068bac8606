"""The contract that every conditioner keeps; tests/unit/conditioning/test_conditioning_contract.py holds each to it."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from mentor.conditioning.prefix import Condition, Prefix
from mentor.types import Prompt, prompt_text


class Conditioner(nn.Module, ABC):
    """Turns prompts into a prefix.

    Attributes:
        reads_images: whether prompts may have images.
        reads_codes: whether it looks at the codes of reference images; else they need not be made.
        null_as_long: whether what stands for nothing is as long as the prompt that it stands beside.
        apart: beginnings of the names of tensors that are kept with its material, and not with its weights.
    """

    reads_images: ClassVar[bool]
    reads_codes: ClassVar[bool]
    null_as_long: ClassVar[bool] = False
    apart: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, condition: Condition) -> Prefix:
        """The prefix of a batch of prompts.

        Raises:
            UserError: a prompt is none that this conditioner can read.
        """

    def null_prefix(self, tokens: int) -> Prefix:
        """The prefix that stands for nothing beside a prompt of so many prefix tokens."""
        return self(Condition([()], None))

    @abstractmethod
    def count(self, prompt: Prompt) -> int:
        """Tokens that the prompt's prefix has.

        Raises:
            UserError: they are more than there is room for, or the prompt is none that this conditioner can read.
        """


def shown(prompt: Prompt) -> str:
    """The beginning of a prompt, for messages."""
    return repr(prompt_text(prompt)[:80])
