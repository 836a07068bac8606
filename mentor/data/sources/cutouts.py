"""A plain folder of RGBA pictures, read as if it were an archive of cut-outs."""

import hashlib
import posixpath
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mentor.data.sources.places import MISSING, Tree, digest_file, stem
from mentor.data.sources.tables import parse_lines
from mentor.data.storage.decoding import BadSample, peek_image
from mentor.errors import UserError

_INDEX = "index.jsonl"
_CUTOUTS = frozenset({".png", ".webp"})
_NEVER = frozenset({".jpg", ".jpeg"})
_DEFAULTS = {"style": "folder", "number": "singular"}


class CutoutFolder:
    """A folder of PNG and WebP pictures: `rows` is its `index.jsonl`, or what the names of files and folders say.

    Without an index a picture at the top is called by its file ("red_apple.png": "red apple"), one in a folder by the
    first folder.

    Raises:
        UserError: no pictures, an unreadable index, or a picture whose format or header has no transparency.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tree = Tree(path)
        self.rows: list[dict[str, Any]] = self._indexed() if not self._tree.find(_INDEX).problem else self._named()
        if not self.rows:
            raise UserError(f"{path} holds no .png or .webp picture: give a folder of RGBA cut-outs")
        for row in self.rows:
            self._check(row["file"])

    def picture(self, member: str, mode: str) -> np.ndarray:
        """The pixels of one file.

        Raises:
            UserError: it is missing, no picture, or opaque throughout.
        """
        path = self._place(member)
        try:
            with Image.open(path, formats=("PNG", "WEBP")) as opened:
                pixels = np.array(opened.convert("RGBA"))
                wanted = pixels if mode == "RGBA" else np.array(opened.convert(mode))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise _unreadable(path) from None
        if pixels[..., 3].min() == 255:
            raise _opaque(path)
        return wanted

    def digest(self) -> str:
        """The sha256 over the paths and contents of the pictures and the index."""
        files = {row["file"] for row in self.rows} | ({_INDEX} if not self._tree.find(_INDEX).problem else set())
        lines = [f"{name} {digest_file(self._place(name))}\n" for name in sorted(files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _indexed(self) -> list[dict[str, Any]]:
        index = self._tree.root / _INDEX
        rows = []
        try:
            parsed = list(parse_lines(index.read_bytes()))
        except OSError as error:
            raise UserError(f"{index} cannot be read: {error.strerror}") from None
        for row in parsed:
            file = row.values.get("file")
            if row.problem or not isinstance(file, str):
                raise UserError(
                    f"{index}, line {row.line}: {row.problem or 'no file'}: each line is an object with file"
                )
            guessed = {"id": stem(file), "name": _name(stem(posixpath.basename(file))), **_DEFAULTS}
            rows.append({**guessed, **row.values})
        return rows

    def _named(self) -> list[dict[str, Any]]:
        rows = []
        for entry in self._tree.files():
            if entry.kind not in _CUTOUTS | _NEVER:
                continue
            folder, slash, _ = entry.path.partition("/")
            name = _name(folder if slash else stem(entry.path))
            rows.append({"id": stem(entry.path), "file": entry.path, "name": name, **_DEFAULTS})
        return rows

    def _check(self, file: str) -> None:
        """Look at the header alone: every process that composes scenes does this for all pictures."""
        path = self._place(file)
        try:
            header = peek_image(path.read_bytes())
        except (OSError, BadSample):
            raise _unreadable(path) from None
        if not header.has_alpha:
            raise _opaque(path)

    def _place(self, file: str) -> Path:
        found = self._tree.find(file)
        if found.problem:
            why = "is missing" if found.problem == MISSING else f"cannot be used ({found.problem})"
            raise UserError(f"{self.path}: {file} {why}: mend {_INDEX} or the folder")
        return self._tree.root / found.path


def _name(text: str) -> str:
    return " ".join(text.replace("_", " ").replace("-", " ").split()) or text


def _opaque(path: Path) -> UserError:
    return UserError(f"{path} has no transparency: cut-outs are RGBA PNG or WebP whose alpha marks the object")


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path} is no readable PNG or WebP picture: replace or remove it")
