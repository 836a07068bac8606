"""Byte-level BPE over captions; any text can be encoded, whatever it was trained on."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mentor.errors import UserError


class TextTokenizer:
    """Text to integers and back. Case is folded: a prompt means the same shouted or whispered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.encode = lru_cache(maxsize=100_000)(self._encode)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "TextTokenizer":
        """A tokenizer of at most `vocab_size` entries (at least the 256 bytes) learned from `captions`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocab_size, 256),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=2,
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> "TextTokenizer":
        """The tokenizer that `to_json` wrote."""
        return cls(Tokenizer.from_str(text))

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        """The tokenizer stored at `path`.

        Raises:
            UserError: there is no such file, or it holds no tokenizer.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"no text tokenizer at {path}: give a release folder that has text_tokenizer.json"
            ) from error
        except Exception as error:  # the library raises bare Exception for anything it cannot parse
            raise UserError(f"{path} is not a text tokenizer ({error}): write it again from its run") from error

    def to_json(self) -> str:
        """Everything there is to know of this tokenizer, in the format of the `tokenizers` library."""
        return self._tokenizer.to_str(pretty=True)

    @property
    def vocab_size(self) -> int:
        """How many entries the vocabulary has."""
        return self._tokenizer.get_vocab_size()

    def _encode(self, text: str) -> tuple[int, ...]:
        """The ids of `text`; memoised as `encode`, since captions repeat."""
        return tuple(self._tokenizer.encode(text).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, lower-case."""
        return self._tokenizer.decode(list(ids)).strip()
