"""Masks in files and in the transparency of pictures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mentor.data.sources.items import Blob
from mentor.data.storage.decoding import BadSample, decode_mask, decode_with_alpha, peek_image


@dataclass(frozen=True)
class AlphaMask:
    """The object is what is opaque."""

    def read(self, picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
        """True where the picture is more opaque than transparent.

        Raises:
            ValueError: the picture has no transparency, or is nothing but transparent.
        """
        if alpha is None:
            raise ValueError("no transparency")
        return _not_empty(alpha >= 128)


@dataclass(frozen=True)
class FileMask:
    """A picture of the mask, white on the object; grey levels below the middle, as JPEG rings them, are not it."""

    file: Blob

    def read(self, picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
        """True where the mask's picture is 128 or lighter.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no picture, has another size than the picture, or is black.
        """
        content = self.file.read()
        # Before anything is decoded: what has the picture's size cannot be a bomb.
        if peek_image(content).upright != (picture.shape[1], picture.shape[0]):
            raise ValueError("mask of another size")
        return _not_empty(decode_mask(content))


def is_transparent(path: Path) -> bool:
    """Whether some pixel of a picture is more transparent than opaque; False for what cannot be read."""
    try:
        content = path.read_bytes()
        if not peek_image(content).has_alpha:
            return False
        _, alpha = decode_with_alpha(content)
    except (OSError, BadSample):
        return False
    return alpha is not None and bool((alpha < 128).any())


def _not_empty(mask: np.ndarray) -> np.ndarray:
    if not mask.any():
        raise ValueError("mask is empty")
    return mask
