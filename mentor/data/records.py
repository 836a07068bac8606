"""What a shard stores: the record, its objects and its other views; data_recipes/README.md documents the schema."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RecordObject:
    """A labelled thing in a picture.

    Attributes:
        name: what a prompt calls it, such as "acorn".
        mask: bool, `y x`, True on the object.
        phrase: how to single it out when the picture holds several, such as "acorn at the left"; the name if empty.
        attributes: whatever an oracle may read (place, size, colour, ...).
    """

    name: str
    mask: np.ndarray
    phrase: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """Another picture of the record's subject (its first object): `image` uint8 `y x 3`, `mask` bool `y x`."""

    image: np.ndarray
    mask: np.ndarray
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One picture with all that is known of it.

    Attributes:
        key: unique in the data set, without dots.
        image: uint8, `y x 3`, RGB.
        captions: at least one.
        objects: labelled objects with masks, the subject first; may be empty (a photograph without annotation).
        views: other pictures of the subject; may be empty.
        subject: the subject's name by which train and held-out are split; empty when there is none.
        attributes: whatever an oracle may read about the whole picture (background, source, licence, ...).
    """

    key: str
    image: np.ndarray
    captions: tuple[str, ...]
    objects: tuple[RecordObject, ...] = ()
    views: tuple[View, ...] = ()
    subject: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
