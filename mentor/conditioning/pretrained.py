"""Encoders of text and of images that others trained, in the format of the transformers library."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mentor.conditioning.shapes import Part, blank_tokenizer, known_shape
from mentor.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Where a release folder keeps them.
TEXT_FOLDER, VISION_FOLDER = "text_encoder", "vision_encoder"
_PREPROCESSING = "preprocessor_config.json"


@dataclass(frozen=True)
class PretrainedText:
    """A text encoder and its tokenizer.

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

    @cached_property
    def positions(self) -> int | None:
        """How many tokens it can read, beginning and end included; None where there is no limit."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding) and name.rpartition(".")[2].startswith("position_embedding"):
                # Those of RoBERTa's kind count from behind the row of the padding.
                return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        return None

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, those that the tokenizer adds for beginning and end included.

        Raises:
            UserError: they are more than the encoder has positions.
        """
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        self.check_length(len(ids), text)
        return ids

    def own(self, text: str) -> list[bool]:
        """For each of a text's tokens whether it is the text's own, and not one of beginning and end.

        Raises:
            UserError: they are more than the encoder has positions.
        """
        added = self.tokenizer(text, verbose=False, return_special_tokens_mask=True)["special_tokens_mask"]
        self.check_length(len(added), text)
        return [not one for one in added]

    def check_length(self, tokens: int, text: str) -> None:
        """Nothing, where the encoder can read a text of so many tokens.

        Raises:
            UserError: it has fewer positions.
        """
        if self.positions is not None and tokens > self.positions:
            raise UserError(
                f"the text takes {tokens} tokens and its encoder has room for {self.positions}: "
                f"shorten it: {text[:80]!r}"
            )

    def encode(self, texts: Sequence[str]) -> list[Float[Tensor, "l c"]]:
        """The vectors of each text's tokens.

        Texts of one length are read together: none is padded, so a text's vectors do not depend on the others.

        Raises:
            UserError: a text has more tokens than the encoder has positions.
        """
        rows = [self.tokens(text) for text in texts]
        encoded: dict[int, Tensor] = {}
        with torch.no_grad():
            for places in of_one_length(rows):
                ids = torch.tensor([rows[place] for place in places], device=self.model.device)
                hidden = self.model(input_ids=ids).last_hidden_state
                encoded |= dict(zip(places, hidden.float(), strict=True))
        return [encoded[place] for place in range(len(rows))]

    def encode_own(self, texts: Sequence[str]) -> list[Float[Tensor, "l c"]]:
        """As `encode`, without the vectors of beginning and end, which are read all the same."""
        kept = [[at for at, own in enumerate(self.own(text)) if own] for text in texts]
        return [vectors[at] for vectors, at in zip(self.encode(texts), kept, strict=True)]

    def save(self, folder: Path) -> None:
        """Write encoder and tokenizer into a folder as transformers does: safetensors and JSON."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class PretrainedVision:
    """An encoder of images that gives a vector for each patch.

    Attributes:
        model: takes normalised pixels and gives hidden states of all layers.
        mean: of each colour in [0, 1], which is taken away.
        std: of each colour, by which is divided.
    """

    model: "PreTrainedModel"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def width(self) -> int:
        """Numbers in a patch's vector."""
        return self.model.config.hidden_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.model.config.image_size // self.model.config.patch_size
        return side, side

    def prepare(self, images: Float[Tensor, "r 3 y x"]) -> Float[Tensor, "r 3 s s"]:
        """Pixels as the model was trained on, of square images in [-1, 1].

        As the processors of transformers prepare pictures, but for their rounding to whole numbers when they scale.
        """
        size, device = self.model.config.image_size, self.model.device
        small = F.interpolate(images.to(device), (size, size), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (self.mean, self.std))
        return ((small.clamp(-1, 1) + 1) / 2 - mean) / std

    def encode(self, images: Float[Tensor, "r 3 y x"], layer: int) -> Float[Tensor, "r n c"]:
        """The patches' vectors in raster order, without those that stand for no patch.

        Args:
            images: in [-1, 1], square, of any size.
            layer: of which layer; -1 is the last, -2 the one before, as LLaVA and MENTOR take it.
        """
        with torch.no_grad():
            pixels = self.prepare(images)
            hidden = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
        rows, columns = self.grid
        return hidden[:, hidden.shape[1] - rows * columns :].float()

    def save(self, folder: Path) -> None:
        """Write the encoder into a folder as transformers does, with how its pixels are prepared."""
        self.model.save_pretrained(folder)
        size = self.model.config.image_size
        facts: dict[str, Any] = {
            "image_mean": self.mean,
            "image_std": self.std,
            "size": {"height": size, "width": size},
        }
        (folder / _PREPROCESSING).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def of_one_length(rows: Sequence[Sequence[Any] | Tensor]) -> list[list[int]]:
    """The places of rows that are equally long, shortest first."""
    lengths = [len(row) for row in rows]
    return [[place for place, own in enumerate(lengths) if own == length] for length in sorted(set(lengths))]


def load_pretrained_text(place: str | Path, blank: bool = False) -> PretrainedText:
    """The text encoder in a folder, or of a name on the hub; of models that read more than text, their text encoder.

    Args:
        place: the folder or the name.
        blank: read no weights: the model is on the meta device.

    Raises:
        UserError: there is none, or it is not one of text.
    """
    # Seconds that only those who need it should wait for.
    from transformers import AutoModelForTextEncoding, AutoTokenizer, CLIPTextModel, SiglipTextModel

    kinds = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel}
    kinds |= {"siglip": SiglipTextModel, "siglip_text_model": SiglipTextModel}
    try:
        model = _load(place, "text", kinds, AutoModelForTextEncoding, blank)
        if blank and known_shape(str(place), "text") is not None:
            return PretrainedText(model, blank_tokenizer(model.config.vocab_size))
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # the library raises OSError, ValueError, KeyError and others for what is not there
        raise _absent("text encoder", "safetensors and tokenizer", place, error) from error
    return PretrainedText(model, tokenizer)


def load_pretrained_vision(place: str | Path, blank: bool = False) -> PretrainedVision:
    """The image encoder (CLIP's or SigLIP's) in a folder, or of a name on the hub.

    Args:
        place: the folder or the name.
        blank: read no weights: the model is on the meta device.

    Raises:
        UserError: there is none.
    """
    from transformers import CLIPVisionModel, SiglipVisionModel
    from transformers.utils.hub import cached_file

    kinds = {"clip": CLIPVisionModel, "clip_vision_model": CLIPVisionModel}
    kinds |= {"siglip": SiglipVisionModel, "siglip_vision_model": SiglipVisionModel}
    try:
        model = _load(place, "vision", kinds, None, blank)
        if blank and known_shape(str(place), "vision") is not None:
            return PretrainedVision(model, (0.5,) * 3, (0.5,) * 3)
        found = cached_file(place, _PREPROCESSING)
        facts = json.loads(Path(str(found)).read_text(encoding="utf-8"))
        return PretrainedVision(model, tuple(facts["image_mean"]), tuple(facts["image_std"]))
    except Exception as error:  # likewise
        raise _absent("image encoder (clip or siglip)", f"safetensors and {_PREPROCESSING}", place, error) from error


def _load(place: str | Path, part: Part, kinds: dict[str, Any], other: Any, blank: bool) -> "PreTrainedModel":
    """The part of a model that `kinds` names for its type, or `other`; frozen, in float32."""
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    known = known_shape(str(place), part) if blank else None
    config = known or AutoConfig.from_pretrained(place, trust_remote_code=False)
    kind = kinds.get(config.model_type, other)
    if kind is None:
        raise ValueError(f"it is a {config.model_type}")
    if blank:
        if kind is not other and known is None:
            # A part's own settings stand within those of the whole.
            config = kind.config_class.from_pretrained(place)
        with torch.device("meta"):
            model = kind.from_config(config) if kind is other else kind(config)
        return model.eval().requires_grad_(False)
    # Pickled weights are not read: they could hold code.
    model = kind.from_pretrained(place, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def _absent(what: str, files: str, place: str | Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"no {what} of transformers can be loaded from {place} ({reason}): give a folder that has its config.json, "
        f"{files}, or the name of one on the hub"
    )
