"""Words as a pretrained text encoder reads them, for a model that learns the rest from its own data."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mentor.conditioning.pretrained import PretrainedText

# Numbers in the vectors that are kept: 256 MiB of them.
MOST_KEPT = 1 << 26


class PretrainedWords(nn.Module):
    """The encoder's vectors of a text's own tokens, normalised and brought to the model's width.

    The encoder is frozen and computes in its own precision, so what it makes of a text is always the same, and is kept.
    What its tokenizer adds for beginning and end is read and then left out.

    Args:
        text: the encoder.
        width: of the tokens that come out.
        std: how loud they are in the beginning.
    """

    def __init__(self, text: PretrainedText, width: int, std: float) -> None:
        super().__init__()
        self.text = text
        self.encoder = text.model
        self.norm = nn.LayerNorm(text.width)
        self.project = nn.Linear(text.width, width)
        nn.init.normal_(self.project.weight, std=std * text.width**-0.5)
        nn.init.zeros_(self.project.bias)
        self.count: Callable[[str], int] = lru_cache(maxsize=100_000)(_Counter(text))
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._numbers = 0
        self.register_load_state_dict_post_hook(_forget)

    def train(self, mode: bool = True) -> "PretrainedWords":
        """Training or eval mode, except for the encoder, which stays as it is."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "l d"]:
        """The tokens of all texts, one text behind the other; each text is read on its own.

        Raises:
            UserError: a text has more tokens than the encoder has positions.
        """
        vectors = self._read(texts)
        empty = self.norm.weight.new_zeros(0, self.text.width)
        return self.project(self.norm(torch.cat([empty, *(vectors[text] for text in texts)])))

    def forget(self) -> None:
        """Let go of what is kept: the encoder is another one, or elsewhere."""
        self._kept.clear()
        self._numbers = 0

    def _apply(self, *arguments: Any, **settings: Any) -> "PretrainedWords":
        self.forget()
        return super()._apply(*arguments, **settings)

    def _read(self, texts: Sequence[str]) -> dict[str, Float[Tensor, "l c"]]:
        found = {text: self._kept[text] for text in texts if text in self._kept}
        for text in found:
            self._kept.move_to_end(text)
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if not new:
            return found
        device = self.encoder.device.type
        autocast = nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
        with autocast:
            read = dict(zip(new, self.text.encode_own(new), strict=True))
        # Plans have tensors without numbers.
        if all(type(vectors) is Tensor for vectors in read.values()) and device != "meta":
            self._keep(read)
        return found | read

    def _keep(self, read: dict[str, Tensor]) -> None:
        self._kept.update(read)
        self._numbers += sum(vectors.numel() for vectors in read.values())
        while self._numbers > MOST_KEPT:
            _, vectors = self._kept.popitem(last=False)
            self._numbers -= vectors.numel()


class _Counter:
    """Tokens that a text has of its own."""

    def __init__(self, text: PretrainedText) -> None:
        self._text = text

    def __call__(self, text: str) -> int:
        return sum(self._text.own(text))


def _forget(module: nn.Module, _: Any) -> None:
    assert isinstance(module, PretrainedWords)
    module.forget()
