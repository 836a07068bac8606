"""Text encoders that others trained, in the format of the transformers library."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mentor.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PretrainedText:
    """A text encoder and its tokenizer; its weights are not trained.

    Attributes:
        model: gives a vector for each token as `last_hidden_state`.
        tokenizer: the one that it was trained with.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def width(self) -> int:
        """Numbers in a token's vector."""
        return self.model.config.hidden_size

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, those that the tokenizer adds for beginning and end included."""
        return list(self.tokenizer(text)["input_ids"])

    def encode(self, texts: Sequence[str]) -> list[Float[Tensor, "l c"]]:
        """The vectors of each text's tokens.

        Texts of one length are read together: none is padded, so a text's vectors do not depend on the others.
        """
        rows = [self.tokens(text) for text in texts]
        encoded: dict[int, Tensor] = {}
        with torch.no_grad():
            for length in sorted({len(row) for row in rows}):
                places = [place for place, row in enumerate(rows) if len(row) == length]
                ids = torch.tensor([rows[place] for place in places], device=self.model.device)
                hidden = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
                encoded |= dict(zip(places, hidden.float(), strict=True))
        return [encoded[place] for place in range(len(rows))]

    def save(self, folder: Path) -> None:
        """Write encoder and tokenizer into a folder as transformers does: safetensors and JSON."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_pretrained_text(place: str | Path) -> PretrainedText:
    """The text encoder in a folder, or of a name on the hub; of models that read more than text, their text encoder.

    Raises:
        UserError: there is none, or it is not one of text.
    """
    # Seconds that only those who need it should wait for.
    from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer, CLIPTextModel, SiglipTextModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    parts = {"clip": CLIPTextModel, "siglip": SiglipTextModel}
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        kind = parts.get(config.model_type, AutoModelForTextEncoding)
        # Pickled weights are not read: they could hold code.
        model = kind.from_pretrained(place, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # the library raises OSError, ValueError, KeyError and others for what is not there
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"no text encoder of transformers can be loaded from {place} ({reason}): give a folder that has its "
            "config.json, safetensors and tokenizer, or the name of one on the hub"
        ) from error
    return PretrainedText(model.eval().requires_grad_(False), tokenizer)
