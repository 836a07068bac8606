"""A folder of pictures with captions in a table, in texts beside them, in the names of class folders, or nowhere."""

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from mentor.config import Config
from mentor.data.records import Dropped
from mentor.data.sources.items import FileBlob, Item
from mentor.data.sources.places import (
    MISSING,
    OTHER_PICTURES,
    PICTURES,
    UNKNOWN_KIND,
    Entry,
    Tree,
    digest_file,
    digest_listing,
    ending,
    find_folder,
    find_path,
    open_tree,
    stem,
)
from mentor.data.sources.tables import (
    NOT_UTF8,
    TABLES,
    UNREADABLE,
    Table,
    caption_columns,
    captions_of,
    image_column,
    is_text,
    read_table,
)
from mentor.data.storage.decoding import BadSample
from mentor.errors import UserError

MODES = ("auto", "sidecar", "metadata", "class", "none")
NO_CAPTION = "no caption"
_METADATA = ("metadata.jsonl", "metadata.csv")
# Folders of these names divide a data set; nobody wants "a photo of a train" from them unless they say so.
_NO_CLASSES = frozenset(
    {"train", "test", "val", "valid", "validation", "dev", "eval"}
    | {"images", "image", "imgs", "pictures", "photos", "data"}
)


class FolderSource(Config):
    """A folder of pictures, read with all folders in it.

    Attributes:
        kind: "folder".
        path: the folder.
        captions: where captions are: the name of a CSV, TSV or JSON lines file in the folder (or a path); "metadata"
            (Hugging Face's metadata.jsonl or metadata.csv); "sidecar" (`x.txt` beside `x.jpg`); "class" (the first
            folder is the class); "none"; "auto" takes the first of these that is there.
        image_column: column of a table with the pictures' paths; found by its name if null.
        caption_column: column or columns of a table with captions; found by name if null.
        template: caption of a picture in a class folder; `{name}` is the class.
    """

    kind: Literal["folder"]
    path: str
    captions: str = "auto"
    image_column: str | None = None
    caption_column: str | tuple[str, ...] | None = None
    template: str = "a photo of a {name}"

    @field_validator("captions")
    @classmethod
    def _known(cls, captions: str) -> str:
        if captions not in MODES and ending(captions) not in TABLES:
            raise ValueError(f"say {', '.join(MODES)} or the name of a .csv, .tsv or .jsonl file")
        return captions

    @field_validator("template")
    @classmethod
    def _template(cls, template: str) -> str:
        return check_template(template)


@dataclass(frozen=True)
class _Plan:
    """Where captions are; `tables` with the folder from which their paths count."""

    mode: Literal["table", "sidecar", "class", "none"]
    tables: tuple[tuple[Path, str], ...] = ()


def check_template(template: str) -> str:
    """The template, if `{name}` is all that it leaves open.

    Raises:
        ValueError: it has other braces.
    """
    rest = template.replace("{name}", "")
    if "{" in rest or "}" in rest:
        raise ValueError("{name} is the only thing a template can leave open")
    return template


def fill(template: str, name: str) -> str:
    """The template with a name in it, "a" made "an" where it has to be."""
    if name[:1].lower() in "aeiou":
        template = template.replace(" a {name}", " an {name}")
        template = "an {name}" + template.removeprefix("a {name}") if template.startswith("a {name}") else template
    return template.replace("{name}", name)


def read_folder(config: FolderSource, folder: Path) -> Iterator[Item | Dropped]:
    """The pictures of a folder by path, rows of tables that lead nowhere before them.

    Raises:
        UserError: no folder, no pictures, no captions, a table that cannot be understood or names no picture.
    """
    tree = open_tree(find_folder(config.path, folder, "the folder"))
    entries = tree.files()
    plan = _plan(config, tree, entries, folder)
    match plan.mode:
        case "table":
            yield from _with_tables(config, tree, entries, plan)
        case "sidecar":
            yield from _with_texts(tree, entries)
        case "class":
            yield from _with_classes(config, tree, entries)
        case "none":
            yield from (
                entry if isinstance(entry, Dropped) else _item(tree, entry.path) for entry in picture_entries(entries)
            )


def describe_folder(config: FolderSource, folder: Path) -> dict[str, str]:
    """The sha256 of the captions' tables, and one of the pictures' paths and sizes."""
    tree = open_tree(find_folder(config.path, folder, "the folder"))
    plan = _plan(config, tree, tree.files(), folder)
    texts = {".txt"} if plan.mode == "sidecar" else ()
    described = {config.path: digest_listing(tree, PICTURES, texts)}
    for path, base in plan.tables:
        name = posixpath.join(base, path.name) if path.is_relative_to(tree.root) else config.captions
        described[f"{config.path}: {name}"] = digest_file(path)
    return described


def picture_entries(entries: Sequence[Entry]) -> Iterator[Entry | Dropped]:
    """The pictures among the files of a folder, and what has a problem; anything else in it is nobody's business."""
    for entry in entries:
        if entry.problem:
            if entry.folder or entry.kind in PICTURES | OTHER_PICTURES:
                yield Dropped(entry.path, entry.problem)
        elif entry.kind in OTHER_PICTURES:
            yield Dropped(entry.path, UNKNOWN_KIND)
        elif entry.kind in PICTURES:
            yield entry


def _plan(config: FolderSource, tree: Tree, entries: list[Entry], folder: Path) -> _Plan:
    files = [entry for entry in entries if not entry.problem]
    pictures = [entry.path for entry in files if entry.kind in PICTURES]
    if not pictures:
        outside = [entry for entry in picture_entries(entries) if isinstance(entry, Dropped)]
        why = f" ({outside[0].origin}: {outside[0].reason})" if outside else ""
        raise UserError(f"{tree.root} holds no .jpg, .jpeg, .png or .webp picture{why}: give a folder of pictures")
    if config.captions in ("auto", "metadata"):
        metadata = [entry.path for entry in files if posixpath.basename(entry.path) in _METADATA]
        if metadata:
            return _Plan("table", tuple((tree.root / path, posixpath.dirname(path)) for path in metadata))
        if config.captions == "metadata":
            raise UserError(f"{tree.root} holds no metadata.jsonl or metadata.csv: say where captions are, or auto")
    if config.captions == "auto":
        return _recognised(tree, files, pictures)
    if config.captions == "sidecar":
        return _Plan("sidecar")
    if config.captions in ("class", "none"):
        return _Plan("class" if config.captions == "class" else "none")
    found = tree.find(config.captions)
    path = tree.root / found.path if not found.problem else find_path(config.captions, folder, "the captions' file")
    return _Plan("table", ((path, ""),))


def _recognised(tree: Tree, files: list[Entry], pictures: list[str]) -> _Plan:
    tables = [entry.path for entry in files if "/" not in entry.path and entry.kind in TABLES]
    named = [path for path in tables if stem(path).lower() == "captions"] or tables
    if len(named) > 1:
        raise UserError(f"{tree.root} holds {', '.join(named)}: say which has the captions, as captions: {named[0]}")
    if named:
        return _Plan("table", ((tree.root / named[0], ""),))
    texts = {stem(entry.path) for entry in files if entry.kind == ".txt"}
    if any(stem(path) in texts for path in pictures):
        return _Plan("sidecar")
    classes = {path.partition("/")[0] for path in pictures if "/" in path}
    if len(classes) > 1 and all("/" in path for path in pictures) and not classes & _NO_CLASSES:
        return _Plan("class")
    raise UserError(
        f"{tree.root} holds {len(pictures)} pictures and no captions: looked for metadata.jsonl or metadata.csv, one "
        "captions file (.csv, .tsv, .jsonl), x.txt beside x.jpg, and two or more class folders; add one of them, or "
        "say captions: none (pictures alone) or captions: class (the folder's name)"
    )


def _item(tree: Tree, path: str, captions: tuple[str, ...] = (), **attributes: str | int) -> Item:
    return Item(path, FileBlob(f"{tree.root}/{path}"), captions, attributes=attributes)


def _with_texts(tree: Tree, entries: list[Entry]) -> Iterator[Item | Dropped]:
    texts = {stem(entry.path): entry for entry in reversed(entries) if entry.kind == ".txt"}
    for entry in picture_entries(entries):
        if isinstance(entry, Dropped):
            yield entry
        elif (beside := texts.get(stem(entry.path))) is None:
            yield Dropped(entry.path, NO_CAPTION)
        else:
            text = text_of(tree, beside, entry.path)
            yield text if isinstance(text, Dropped) else _item(tree, entry.path, (text,) if text else ())


def text_of(tree: Tree, entry: Entry, picture: str) -> str | Dropped:
    """The stripped text of a small file in a folder, or why its picture has none."""
    if entry.problem:
        return Dropped(picture, entry.problem, entry.path)
    try:
        return tree.text(entry.path)
    except OSError as error:
        return Dropped(picture, "unreadable file", f"{entry.path}: {error.strerror}")
    except BadSample as bad:
        return Dropped(picture, NOT_UTF8 if "UTF-8" in bad.reason else bad.reason, f"{entry.path}: {bad.detail}")


def _with_classes(config: FolderSource, tree: Tree, entries: list[Entry]) -> Iterator[Item | Dropped]:
    pictures = list(picture_entries(entries))
    paths = [entry.path for entry in pictures if isinstance(entry, Entry)]
    ids = {name: index for index, name in enumerate(sorted({path.partition("/")[0] for path in paths if "/" in path}))}
    if not ids:
        raise UserError(f"{tree.root} has no folders of pictures that could be classes: put each class into a folder")
    for entry in pictures:
        if isinstance(entry, Dropped):
            yield entry
        elif "/" not in entry.path:
            yield Dropped(entry.path, "not in a class folder")
        else:
            name = entry.path.partition("/")[0]
            caption = fill(config.template, name.replace("_", " "))
            yield _item(tree, entry.path, (caption,), **{"class": name, "class_id": ids[name]})


@dataclass
class _Named:
    """What tables say of pictures: captions by path, the paths whose rows were all bad, and what is to be reported."""

    captions: dict[str, list[str]] = field(default_factory=dict)
    bad: dict[str, Dropped] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    rows: int = 0


def _with_tables(config: FolderSource, tree: Tree, entries: list[Entry], plan: _Plan) -> Iterator[Item | Dropped]:
    named = _Named()
    for path, base in plan.tables:
        _add_table(config, tree, read_table(path), base, named)
    if not named.captions and not named.bad:
        tables = ", ".join(str(path) for path, _ in plan.tables)
        first = f", the first: {named.dropped[0].origin} {named.dropped[0].detail}" if named.dropped else ""
        raise UserError(
            f"none of the pictures in {named.rows} rows of {tables} is in {tree.root}{first}: "
            "check path and image_column"
        )
    yield from named.dropped
    reported = {dropped.detail for dropped in named.dropped}
    for entry in picture_entries(entries):
        if isinstance(entry, Dropped):
            # A row has already told of it.
            if entry.origin not in reported or entry.reason == UNKNOWN_KIND:
                yield entry
        elif entry.path in named.captions:
            yield _item(tree, entry.path, tuple(named.captions[entry.path]))
        else:
            yield named.bad.get(entry.path) or Dropped(entry.path, NO_CAPTION)


def _add_table(config: FolderSource, tree: Tree, table: Table, base: str, named: _Named) -> None:
    image = image_column(table, config.image_column)
    columns = caption_columns(table, config.caption_column, image)
    for row in table.rows:
        named.rows += 1
        origin = f"{posixpath.join(base, table.path.name)}:{row.line}"
        name = row.values.get(image)
        if row.problem or not isinstance(name, str):
            named.dropped.append(Dropped(origin, UNREADABLE, row.problem or f"no path in {image}"))
            continue
        found = _find(tree, base, name.strip())
        if found.problem:
            named.dropped.append(Dropped(origin, found.problem, found.path.encode(errors="replace").decode()))
            continue
        if found.kind in OTHER_PICTURES:
            # The file itself is reported.
            named.bad[found.path] = Dropped(found.path, UNKNOWN_KIND)
        elif found.kind not in PICTURES:
            named.dropped.append(Dropped(origin, UNKNOWN_KIND, found.path))
        else:
            _add_captions([row.values.get(column) for column in columns], origin, found.path, named)


def _add_captions(cells: list[object], origin: str, path: str, named: _Named) -> None:
    captions = [captions_of(cell) for cell in cells]
    if any(texts is None for texts in captions):
        named.bad[path] = Dropped(path, UNREADABLE, f"{origin}: a caption is no text")
    elif not all(is_text(text) for texts in captions for text in texts or ()):
        named.bad[path] = Dropped(path, NOT_UTF8, origin)
    else:
        named.captions.setdefault(path, []).extend(text for texts in captions for text in texts or ())


def _find(tree: Tree, base: str, name: str) -> Entry:
    """What a row names: from the table's folder, or from `images` beside the table."""
    if name.startswith("/"):
        return tree.find(name)
    found = tree.find(posixpath.join(base, name))
    if found.problem == MISSING:
        inside = tree.find(posixpath.join(base, "images", name))
        return found if inside.problem else inside
    return found
