"""Recipes: YAML that says where pictures come from and how they become records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from mentor.config import Config, flatten, near, read_yaml, validate
from mentor.data.scenes import SIZES, BackgroundKind
from mentor.data.sources.archives import PhotoSource, SubjectSource
from mentor.errors import UserError

# Settings of the command line that are no part of a recipe: they do not change the bytes of the shards.
COMMAND_KEYS = ("output", "workers")


class HeldOutConfig(Config):
    """How subjects and photographs are divided.

    Attributes:
        share: expected share of the subjects and of the photographs that training never sees.
        salt: changes which ones.
    """

    share: float = Field(default=0.1, ge=0, lt=1)
    salt: str = "mentor"


class SceneConfig(Config):
    """How scenes are composed.

    Attributes:
        train: scenes to make of the training subjects.
        heldout: scenes to make of the held-out subjects.
        views: other pictures of the subject stored with each scene.
        two_objects: share of scenes with two (small) objects.
        large: share of large objects among scenes with one.
        backgrounds: relative weight of each kind of background.
    """

    train: int = Field(ge=0)
    heldout: int = Field(ge=0)
    views: int = Field(default=2, ge=0, le=16)
    two_objects: float = Field(default=0.2, ge=0, le=1)
    large: float = Field(default=0.7, ge=0, le=1)
    backgrounds: dict[BackgroundKind, float]

    @field_validator("backgrounds")
    @classmethod
    def _weights(cls, backgrounds: dict[BackgroundKind, float]) -> dict[BackgroundKind, float]:
        if min(backgrounds.values(), default=0) < 0 or not sum(backgrounds.values()):
            raise ValueError("the weights must not be negative and not all zero")
        return backgrounds


class Recipe(Config):
    """One recipe, complete.

    Attributes:
        name: what `make_shards.py` calls it.
        description: one line for people.
        size: side of every picture in px.
        snap: boxes of objects lie on a lattice of this many px (views of free size and place excepted), so that with
            the image tokenizer's cells as the lattice a shift of the object is a shift by whole tokens.
        seed: changes every random choice except the division into splits.
        samples_per_shard: records in each shard but the last.
        limit: at most this many records in all, the splits in proportion; no limit if null.
        heldout: how the splits are divided.
        subjects: where the scenes' objects come from.
        photographs: where photographs come from; they are backgrounds and records of their own.
        photo_records: whether photographs are records of their own.
        scenes: how scenes are composed; none if null.
    """

    name: str
    description: str = ""
    size: int = Field(default=64, ge=16, le=2048)
    snap: int = Field(default=8, ge=1)
    seed: int = 0
    samples_per_shard: int = Field(default=500, ge=1)
    limit: int | None = Field(default=None, ge=1)
    heldout: HeldOutConfig = HeldOutConfig()
    subjects: SubjectSource | None = None
    photographs: PhotoSource | None = None
    photo_records: bool = True
    scenes: SceneConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.scenes is not None:
            if self.subjects is None:
                raise ValueError("scenes need objects: give the recipe `subjects`")
            if self.scenes.backgrounds.get("photo", 0) and self.photographs is None:
                raise ValueError("photo backgrounds need `photographs`: give them or set scenes.backgrounds.photo to 0")
            for size, share in SIZES.items():
                free = self.size - round(share * self.size)
                if free % 2 or free // 2 % self.snap:
                    raise ValueError(
                        f"a {size} box at size {self.size} can be moved by {free} px, whose half is no multiple of "
                        f"snap {self.snap}: choose a size that is a multiple of 8 x snap, or a smaller snap"
                    )
        return self

    def resolved(self) -> dict[str, Any]:
        """Every setting as plain containers."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and the folder from which its archives' paths count."""

    recipe: Recipe
    folder: Path


def load_recipe(name: str, overrides: Sequence[str], recipes: Path) -> LoadedRecipe:
    """The recipe of that name or at that path, with `key=value` settings (dotted keys) put in.

    Args:
        name: a name in `recipes`, or the path of a YAML file.
        overrides: settings; values are read as YAML.
        recipes: folder of the recipes that are called by name.

    Raises:
        UserError: no such recipe, unknown key, or a value that is not allowed.
    """
    path = _find(name, recipes)
    data = read_yaml(path)
    data.setdefault("name", path.stem)
    if overrides:
        data = validate(Recipe, data).resolved()
        for override in overrides:
            _put(data, override)
    try:
        return LoadedRecipe(validate(Recipe, data), path.parent)
    except UserError as error:
        raise UserError(f"recipe {path.stem}: {error}") from None


def _find(name: str, recipes: Path) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"there is no recipe {name}: give the path of a YAML file or a name in {recipes}")
        return path.resolve()
    known = sorted(path.stem for path in recipes.glob("*.yaml"))
    if name not in known:
        hint = near(name, known)
        raise UserError(
            f"there is no recipe {name!r}{hint}: choose one of {', '.join(known) or 'none'} or give a YAML path"
        )
    return recipes / f"{name}.yaml"


def _put(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"cannot read {override!r}: write settings as key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{key}: {text!r} cannot be read: write numbers, words, or lists like [a, b]") from None
    *parents, last = key.split(".")
    cursor: Any = data
    for part in parents:
        cursor = cursor.get(part) if isinstance(cursor, dict) else None
    if not isinstance(cursor, dict) or last not in cursor:
        known = [*flatten(data), *COMMAND_KEYS]
        raise UserError(f"unknown key {key}{near(key, known)}: there are {', '.join(known)}")
    cursor[last] = value
