"""The door through which adapters reach a generator: they act while it reads a prompt, and its own weights stay."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from torch import nn

from mentor.conditioning import Prefix
from mentor.models.backbone import Edit


class Adaptation(nn.Module, ABC):
    """What adapters do to the tokens of a prefix; image tokens, in training as in decoding, are left alone."""

    @abstractmethod
    def reading(self, prefix: Prefix, tokens: int) -> AbstractContextManager[Edit | None]:
        """Within, the backbone reads the prefix and so many image tokens behind it.

        Args:
            prefix: of all rows, as long as it is given to the backbone.
            tokens: image tokens behind it.

        Returns:
            A context that gives what changes hidden states between the blocks, or None.
        """
