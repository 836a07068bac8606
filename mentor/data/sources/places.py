"""Where files are: paths that people type are trusted and found, paths that stand in data never leave their folder."""

import hashlib
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mentor.data.sources.items import read_file
from mentor.data.storage.decoding import LIMITS, decode_text
from mentor.errors import UserError

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
OTHER_PICTURES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jxl", ".pbm", ".pgm", ".pnm", ".ppm"}
    | {".psd", ".svg", ".tga", ".tif", ".tiff"}
)

MISSING = "missing file"
OUTSIDE = "path outside the folder"
LINKED = "linked folder"
NOT_PLAIN = "not a plain file"
BAD_NAME = "file name is not UTF-8"
UNKNOWN_KIND = "unknown kind of picture"
_FOLDER = "folder"


@dataclass(frozen=True, order=True)
class Entry:
    """What lies at a place in a folder.

    Attributes:
        path: relative, with `/`; may be shown to people.
        problem: why it cannot be read, a few fixed words; empty for a plain file.
        folder: whether the problem is one of a whole folder.
    """

    path: str
    problem: str = ""
    folder: bool = False

    @cached_property
    def kind(self) -> str:
        """The ending in lower case, with its dot."""
        return ending(self.path)


class Tree:
    """A folder as it is listed, once each: nothing that leads out of it through links or `..` is ever offered.

    Hidden files (`.name`) and what archive tools leave behind (`__MACOSX`) are not seen.

    Attributes:
        root: the folder, without links.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self._prefixes = tuple({f"{os.path.normpath(root.absolute())}/", f"{self.root}/"})
        self._folders: dict[str, dict[str, str]] = {}
        self._composed: dict[str, dict[str, str]] = {}
        self._files: list[Entry] | None = None
        self._contents: dict[str, bytes] = {}

    def files(self) -> list[Entry]:
        """All files, and the folders that cannot be entered, sorted by path."""
        if self._files is None:
            self._files = sorted(self._walk(""), key=lambda entry: (entry.path, entry.problem))
        return self._files

    def text(self, path: str) -> str:
        """The stripped text of a small file; it is read once.

        Raises:
            OSError: it cannot be read.
            BadSample: it is too long or not UTF-8.
        """
        return decode_text(self.content(path)).strip()

    def content(self, path: str) -> bytes:
        """The bytes of a small file, no more than one more than a text may have; they are read once."""
        if path not in self._contents:
            self._contents[path] = read_file(f"{self.root}/{path}", LIMITS.text_bytes + 1)
        return self._contents[path]

    def find(self, path: str) -> Entry:
        """What lies at a path that stands in data: relative, or absolute within this folder."""
        relative = self._relative(path)
        if relative is None:
            return Entry(path, OUTSIDE)
        found = self._lookup(relative)
        if found.problem == MISSING and "\\" in path:
            return self.find(path.replace("\\", "/"))
        return found

    def _relative(self, path: str) -> str | None:
        if path.startswith("/"):
            path = posixpath.normpath("/" + path.lstrip("/"))
            return next((path.removeprefix(prefix) for prefix in self._prefixes if path.startswith(prefix)), None)
        path = posixpath.normpath(path)
        return None if path == ".." or path.startswith("../") else path

    def _lookup(self, path: str) -> Entry:
        place = ""
        *folders, name = path.split("/")
        for folder in folders:
            folder, kind = self._member(place, folder)
            place = f"{place}{folder}/"
            if kind != _FOLDER:
                return Entry(path, kind or MISSING)
        name, kind = self._member(place, name)
        return Entry(place + name, MISSING if kind == _FOLDER else kind)

    def _member(self, place: str, name: str) -> tuple[str, str]:
        """The name as the disk spells it and what it is; composed letters are the same as letters with accents."""
        members = self._members(place)
        if name in members:
            return name, members[name]
        if name.isascii():
            return name, MISSING
        if place not in self._composed:
            self._composed[place] = {unicodedata.normalize("NFC", known): known for known in sorted(members)}
        spelled = self._composed[place].get(unicodedata.normalize("NFC", name), name)
        return spelled, members.get(spelled, MISSING)

    def _members(self, place: str) -> dict[str, str]:
        """Name -> what it is: empty for a file, `_FOLDER`, or a problem."""
        if place not in self._folders:
            try:
                with os.scandir(self.root / place) as entries:
                    self._folders[place] = {
                        entry.name: self._kind(entry)
                        for entry in entries
                        if not entry.name.startswith(".") and entry.name != "__MACOSX"
                    }
            except OSError as error:
                raise UserError(f"{self.root / place} cannot be listed: {error.strerror}") from None
        return self._folders[place]

    def _kind(self, entry: os.DirEntry[str]) -> str:
        if not _is_utf8(entry.name):
            return BAD_NAME
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not f"{target}/".startswith(f"{self.root}/"):
                return OUTSIDE
            return LINKED if os.path.isdir(target) else "" if os.path.isfile(target) else MISSING  # noqa: PTH112, PTH113
        if entry.is_dir(follow_symlinks=False):
            return _FOLDER
        return "" if entry.is_file(follow_symlinks=False) else NOT_PLAIN

    def _walk(self, place: str) -> Iterator[Entry]:
        for name, kind in self._members(place).items():
            if kind == _FOLDER:
                yield from self._walk(f"{place}{name}/")
            elif not kind:
                yield Entry(place + name)
            else:
                shown = os.fsencode(place + name).decode("utf-8", "backslashreplace")
                linked = kind in (OUTSIDE, BAD_NAME) and (self.root / place / name).is_dir()
                yield Entry(shown, kind, linked or kind == LINKED)


_shared: dict[str, Tree] | None = None


@contextmanager
def shared_trees() -> Iterator[None]:
    """While it lasts, each folder is listed once, and its texts are read once, by whoever asks for its tree."""
    global _shared
    _shared = {}
    try:
        yield
    finally:
        _shared = None


def open_tree(root: Path) -> Tree:
    """The tree of a folder."""
    if _shared is None:
        return Tree(root)
    return _shared.setdefault(str(root), Tree(root))


def ending(path: str) -> str:
    """The ending of a path in lower case, with its dot."""
    # The library's own way takes five times as long, and this is asked of every file several times.
    _, dot, kind = path.rpartition(".")
    return f".{kind.lower()}" if dot and "/" not in kind else ""


def stem(path: str) -> str:
    """A path without its ending."""
    return path[: -len(ending(path))] if ending(path) else path


def find_path(typed: str, folder: Path, what: str) -> Path:
    """The path that a person means: from the recipe's folder if it exists there, else from the current one.

    Raises:
        UserError: it exists in neither.
    """
    wanted = Path(typed).expanduser()
    places = list(dict.fromkeys([(folder / wanted).absolute(), wanted.absolute()]))
    for place in places:
        if place.exists():
            return place
    raise UserError(f"{what} {typed} does not exist: looked for {' and '.join(map(str, places))}")


def find_folder(typed: str, folder: Path, what: str) -> Path:
    """The folder that a person means.

    Raises:
        UserError: it does not exist or is a file.
    """
    path = find_path(typed, folder, what)
    if not path.is_dir():
        raise UserError(f"{what} {path} is a file: give a folder")
    return path


def digest_file(path: Path | str) -> str:
    """The sha256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            digest = hashlib.sha256()
            # Most are small, and the library's way costs more than reading them.
            while content := os.read(file, 1 << 16):
                digest.update(content)
            return digest.hexdigest()
        finally:
            os.close(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def digest_listing(tree: Tree, kinds: Iterable[str], whole: Iterable[str] = ()) -> str:
    """One sha256 of the files of these kinds by path and size, the same for every copy of the folder.

    Args:
        tree: the folder.
        kinds: endings of files that count with their size.
        whole: endings of small files that count with their bytes.
    """
    digest = hashlib.sha256()
    whole = frozenset(whole)
    counted = whole | frozenset(kinds)
    root = str(tree.root)
    for entry in tree.files():
        if not entry.problem and entry.kind in counted:
            try:
                if entry.kind in whole:
                    fact = hashlib.sha256(tree.content(entry.path)).hexdigest()
                else:
                    fact = str(os.stat(f"{root}/{entry.path}").st_size)  # noqa: PTH116
            except OSError as error:
                raise UserError(f"{root}/{entry.path} cannot be read: {error.strerror}") from None
            digest.update(f"{entry.path}\0{fact}\n".encode())
    return digest.hexdigest()


def _is_utf8(name: str) -> bool:
    return name.isascii() or name == name.encode("utf-8", "replace").decode()
