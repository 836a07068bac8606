"""Items of pictures and masks in memory, and what a recipe's steps make of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pictures import natural, saved

from mentor.config import Config, validate
from mentor.data.making.drafts import Prepared
from mentor.data.making.steps import StepConfig, prepare
from mentor.data.records import Dropped
from mentor.data.sources.items import Item
from mentor.data.storage.decoding import Limits
from mentor.data.storage.encoding import Layout

JPG, PNG = Layout(picture="jpg"), Layout(picture="png")


@dataclass(frozen=True)
class Bytes:
    content: bytes

    def read(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class Missing:
    def read(self) -> bytes:
        raise OSError("no such file: gone.jpg")


@dataclass(frozen=True)
class MaskOf:
    """A mask given as rows of 0 and 1, or one read from transparency."""

    rows: Any = None
    error: Exception | None = None

    def read(self, picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
        if self.error:
            raise self.error
        if self.rows is not None:
            return np.asarray(self.rows)
        assert alpha is not None
        return alpha >= 128


class Recipe(Config):
    steps: tuple[StepConfig, ...] = ()


def item(content: bytes | np.ndarray | None = None, **more: Any) -> Item:
    content = natural(48, 64) if content is None else content
    content = saved(content, "PNG") if isinstance(content, np.ndarray) else content
    return Item("pictures/one.png", Bytes(content), **({"captions": ("a cat",)} | more))


def run(one: Item, *steps: Mapping[str, Any], layout: Layout = PNG, limits: Limits | None = None) -> Prepared | Dropped:
    return prepare(one, validate(Recipe, {"steps": list(steps)}).steps, layout, limits or Limits())


def kept(one: Item, *steps: Mapping[str, Any], **more: Any) -> Prepared:
    outcome = run(one, *steps, **more)
    assert isinstance(outcome, Prepared), outcome
    return outcome


def dropped(one: Item, *steps: Mapping[str, Any], **more: Any) -> str:
    outcome = run(one, *steps, **more)
    assert isinstance(outcome, Dropped) and outcome.origin == "pictures/one.png", outcome
    return outcome.reason


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2
