"""What a source says of one picture before anybody has opened it: small, plain, and sent between processes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class Blob(Protocol):
    """Where the bytes of a file lie; a frozen dataclass of plain values."""

    def length(self) -> int | None:
        """How many bytes there are, where that is quick to tell."""
        ...

    def read(self) -> bytes:
        """The bytes.

        Raises:
            OSError: they cannot be read.
        """
        ...


class MaskPlace(Protocol):
    """Where a mask comes from; a frozen dataclass of plain values."""

    def read(self, picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
        """The mask, bool `y x`, as large as the picture.

        Args:
            picture: uint8 `y x 3`, upright, before any step has changed it.
            alpha: its transparency, uint8 `y x`; None when it has none.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no mask for this picture.
        """
        ...


def read_file(path: str, most: int = 1 << 62) -> bytes:
    """The first bytes of a file, all if they are not more than `most`.

    Three times as quick as `Path.read_bytes`, which counts where there are many small files.

    Raises:
        OSError: it cannot be read.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        left = min(os.fstat(file).st_size, most)
        content = os.read(file, left)
        # One call gives all there is, but for files beyond two gigabytes and odd file systems.
        while len(content) < left and (more := os.read(file, left - len(content))):
            content += more
        return content
    finally:
        os.close(file)


@dataclass(frozen=True)
class FileBlob:
    """A file of its own."""

    path: str

    def length(self) -> int | None:
        """The file's size; None if it is not there."""
        try:
            return os.stat(self.path).st_size  # noqa: PTH116
        except OSError:
            return None

    def read(self) -> bytes:
        """The file's bytes."""
        return read_file(self.path)


@dataclass(frozen=True)
class ItemObject:
    """A labelled thing in an item's picture; `mask` is None where nobody has drawn one."""

    name: str
    mask: MaskPlace | None = None
    phrase: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ItemView:
    """Another picture of the item's subject."""

    picture: Blob
    mask: MaskPlace | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """A picture that a source offers, to be opened, checked and written by the recipe's steps.

    Attributes:
        origin: what messages call it: a path relative to the source, a row of a table; unique within the source.
        picture: where its bytes are.
        captions: as found, uncleaned; may be empty.
        objects: labelled things, the subject first.
        views: other pictures of the subject.
        subject: the name by which train and held-out are split; empty: the origin decides.
        attributes: kept with the record (licence, class, ...), plain JSON values.
        tasks: the only tasks that it is meant for; empty: all that it can serve.
    """

    origin: str
    picture: Blob
    captions: tuple[str, ...] = ()
    objects: tuple[ItemObject, ...] = ()
    views: tuple[ItemView, ...] = ()
    subject: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
