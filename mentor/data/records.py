"""What a shard stores: the record, its objects and its other views; data_recipes/README.md documents the schema."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mentor.errors import UserError

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class RecordObject:
    """A labelled thing in a picture.

    Attributes:
        name: what a prompt calls it, such as "acorn".
        mask: bool, `y x`, True on the object; None where nobody has drawn one.
        phrase: how to single it out when the picture holds several, such as "acorn at the left"; the name if empty.
        attributes: whatever an oracle may read (place, size, colour, ...).
    """

    name: str
    mask: np.ndarray | None
    phrase: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """Another picture of the record's subject (its first object).

    Attributes:
        image: uint8 `y x 3`.
        mask: bool `y x`, True on the subject; None where nobody has drawn one.
        attributes: whatever an oracle may read.
    """

    image: np.ndarray
    mask: np.ndarray | None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One picture with all that is known of it.

    Attributes:
        key: unique in the data set, without dots.
        image: uint8, `y x 3`, RGB.
        captions: may be empty, where objects say what there is.
        objects: labelled objects, the subject first; may be empty (a photograph without annotation).
        views: other pictures of the subject; may be empty.
        subject: the subject's name by which train and held-out are split; empty when there is none.
        attributes: whatever an oracle may read about the whole picture (background, source, licence, ...).
        tasks: the only tasks that this record is meant for; empty: all that it can serve.
    """

    key: str
    image: np.ndarray
    captions: tuple[str, ...] = ()
    objects: tuple[RecordObject, ...] = ()
    views: tuple[View, ...] = ()
    subject: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What many records hold, counted: arrays of one length, so that whole data sets are asked at once.

    Attributes:
        captions: uint8 `n`, how many (255 stands for more, too).
        objects: likewise.
        masks: likewise, objects that have a mask.
        views: likewise.
        tasks: uint32 `n`, bit i is set when the record is meant for `task_names[i]`; 0: for all.
        task_names: see there.
    """

    captions: np.ndarray
    objects: np.ndarray
    masks: np.ndarray
    views: np.ndarray
    tasks: np.ndarray
    task_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.captions)

    def meant_for(self, task: str) -> np.ndarray:
        """Bool `n`: whether the record is meant for the task."""
        if task not in self.task_names:
            return self.tasks == 0
        return (self.tasks == 0) | ((self.tasks >> self.task_names.index(task)) & 1 == 1)


class UnusableSample(UserError):
    """A sample that cannot become an example.

    Attributes:
        shard: path of its shard.
        key: the sample's.
        reason: a few fixed words that can be counted.
    """

    def __init__(self, message: str, shard: str, key: str, reason: str) -> None:
        super().__init__(message)
        self.shard, self.key, self.reason = shard, key, reason


@dataclass(frozen=True)
class Dropped:
    """Something that did not become a sample, and why.

    Attributes:
        origin: as an item's.
        reason: a few fixed words that are counted ("no caption"), without anything of the single case in them.
        detail: what the single case adds, for the log.
    """

    origin: str
    reason: str
    detail: str = ""
