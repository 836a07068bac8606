"""A caption, read by a pretrained text encoder, as the whole prompt, as LlamaGen's text-to-image models have it."""

from typing import ClassVar, Literal

from pydantic import Field

from mentor.conditioning.conditioner import shown
from mentor.conditioning.prefix import Condition, Prefix, Span
from mentor.conditioning.pretrained import PretrainedText
from mentor.conditioning.slots import SlotConditioner
from mentor.config import Config
from mentor.errors import UserError
from mentor.types import CodeSpec, Prompt, TextSegment


class CaptionConfig(Config):
    """Settings of the caption conditioner.

    Attributes:
        encoder: folder or hub name of the text encoder that a new model begins with; a release has its own copy.
        slots: tokens that a caption may take; longer ones are refused.
    """

    kind: Literal["caption"] = "caption"
    encoder: str = ""
    slots: int = Field(default=120, gt=0)

    def longest(self, spec: CodeSpec) -> int:
        """Prefix tokens that a prompt may take."""
        return self.slots


class CaptionConditioner(SlotConditioner):
    """The encoder's vector of each token of the caption."""

    reads_images: ClassVar[bool] = False
    apart: tuple[str, ...] = ("encoder.",)

    def __init__(self, config: CaptionConfig, text: PretrainedText, width: int) -> None:
        super().__init__(config.slots, text.width, width)
        self.config = config
        self.text = text
        self.encoder = text.model

    def train(self, mode: bool = True) -> "CaptionConditioner":
        """Training or eval mode, except for the encoder, which stays as it is."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, condition: Condition) -> Prefix:
        """The prefix of a batch of prompts.

        Raises:
            UserError: a prompt has images, or more tokens than there are slots.
        """
        for prompt in condition.prompts:
            self.count(prompt)
        texts = list(dict.fromkeys(_text(prompt) for prompt in condition.prompts if prompt))
        encoded = dict(zip(texts, self.text.encode(texts), strict=True))
        rows = [
            encoded[_text(prompt)] if prompt else self.nothing[-self.null_tokens(prompt) :]
            for prompt in condition.prompts
        ]
        kinds: list[Literal["text", "null"]] = ["text" if prompt else "null" for prompt in condition.prompts]
        spans = [[Span(kind, "", 0, len(row))] for kind, row in zip(kinds, rows, strict=True)]
        return self.arrange(rows, spans)

    def count(self, prompt: Prompt) -> int:
        """Tokens that the prompt's prefix has.

        Raises:
            UserError: it has images, or more tokens than there are slots.
        """
        if not prompt:
            return self.null_tokens(prompt)
        length = len(self.text.tokens(_text(prompt)))
        if length > self.config.slots:
            raise UserError(
                f"the prompt takes {length} prefix tokens and the model has room for {self.config.slots}: "
                f"shorten it: {shown(prompt)}"
            )
        return length


def _text(prompt: Prompt) -> str:
    if any(not isinstance(segment, TextSegment) for segment in prompt):
        raise UserError(f"the model reads text alone, and there is an image in {shown(prompt)}: leave it out")
    return "".join(segment.text for segment in prompt if isinstance(segment, TextSegment))
