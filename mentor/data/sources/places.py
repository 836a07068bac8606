"""Where files are: paths that people type are trusted and found, paths that stand in data never leave their folder."""

import hashlib
import os
import posixpath
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mentor.data.decoding import LIMITS, decode_text
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


class Entry(NamedTuple):
    """What lies at a place in a folder.

    Attributes:
        path: relative, with `/`; may be shown to people.
        problem: why it cannot be read, a few fixed words; empty for a plain file.
        folder: whether the problem is one of a whole folder.
    """

    path: str
    problem: str = ""
    folder: bool = False

    @property
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

    def files(self) -> list[Entry]:
        """All files, and the folders that cannot be entered, sorted by path."""
        return sorted(self._walk(""))

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


def read_text(path: Path) -> str:
    """The stripped text of a small file.

    Raises:
        OSError: it cannot be read.
        BadSample: it is too long or not UTF-8.
    """
    with path.open("rb") as file:
        return decode_text(file.read(LIMITS.text_bytes + 1)).strip()


def digest_file(path: Path) -> str:
    """The sha256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def digest_listing(tree: Tree, kinds: Iterable[str], whole: Iterable[str] = ()) -> str:
    """One sha256 of the files of these kinds by path and size, the same for every copy of the folder.

    Args:
        tree: the folder.
        kinds: endings of files that count with their size.
        whole: endings of files that count with all their bytes.
    """
    digest = hashlib.sha256()
    kinds, whole = frozenset(kinds), frozenset(whole)
    for entry in tree.files():
        if not entry.problem and entry.kind in kinds | whole:
            path = tree.root / entry.path
            fact = digest_file(path) if entry.kind in whole else str(path.stat()[stat.ST_SIZE])
            digest.update(f"{entry.path}\0{fact}\n".encode())
    return digest.hexdigest()


def _is_utf8(name: str) -> bool:
    return name.isascii() or name == name.encode("utf-8", "replace").decode()
