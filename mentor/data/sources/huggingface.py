"""Hugging Face's data sets: saved folders, folders that `datasets` can read, and ids; bytes unchanged, no code run."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from mentor.config import Config
from mentor.data.records import Dropped
from mentor.data.sources.folder import check_template, fill
from mentor.data.sources.items import Item
from mentor.data.sources.places import Tree, digest_file, digest_listing, find_path
from mentor.data.sources.tables import CAPTION_COLUMNS, captions_of
from mentor.errors import UserError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = {".parquet": "parquet", ".arrow": "arrow"}
_BATCH = 1000


class HuggingFaceSource(Config):
    """A data set of Hugging Face's library `datasets`.

    Attributes:
        kind: "huggingface".
        path: folder saved by `save_to_disk`, folder that `load_dataset` can read, parquet or arrow file, or an id.
        name: configuration of a data set that has several.
        revision: commit or branch of an id.
        split: the only one, or "train", if null.
        image_column: found by its type if null.
        caption_column: column or columns with a caption or a list of captions, or of class labels; found if null,
            none if empty.
        template: caption of a class label; `{name}` is the class.
    """

    kind: Literal["huggingface"]
    path: str
    name: str | None = None
    revision: str | None = None
    split: str | None = None
    image_column: str | None = None
    caption_column: str | tuple[str, ...] | None = None
    template: str = "a photo of a {name}"

    @field_validator("template")
    @classmethod
    def _template(cls, template: str) -> str:
        return check_template(template)


@dataclass(frozen=True)
class HuggingFacePlace:
    """A split of a data set: all that another process needs to open it."""

    path: str
    local: bool
    name: str | None
    revision: str | None
    split: str | None


@dataclass(frozen=True)
class HuggingFaceBlob:
    """A picture's bytes in a row of a data set."""

    place: HuggingFacePlace
    column: str
    row: int

    def length(self) -> int | None:
        """Not known without reading the row."""
        return None

    def read(self) -> bytes:
        """The bytes as they are stored.

        Raises:
            OSError: there are none, or they lie in a file outside the data set.
        """
        value = _column(self.place, self.column)[self.row][self.column]
        if isinstance(value, bytes):
            return value
        value = value or {}
        if value.get("bytes"):
            return value["bytes"]
        path = os.path.realpath(value.get("path") or "")
        if not value.get("path") or not any(path.startswith(f"{root}/") for root in _allowed(self.place)):
            raise OSError("no bytes in the row, and no file within the data set")
        return Path(path).read_bytes()


def read_huggingface(config: HuggingFaceSource, folder: Path) -> Iterator[Item | Dropped]:
    """The rows in their own order.

    Raises:
        UserError: `datasets` is not installed, the data set cannot be opened, or its columns have to be named.
    """
    place = _place(config, folder)
    dataset = _open(place)
    image = _image_column(config, dataset)
    columns = _caption_columns(config, dataset, image)
    labels = {name: getattr(dataset.features[name], "names", None) for name in columns}
    arrow = dataset.select_columns(list(dict.fromkeys([image, *columns]))).with_format("arrow")
    row = 0
    for table in arrow.iter(batch_size=_BATCH):
        missing = table[image].is_null().to_pylist()
        cells = [table[name].to_pylist() for name in columns]
        for index in range(len(table)):
            origin = f"{dataset.split or 'row'}/{row}"
            captions = [
                _captions(values[index], labels[name], config) for name, values in zip(columns, cells, strict=True)
            ]
            if missing[index]:
                yield Dropped(origin, "no picture")
            elif any(texts is None for texts in captions):
                yield Dropped(origin, "unreadable row", "a caption is no text")
            else:
                texts = tuple(text for texts in captions for text in texts or ())
                yield Item(origin, HuggingFaceBlob(place, image, row), texts)
            row += 1


def describe_huggingface(config: HuggingFaceSource, folder: Path) -> dict[str, str]:
    """The sha256 of a folder's paths and sizes, of a file, or of what was downloaded for an id."""
    place = _place(config, folder)
    if place.local:
        path = Path(place.path)
        if not path.is_dir():
            return {config.path: digest_file(path)}
        tree = Tree(path)
        return {config.path: digest_listing(tree, {entry.kind for entry in tree.files()})}
    dataset = _open(place)
    downloads = sorted(dataset.info.download_checksums or {}) or [str(dataset.info.dataset_size), str(len(dataset))]
    return {config.path: hashlib.sha256("\n".join(downloads).encode()).hexdigest()}


def _place(config: HuggingFaceSource, folder: Path) -> HuggingFacePlace:
    try:
        path, local = str(find_path(config.path, folder, "the data set")), True
    except UserError:
        if not _ID.fullmatch(config.path):
            raise
        path, local = config.path, False
    return HuggingFacePlace(path, local, config.name, config.revision, config.split)


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("kind: huggingface needs the library datasets: pip install datasets") from None
    return datasets


@lru_cache(maxsize=4)
def _open(place: HuggingFacePlace) -> Any:
    """The split as the library opens it.

    Raises:
        UserError: it cannot be opened, or has no such split.
    """
    library = _library()
    library.disable_progress_bars()
    path = Path(place.path)
    try:
        if place.local and path.is_dir() and any((path / f).is_file() for f in ("state.json", "dataset_dict.json")):
            loaded = library.load_from_disk(place.path)
        elif place.local and not path.is_dir():
            if path.suffix not in _FILES:
                raise UserError(f"{path} is a file: give a folder, a .parquet or .arrow file, or an id")
            loaded = library.load_dataset(_FILES[path.suffix], data_files=[place.path])
        else:
            loaded = library.load_dataset(place.path, place.name, revision=place.revision)
    except UserError:
        raise
    # Errors of many kinds come out of the library, of Arrow and of the network.
    except Exception as error:
        what = "" if place.local else " (no folder of that name exists either)"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"the data set {place.path} cannot be opened{what}: {reason}") from error
    if not isinstance(loaded, dict):
        if place.split not in (None, str(loaded.split or place.split)):
            raise UserError(f"{place.path} is the split {loaded.split} alone, not {place.split}: leave split away")
        return loaded
    split = place.split or (next(iter(loaded)) if len(loaded) == 1 else "train")
    if split not in loaded:
        raise UserError(f"{place.path} has no split {split!r}: choose one of {', '.join(loaded)}")
    return loaded[split]


@lru_cache(maxsize=4)
def _column(place: HuggingFacePlace, column: str) -> Any:
    dataset = _open(place).select_columns([column])
    library = _library()
    if isinstance(dataset.features[column], library.Image):
        return dataset.cast_column(column, library.Image(decode=False))
    return dataset


@lru_cache(maxsize=4)
def _allowed(place: HuggingFacePlace) -> tuple[str, ...]:
    """Folders in which files that rows name may lie."""
    if place.local:
        return (os.path.realpath(place.path),)
    config = _library().config
    return tuple(os.path.realpath(path) for path in (config.HF_DATASETS_CACHE, config.HF_CACHE_HOME))


def _image_column(config: HuggingFaceSource, dataset: Any) -> str:
    library = _library()
    if config.image_column is not None:
        return _check(dataset, config, config.image_column)
    found = [name for name, kind in dataset.features.items() if isinstance(kind, library.Image)]
    if not found:
        # What other tools write as parquet: the bytes alone, or beside the path.
        found = [name for name, kind in dataset.features.items() if _has_bytes(kind)]
    if len(found) == 1:
        return found[0]
    what = "several columns have pictures" if found else "no column has pictures"
    raise UserError(f"{config.path}: {what}, there are {', '.join(dataset.features)}: say which with image_column")


def _has_bytes(kind: Any) -> bool:
    if isinstance(kind, dict):
        return "bytes" in kind and _has_bytes(kind["bytes"])
    return getattr(kind, "dtype", "") in ("binary", "large_binary")


def _caption_columns(config: HuggingFaceSource, dataset: Any, image: str) -> tuple[str, ...]:
    asked = config.caption_column
    if asked is not None:
        return tuple(_check(dataset, config, name) for name in ([asked] if isinstance(asked, str) else asked))
    texts = [name for name, kind in dataset.features.items() if name != image and _is_text(kind)]
    found = [name for name in texts if name.lower() in CAPTION_COLUMNS] or texts
    if not found:
        found = [name for name, kind in dataset.features.items() if isinstance(kind, _library().ClassLabel)]
    if len(found) == 1:
        return tuple(found)
    what = "several columns could be captions" if found else "no column has captions"
    raise UserError(
        f"{config.path}: {what}, there are {', '.join(dataset.features)}: "
        "say which with caption_column, or caption_column: []"
    )


def _is_text(kind: Any) -> bool:
    return getattr(getattr(kind, "feature", kind), "dtype", "") in ("string", "large_string", "string_view")


def _captions(value: Any, labels: list[str] | None, config: HuggingFaceSource) -> tuple[str, ...] | None:
    if labels is None or value is None:
        return captions_of(value)
    return (fill(config.template, labels[value].replace("_", " ")),) if 0 <= value < len(labels) else ()


def _check(dataset: Any, config: HuggingFaceSource, name: str) -> str:
    if name not in dataset.features:
        raise UserError(f"{config.path} has no column {name!r}: there are {', '.join(dataset.features)}")
    return name
