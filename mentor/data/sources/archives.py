"""Where scenes come from: archives and folders of cut-outs, archives of photographs, and procedural shapes."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, assert_never

import numpy as np
from PIL import Image
from pydantic import Field

from mentor.config import Config
from mentor.data.making.scenes import crop_to_content
from mentor.data.making.synthetic import SHAPE_COLOURS, SHAPES, TEXTURES, all_shapes, draw_shape, shape_name
from mentor.data.sources.cutouts import CutoutFolder
from mentor.data.sources.places import digest_file, find_path
from mentor.errors import UserError

Number = Literal["singular", "plural", "mass"]
_CREDIT = ("id", "licence", "licence_url", "annotation_licence", "author", "attribution", "source_url", "changes")


@dataclass(frozen=True)
class Cutout:
    """One picture of a subject without its surroundings.

    Attributes:
        id: unique within its source.
        name: the subject, the same for all its styles.
        style: which of several artworks or drawings this is.
        read: RGBA uint8 `y x 4` without an empty margin.
        number: grammatical number of the name; only a singular takes "a".
        attributes: what an oracle may read of the object (shape, colour, ...).
        credit: licence, attribution and source.
    """

    id: str
    name: str
    style: str
    read: Callable[[], np.ndarray]
    number: Number = "singular"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    credit: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Photo:
    """One photograph.

    Attributes:
        id: unique within its source.
        captions: at least one.
        read: RGB uint8 `y x 3`.
        label: the main thing in it; empty when unknown.
        background: what it shows when it stands behind an object ("daisies"); empty when it never should.
        objects: names and masks (bool `y x`) of the labelled things.
        credit: licence, attribution and source.
    """

    id: str
    captions: tuple[str, ...]
    read: Callable[[], np.ndarray]
    label: str = ""
    background: str = ""
    objects: tuple[tuple[str, Callable[[], np.ndarray]], ...] = ()
    credit: Mapping[str, str] = field(default_factory=dict)


class CutoutSource(Config):
    """A zip archive of RGBA pictures with an `index.jsonl`, or a plain folder of RGBA pictures with or without one.

    Attributes:
        archive: path, relative to the recipe's folder or else the current one.
        styles: which styles to take; all if empty.
    """

    source: Literal["cutouts"]
    archive: str
    styles: tuple[str, ...] = ()


class ShapeSource(Config):
    """Procedural shapes.

    Attributes:
        shapes: which shapes to draw; all if empty. Likewise `colours` and `textures`.
        colours: see `shapes`.
        textures: see `shapes`.
    """

    source: Literal["shapes"]
    shapes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    textures: tuple[str, ...] = ()


class PhotoSource(Config):
    """A zip archive of photographs with an `index.jsonl`.

    Attributes:
        archive: path, relative to the recipe's folder or else the current one.
        collections: which collections to take; all if empty.
    """

    source: Literal["photos"]
    archive: str
    collections: tuple[str, ...] = ()


SubjectSource = Annotated[CutoutSource | ShapeSource, Field(discriminator="source")]


def read_cutouts(source: CutoutSource | ShapeSource, folder: Path) -> list[Cutout]:
    """The cut-outs of a source in a fixed order.

    Raises:
        UserError: the archive is missing or damaged, or a named style, shape, colour or texture does not exist.
    """
    match source:
        case CutoutSource():
            return _archived_cutouts(source, folder)
        case ShapeSource():
            return _drawn_shapes(source)
        case _:
            assert_never(source)


def read_photos(source: PhotoSource, folder: Path) -> list[Photo]:
    """The photographs of a source in a fixed order.

    Raises:
        UserError: the archive is missing or damaged, or a named collection does not exist.
    """
    archive = Archive(_find(source.archive, folder))
    _check_known("collections", source.collections, {row["collection"] for row in archive.rows})
    return [
        Photo(
            id=row["id"],
            captions=tuple(row["captions"]),
            read=lambda file=row["file"]: archive.picture(file, "RGB"),
            label=row["label"],
            background=row["background"],
            objects=tuple(
                (thing["name"], lambda file=thing["mask"]: archive.picture(file, "L") >= 128)
                for thing in row["objects"]
            ),
            credit=_credit(row),
        )
        for row in archive.rows
        if not source.collections or row["collection"] in source.collections
    ]


def digest_inputs(sources: list[CutoutSource | ShapeSource | PhotoSource], folder: Path) -> dict[str, str]:
    """The sha256 of every archive or folder of cut-outs that the sources read, by its path in the recipe."""
    digests = {}
    for source in sources:
        if not isinstance(source, ShapeSource):
            path = _find(source.archive, folder)
            digests[source.archive] = CutoutFolder(path).digest() if path.is_dir() else digest_file(path)
    return digests


class Archive:
    """A zip file read in memory: `rows` is its `index.jsonl`.

    Raises:
        UserError: it is missing, no zip file, or has no readable index.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            self.rows: list[dict[str, Any]] = [json.loads(line) for line in self._zip.read("index.jsonl").splitlines()]
        except OSError as error:
            raise UserError(f"the archive {path} cannot be read: {error.strerror}") from None
        except (zipfile.BadZipFile, KeyError, ValueError):
            raise UserError(f"{path} is damaged or has no index.jsonl: get it again from the repository") from None

    def picture(self, member: str, mode: str) -> np.ndarray:
        """The pixels of one member.

        Raises:
            UserError: the member is missing or no picture.
        """
        try:
            with Image.open(io.BytesIO(self._zip.read(member))) as opened:
                return np.array(opened.convert(mode))
        except (OSError, KeyError, zipfile.BadZipFile, ValueError, SyntaxError):
            raise UserError(f"{self.path}: {member} is missing or no readable picture: get the archive again") from None


def _archived_cutouts(source: CutoutSource, folder: Path) -> list[Cutout]:
    path = _find(source.archive, folder)
    archive = CutoutFolder(path) if path.is_dir() else Archive(path)
    _check_known("styles", source.styles, {row["style"] for row in archive.rows})

    @lru_cache(maxsize=4096)
    def read(file: str) -> np.ndarray:
        return crop_to_content(archive.picture(file, "RGBA"))

    return [
        Cutout(
            id=row["id"],
            name=row["name"],
            style=row["style"],
            read=lambda file=row["file"]: read(file),
            number=row["number"],
            credit=_credit(row),
        )
        for row in archive.rows
        if not source.styles or row["style"] in source.styles
    ]


def _drawn_shapes(source: ShapeSource) -> list[Cutout]:
    _check_known("shapes", source.shapes, set(SHAPES))
    _check_known("colours", source.colours, set(SHAPE_COLOURS))
    _check_known("textures", source.textures, set(TEXTURES))
    chosen = (source.shapes or SHAPES, source.colours or SHAPE_COLOURS, source.textures or TEXTURES)
    return [
        Cutout(
            id=shape_name(*facts).replace(" ", "-"),
            name=shape_name(*facts),
            style="drawn",
            read=lru_cache(lambda facts=facts: draw_shape(*facts)),
            attributes=dict(zip(("shape", "colour", "texture"), facts, strict=True)),
            credit={
                "id": shape_name(*facts).replace(" ", "-"),
                "licence": "Apache-2.0",
                "attribution": "drawn by mentor",
            },
        )
        for facts in all_shapes()
        if all(fact in allowed for fact, allowed in zip(facts, chosen, strict=True))
    ]


def _credit(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: row[key] for key in _CREDIT if row.get(key)}


def _check_known(what: str, chosen: tuple[str, ...], known: set[str]) -> None:
    for name in chosen:
        if name not in known:
            raise UserError(f"{what}: {name!r} is unknown: choose among {', '.join(sorted(known))}")


def _find(archive: str, folder: Path) -> Path:
    try:
        return find_path(archive, folder, "the archive")
    except UserError as error:
        raise UserError(f"the archive {archive} cannot be read: {error}") from None
