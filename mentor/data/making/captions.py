"""Captions as found on web pages, as plain sentences; and which of them are worth keeping."""

import html
import re
import unicodedata
from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator

from mentor.config import Config
from mentor.data.making.drafts import Draft
from mentor.data.records import Dropped
from mentor.marks import IMAGE_MARK

_URL = re.compile(r"(?i)\b(?:https?://|ftp://|www\.)\S+")
# What stands between blocks separates words; the rest (bold, links) stands within them.
_BLOCK = re.compile(r"(?i)</?(?:br|p|div|li|ul|ol|td|tr|table|h[1-6]|hr)\b[^<>]*>")
_TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")
_ENDINGS = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif|raw|nef|cr2|psd|svg)"
_FILE_NAMES = (
    re.compile(rf"(?i)\S+{_ENDINGS}"),
    re.compile(
        r"(?i)(?:img|dsc|dscn|dscf|pict|pic|pxl|mvi|gopr|wp|photo|image|picture|scan|screen ?shot|untitled|unnamed|"
        rf"no ?name|thumbnail)[\W\d_]*(?:copy)?[\W\d_]*(?:{_ENDINGS})?"
    ),
    re.compile(r"\d[\d_\W]{5,}"),
)
# The patterns above are slow on long text, and no file has a longer name.
_LONGEST_NAME = 255
# Text that was escaped again and again is unwrapped so many times.
_ROUNDS = 8


class Caption(Config):
    """Drops single captions; the item as "no caption" when none is left and it has no objects either.

    Patterns are Python's regular expressions, found anywhere; `(?i)` at their beginning ignores case.

    Attributes:
        min_words: fewer are "caption too short".
        max_words: more are "caption too long".
        min_chars: likewise, in characters.
        max_chars: likewise.
        forbid: a caption with one of these is a "caption forbidden".
        require: a caption without one of these is a "caption forbidden" too; each of them must be found.
    """

    step: Literal["caption"] = "caption"
    min_words: int = Field(default=1, ge=1)
    max_words: int | None = Field(default=None, ge=1)
    min_chars: int = Field(default=1, ge=1)
    max_chars: int | None = Field(default=None, ge=1)
    forbid: tuple[str, ...] = ()
    require: tuple[str, ...] = ()

    @field_validator("forbid", "require")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns


class CleanCaptions(Config):
    """Captions as plain sentences: see `clean_caption`. What says nothing afterwards is removed ("caption empty").

    Attributes:
        lowercase: whether capitals are made small.
        file_names: whether captions that only name a file ("IMG_1234.jpg", "untitled") stay.
    """

    step: Literal["clean_captions"] = "clean_captions"
    lowercase: bool = False
    file_names: bool = False


def filter_captions(draft: Draft, config: Caption) -> Draft | Dropped:
    """The draft with those captions that fit, if there is something left to say."""
    kept, notes = [], []
    for caption in draft.captions:
        fault = _fault_of(caption, config)
        if fault:
            notes.append(fault)
        else:
            kept.append(caption)
    if not kept and not draft.has_objects:
        return draft.drop("no caption", ", ".join((*draft.notes, *notes)))
    return replace(draft, captions=tuple(kept), notes=(*draft.notes, *notes))


def clean_captions(draft: Draft, config: CleanCaptions) -> Draft:
    """The draft with clean captions."""
    kept, notes = [], []
    for caption in draft.captions:
        cleaned = clean_caption(caption)
        if not cleaned:
            notes.append("caption empty")
        elif names_a_file(cleaned) and not config.file_names:
            notes.append("caption names a file")
        else:
            kept.append(cleaned.lower() if config.lowercase else cleaned)
    if not notes and tuple(kept) == draft.captions:
        return draft
    return replace(draft, captions=tuple(kept), notes=(*draft.notes, *notes))


def clean_caption(text: str) -> str:
    """The text in Unicode's NFC, without HTML, URLs, `<image>` marks, control characters and superfluous spaces.

    Cleaning what is clean changes nothing. HTML's entities become what they stand for, also where they were escaped
    several times.
    """
    for _ in range(_ROUNDS):
        cleaned = _clean_once(text)
        if cleaned == text:
            return text
        text = cleaned
    for _ in range(2):
        text = _clean_once(re.sub("[<&]", " ", text))
    return text


def names_a_file(caption: str) -> bool:
    """Whether a caption only repeats the name that a camera or a program gave the file."""
    return len(caption) <= _LONGEST_NAME and any(pattern.fullmatch(caption) for pattern in _FILE_NAMES)


def _fault_of(caption: str, config: Caption) -> str:
    words = len(caption.split())
    if words < config.min_words or len(caption) < config.min_chars:
        return "caption too short"
    too_many = config.max_words is not None and words > config.max_words
    if too_many or (config.max_chars is not None and len(caption) > config.max_chars):
        return "caption too long"
    if any(re.search(pattern, caption) for pattern in config.forbid):
        return "caption forbidden"
    if not all(re.search(pattern, caption) for pattern in config.require):
        return "caption forbidden"
    return ""


def _clean_once(text: str) -> str:
    text = unicodedata.normalize("NFC", html.unescape(text)).replace(IMAGE_MARK, " ")
    text = _TAG.sub("", _BLOCK.sub(" ", _URL.sub(" ", text)))
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text)
    return " ".join(text.split())
