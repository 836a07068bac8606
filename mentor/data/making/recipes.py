"""Recipes: YAML that says where pictures come from and how they become records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic import Field, field_validator, model_validator

from mentor.config import Config, near, read_yaml, validate
from mentor.data.making.overrides import fill_in, is_missing, put_setting, set_input, take_inputs
from mentor.data.making.scenes import SIZES, BackgroundKind
from mentor.data.making.steps import StepConfig, duplicates_step
from mentor.data.sources import SourceConfig
from mentor.data.sources.archives import PhotoSource, SubjectSource
from mentor.data.storage.decoding import Limits
from mentor.data.storage.tarsets import TarFields
from mentor.errors import UserError


class HeldOutConfig(Config):
    """How subjects and photographs are divided.

    Attributes:
        by: "subject" holds whole subjects out. "scene" is for a model that learns these very subjects: it holds out
            scenes of them, by places, sizes and background, so that training shows none of them there.
        share: expected share of the subjects (or scenes) and of the photographs that training never sees.
        salt: changes which ones.
    """

    by: Literal["subject", "scene"] = "subject"
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


class SceneRecipe(Config):
    """Cut-outs composed into scenes, and photographs, from archives beside the recipe.

    Attributes:
        kind: "scenes".
        name: what `make_shards.py` calls it.
        description: one line for people.
        licence: of the pictures, kept in the manifest.
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

    kind: Literal["scenes"] = "scenes"
    name: str
    description: str = ""
    licence: str = ""
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
    def _consistent(self) -> "SceneRecipe":
        if self.scenes is not None:
            if self.subjects is None:
                raise ValueError("scenes need objects: give the recipe `subjects`")
            if self.scenes.backgrounds.get("photo", 0) and self.photographs is None:
                raise ValueError("photo backgrounds need `photographs`: give them or set scenes.backgrounds.photo to 0")
            if self.heldout.by == "scene" and (self.scenes.heldout > 0) != (self.heldout.share > 0):
                raise ValueError(
                    f"heldout.share {self.heldout.share:g} and scenes.heldout {self.scenes.heldout} do not go "
                    "together: set both above 0, or both to 0"
                )
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


class RecordRecipe(Config):
    """Pictures with captions, objects or views from anywhere, checked and changed step by step.

    Attributes:
        kind: "records".
        name: what `make_shards.py` calls it.
        description: one line for people.
        licence: of the pictures, kept in the manifest.
        sources: where pictures come from.
        steps: what happens to each, in order.
        picture: format of the stored pictures. One that no step changed and that has this format already is copied.
        quality: of jpg and webp, 1 to 100.
        heldout: how the splits are divided: by the hash of an item's subject, or of its origin where it has none. There
            is always something held out, unless the share is 0 or there is one subject (or origin) alone.
        seed: changes the order of the samples and which ones a limit chooses.
        shuffle: whether samples are stored in an order by chance; else in their source's own. Training shuffles by
            blocks, which cannot mix what is sorted by class.
        samples_per_shard: items for each shard but the last; dropped ones leave it smaller.
        limit: at most this many records in all, the splits in proportion; no limit if null.
        limits: what a single sample may ask for.
    """

    kind: Literal["records"] = "records"
    name: str
    description: str = ""
    licence: str = ""
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    steps: tuple[StepConfig, ...] = ()
    picture: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(default=95, ge=1, le=100)
    heldout: HeldOutConfig = HeldOutConfig(share=0.02)
    seed: int = 0
    shuffle: bool = True
    samples_per_shard: int = Field(default=1000, ge=1)
    limit: int | None = Field(default=None, ge=1)
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _consistent(self) -> "RecordRecipe":
        duplicates_step(self.steps)
        return self

    def resolved(self) -> dict[str, Any]:
        """Every setting as plain containers, but of absolute paths the last part: the same data have the same identity.

        What is there is said by digests, and a manifest that is passed on must not tell of somebody's disk.
        """
        data = self.model_dump(mode="json")
        data["sources"] = [{key: placeless(value) for key, value in source.items()} for source in data["sources"]]
        return data


class TarRecipe(Config):
    """Tars in WebDataset's layout, indexed where they lie; not a byte of them is written.

    Attributes:
        kind: "tars".
        name: what `make_shards.py` calls it.
        description: one line for people.
        licence: of the pictures, kept in the manifest.
        paths: paths and URLs of tars, with braces (`{000..099}`) and wildcards.
        image: endings that are the picture, separated by semicolons; the first there is counts.
        caption: ending of the caption, or a path into a JSON member ("json.caption"); none if empty.
        heldout: how the splits are divided: by the hash of a sample's tar and key.
        skip_damaged: whether damaged tars are left out and counted instead of ending the work.
        limits: what a single sample may ask for.
    """

    kind: Literal["tars"] = "tars"
    name: str
    description: str = ""
    licence: str = ""
    paths: tuple[str, ...] = Field(min_length=1)
    image: str = "jpg;jpeg;png;webp"
    caption: str = "txt"
    heldout: HeldOutConfig = HeldOutConfig(share=0.02)
    skip_damaged: bool = False
    limits: Limits = Limits()

    @field_validator("paths", mode="before")
    @classmethod
    def _one_or_many(cls, paths: Any) -> Any:
        return (paths,) if isinstance(paths, str) else paths

    @property
    def fields(self) -> TarFields:
        """Which members of a sample are read."""
        return TarFields(image=tuple(self.image.split(";")), caption=self.caption)

    def resolved(self) -> dict[str, Any]:
        """Every setting as plain containers."""
        return self.model_dump(mode="json")


Recipe = SceneRecipe | RecordRecipe | TarRecipe
R = TypeVar("R", bound=SceneRecipe | RecordRecipe | TarRecipe)
KINDS: dict[str, tuple[type[Any], str]] = {
    "records": (RecordRecipe, "pictures from a folder, COCO, Hugging Face, ..."),
    "scenes": (SceneRecipe, "cut-outs composed into scenes"),
    "tars": (TarRecipe, "tars that are indexed where they lie"),
}


@dataclass(frozen=True)
class LoadedRecipe(Generic[R]):
    """A recipe and the folder from which its paths count."""

    recipe: R
    folder: Path


def load_recipe(name: str, overrides: Sequence[str], recipes: Path) -> LoadedRecipe[Any]:
    """The recipe of that name or at that path, with `key=value` settings put in.

    A recipe may declare `inputs`: names with defaults, put in wherever a value is `${NAME}`, and set by `NAME=value`. A
    default that begins with `???` must be given; what follows tells people what it is.

    Args:
        name: a name in `recipes`, or the path of a YAML file.
        overrides: settings: dotted keys (with numbers in lists) or inputs; values are read as YAML.
        recipes: folder of the recipes that are called by name.

    Raises:
        UserError: no such recipe, unknown key, an input that is not given, or a value that is not allowed.
    """
    path = _find(name, recipes)
    data = read_yaml(path)
    data.setdefault("name", path.stem)
    try:
        return LoadedRecipe(read_recipe(data, overrides), path.parent)
    except UserError as error:
        raise UserError(f"recipe {path.stem}: {error}") from None


def read_recipe(data: dict[str, Any], overrides: Sequence[str]) -> Any:
    """The recipe in a mapping, with settings put in: see `load_recipe`.

    Raises:
        UserError: unknown key, an input that is not given, or a value that is not allowed.
    """
    inputs = take_inputs(data)
    others = [override for override in overrides if not set_input(inputs, override)]
    kind, meaning = data.get("kind"), ", ".join(f"{kind} ({what})" for kind, (_, what) in KINDS.items())
    if kind not in KINDS:
        found = f"its kind {kind!r} is unknown{near(str(kind), KINDS)}" if kind else "it does not say its `kind`"
        raise UserError(f"{found}: there are {meaning}")
    cls = KINDS[kind][0]
    data = cast(dict[str, Any], fill_in(data, inputs, others))
    if others:
        data = validate(cls, data).model_dump(mode="json")
        for override in others:
            put_setting(data, override, inputs)
    return validate(cls, data)


def list_recipes(recipes: Path) -> dict[str, str]:
    """Name -> the line about it, of the recipes in a folder; the inputs that must be given are named."""
    lines = {}
    for path in sorted(recipes.glob("*.yaml")):
        data = read_yaml(path)
        inputs = {name: value for name, value in take_inputs(data).items() if is_missing(value)}
        needs = " ".join(f"{name}={name.upper()}" for name in inputs)
        lines[path.stem] = f"{data.get('description', '')}" + (f" ({needs})" if needs else "")
    return lines


def placeless(value: Any) -> Any:
    """The value, but of absolute paths in it (`/a/b/c`, `~/c`) the last part alone."""
    if isinstance(value, str) and value.startswith(("/", "~")):
        return PurePath(value).name or value
    return [placeless(one) for one in value] if isinstance(value, list | tuple) else value


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
