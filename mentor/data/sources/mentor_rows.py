"""MENTOR's own JSON lines (arXiv 2507.09574, its training code): each row becomes an item for one task.

`generation_only` marks text-to-image, `do_mask` segmentation, `do_replace` recovery; a row whose two pictures are the
same one is reconstruction; any other shows a reference (`image_path`) and asks for `source_image`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mentor.config import Config
from mentor.data.records import Dropped
from mentor.data.sources.items import FileBlob, Item, ItemObject, ItemView
from mentor.data.sources.masks import FileMask
from mentor.data.sources.places import MISSING, PICTURES, UNKNOWN_KIND, Entry, Tree, digest_file, find_folder, find_path
from mentor.data.sources.tables import NOT_UTF8, UNREADABLE, is_text, parse_line
from mentor.errors import UserError

TaskName = Literal["text_to_image", "reconstruct", "segment", "recover", "subject"]
TASK_NAMES: tuple[TaskName, ...] = ("text_to_image", "reconstruct", "segment", "recover", "subject")
_MARK = "<image>"
_FLAGS = ("generation_only", "do_mask", "do_replace", "input_img_list")


class MentorRowsSource(Config):
    """A file of MENTOR's training rows.

    Attributes:
        kind: "mentor_rows".
        path: the JSON lines file, or several.
        root: folder or folders in which the rows' paths lie; the file's own folder if empty.
        strip: beginnings that are taken off the rows' paths, such as the folder they had on another machine.
        tasks: rows for other tasks are dropped; all stay if empty.
        unmarked: what a row with one object and no flag is: a reference for "subject", or a mask for "segment".
    """

    kind: Literal["mentor_rows"]
    path: str | tuple[str, ...]
    root: str | tuple[str, ...] = ()
    strip: tuple[str, ...] = ()
    tasks: tuple[TaskName, ...] = ()
    unmarked: Literal["subject", "segment"] = Field(default="subject")


def read_mentor_rows(config: MentorRowsSource, folder: Path) -> Iterator[Item | Dropped]:
    """The rows in their own order.

    Raises:
        UserError: a file or folder is missing, or more than half of a file's rows cannot be read.
    """
    paths = _files(config, folder)
    for path in paths:
        places = _Places(config, path, folder)
        rows = unreadable = 0
        shown = path.name if len({other.name for other in paths}) == len(paths) else str(path)
        first = ""
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    rows += 1
                    outcome = _outcome(config, places, f"{shown}:{number}", number, line)
                    if isinstance(outcome, Dropped) and outcome.reason == UNREADABLE:
                        unreadable += 1
                        first = first or f"line {number}: {outcome.detail}"
                    yield outcome
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        if not rows:
            raise UserError(f"{path} has no rows")
        if 2 * unreadable > rows:
            raise UserError(f"{path}: {unreadable} of {rows} rows are none of MENTOR's, {first}: give another file")


def describe_mentor_rows(config: MentorRowsSource, folder: Path) -> dict[str, str]:
    """The sha256 of the files."""
    typed = [config.path] if isinstance(config.path, str) else config.path
    return {name: digest_file(path) for name, path in zip(typed, _files(config, folder), strict=True)}


class _Bad(Exception):
    """Why a row is no item: reason and detail."""


@dataclass(frozen=True)
class _Row:
    """A row with its types checked; objects and pictures as lists."""

    task: TaskName
    caption: str
    target: str
    others: tuple[str, ...]
    names: tuple[str, ...]


class _Places:
    """The folders in which a file's pictures lie."""

    def __init__(self, config: MentorRowsSource, path: Path, folder: Path) -> None:
        typed = [config.root] if isinstance(config.root, str) else config.root
        roots = [find_folder(name, folder, "the folder of pictures") for name in typed] or [path.parent]
        self._trees = [Tree(root) for root in roots]
        self._strip = config.strip

    def picture(self, path: str) -> tuple[FileBlob, str]:
        """The picture at a path of a row, and its path within its folder.

        Raises:
            _Bad: it is in none of the folders, or no picture.
        """
        prefix = next((prefix for prefix in self._strip if path.startswith(prefix)), "")
        path = path.removeprefix(prefix)
        # What is left of a path whose beginning was taken off counts from the folders.
        path = path.lstrip("/") if prefix else path
        found = Entry(path, MISSING)
        for tree in self._trees:
            found = tree.find(path)
            if not found.problem:
                if found.kind not in PICTURES:
                    raise _Bad(UNKNOWN_KIND, path)
                return FileBlob(f"{tree.root}/{found.path}"), found.path
        raise _Bad(found.problem, path)


def _files(config: MentorRowsSource, folder: Path) -> list[Path]:
    typed = [config.path] if isinstance(config.path, str) else config.path
    paths = [find_path(name, folder, "the file of rows") for name in typed]
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder: give its JSON lines files")
    return paths


def _outcome(config: MentorRowsSource, places: _Places, origin: str, number: int, line: bytes) -> Item | Dropped:
    try:
        parsed = parse_line(number, line.removeprefix(b"\xef\xbb\xbf"))
        if parsed.problem:
            raise _Bad(UNREADABLE, parsed.problem)
        row = _row(config, parsed.values)
        if config.tasks and row.task not in config.tasks:
            raise _Bad("task is not asked for", row.task)
        return _item(places, origin, row)
    except _Bad as bad:
        reason, detail = bad.args
        return Dropped(origin, reason, detail.encode(errors="replace").decode())


def _row(config: MentorRowsSource, values: dict[str, Any]) -> _Row:
    flags = {flag: _flag(values, flag) for flag in _FLAGS}
    if flags["input_img_list"]:
        raise _Bad("interleaved rows have no task", "input_img_list")
    text = values.get("input_text")
    if not isinstance(text, str):
        raise _Bad(UNREADABLE, "no input_text")
    if not is_text(text):
        raise _Bad(NOT_UTF8, "input_text")
    names = _texts(values, "objects")
    pictures = _texts(values, "image_path")
    source = values.get("source_image")
    if not all(is_text(name) for name in names):
        raise _Bad(NOT_UTF8, "objects")
    task = _task(config, values, flags, names, pictures)
    alone = task in ("text_to_image", "reconstruct")
    # Their target is `image_path`; it is the same picture in reconstruction.
    target = pictures[0] if alone and pictures else source
    if not isinstance(target, str) or (not alone and not pictures):
        raise _Bad(UNREADABLE, "no source_image" if not isinstance(target, str) else "no image_path")
    return _Row(task, text.replace(_MARK, "").strip(), target, pictures, names)


def _task(
    config: MentorRowsSource,
    values: dict[str, Any],
    flags: dict[str, bool],
    names: tuple[str, ...],
    pictures: tuple[str, ...],
) -> TaskName:
    said = values.get("task")
    if said is not None:
        if said not in TASK_NAMES:
            raise _Bad("unknown task", str(said))
        return said
    if flags["generation_only"]:
        return "text_to_image"
    if flags["do_mask"]:
        return "segment"
    if flags["do_replace"]:
        return "recover"
    if pictures and values.get("source_image") == pictures[0]:
        return "reconstruct"
    # Several objects are masks whose crops ask for the whole picture: recovery is the task that does this.
    return "recover" if isinstance(values.get("image_path"), list) or len(names) > 1 else config.unmarked


def _item(places: _Places, origin: str, row: _Row) -> Item:
    picture, name = places.picture(row.target)
    captions = (row.caption,) if row.caption else ()
    objects: tuple[ItemObject, ...] = ()
    views: tuple[ItemView, ...] = ()
    if row.task in ("segment", "recover", "subject"):
        if not row.names:
            raise _Bad("no object", "objects is null")
        if len(row.names) != len(row.others):
            raise _Bad("objects and pictures differ in number", f"{len(row.names)} and {len(row.others)}")
        if row.task == "subject":
            # The references: each is another picture of an object, and the first one is the subject.
            objects = tuple(ItemObject(name) for name in row.names[:1])
            views = (ItemView(places.picture(row.others[0])[0]),)
        else:
            masks = [FileMask(places.picture(path)[0]) for path in row.others]
            objects = tuple(ItemObject(name, mask) for name, mask in zip(row.names, masks, strict=True))
    # Rows of one picture for several tasks stay on one side of the split.
    return Item(origin, picture, captions, objects, views, name, tasks=(row.task,))


def _flag(values: dict[str, Any], name: str) -> bool:
    value = values.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    if name == "input_img_list" and isinstance(value, list):
        return bool(value)
    raise _Bad(UNREADABLE, f"{name} is neither true nor false")


def _texts(values: dict[str, Any], name: str) -> tuple[str, ...]:
    value = values.get(name)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise _Bad(UNREADABLE, f"{name} is neither text nor a list of texts")
    return tuple(text.strip() for text in texts)
