"""The files of a data set, wherever they lie: its manifest, its indexes and its shards."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentor.data.storage.cache import ShardCache
from mentor.data.storage.index import Index, load_index
from mentor.data.storage.manifest import MANIFEST, parse_manifest, read_manifest
from mentor.data.storage.remote import Missing, check_url, is_remote, read_file
from mentor.errors import UserError

_LARGEST_MANIFEST = 256 << 20


@dataclass(frozen=True)
class CacheSettings:
    """Where shards from elsewhere are kept, and how much they may take.

    Attributes:
        folder: None is `mentor/shards` in the user's cache folder.
        gigabytes: of all files together.
    """

    folder: str | None = None
    gigabytes: float = 50.0

    def cache(self) -> ShardCache:
        """The cache, its folder made."""
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = Path(self.folder or f"{home}/mentor/shards").expanduser()
        return ShardCache(folder, int(self.gigabytes * 1e9))


class DataFiles:
    """Opens the files of a data set.

    Attributes:
        manifest: checked.

    Args:
        root: folder or URL with the manifest.
        cache: used only if something lies elsewhere.

    Raises:
        UserError: there is no data set, or it is damaged.
    """

    def __init__(self, root: Path | str, cache: CacheSettings | None = None) -> None:
        self.root = str(root)
        self._settings = cache or CacheSettings()
        self._cache: ShardCache | None = None
        self.manifest: dict[str, Any] = self._read_manifest()
        # Only tars that were indexed where they lie have a base of their own.
        self._base = check_url(self.manifest.get("base") or self.root)

    def index(self, row: Mapping[str, Any]) -> Index:
        """The index that a row of the manifest describes."""
        name = join(self.root, row["path"])
        if is_remote(name):
            return load_index(self._cached().fetch(name, row["bytes"], row["sha256"]))[0]
        size = _size(name)
        if size != row["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes instead of {row['bytes']}"
            raise UserError(f"the index {name} {state}: run the make_shards.py command again that made {self.root}")
        return load_index(Path(name))[0]

    def open(self, row: Mapping[str, Any]) -> int:
        """A descriptor, opened for reading, of the shard that a row of the manifest describes.

        Raises:
            OSError: a local file cannot be opened.
            UserError: a remote one cannot be had, or is not what the manifest says.
        """
        name = self.name(row)
        if is_remote(name):
            return self._cached().open(name, row["bytes"], row["sha256"])
        return os.open(name, os.O_RDONLY)

    def name(self, row: Mapping[str, Any]) -> str:
        """Path or URL of that shard."""
        return join(self._base, row["path"])

    def fault(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with a local shard at first sight; None if nothing is. Remote ones are checked when read."""
        name = self.name(row)
        if is_remote(name):
            return None
        size = _size(name)
        if size == row["bytes"]:
            return None
        return "is missing" if size is None else f"has {size} bytes instead of {row['bytes']}"

    def _read_manifest(self) -> dict[str, Any]:
        if not is_remote(check_url(self.root)):
            return read_manifest(Path(self.root))
        try:
            content = read_file(join(self.root, MANIFEST), _LARGEST_MANIFEST)
        except Missing:
            raise UserError(
                f"no shards in {self.root} (there is no {MANIFEST}): copy a whole data set there, "
                "or index tars with `python tools/make_shards.py index`"
            ) from None
        return parse_manifest(content, self.root)

    def _cached(self) -> ShardCache:
        if self._cache is None:
            self._cache = self._settings.cache()
        return self._cache


def join(base: str, path: str) -> str:
    """The path below a folder or URL; one that is absolute or a URL stays as it is."""
    if is_remote(path) or not is_remote(base):
        return path if is_remote(path) else str(Path(base) / path)
    return f"{base.rstrip('/')}/{path}"


def _size(name: str) -> int | None:
    path = Path(name)
    return path.stat().st_size if path.is_file() else None
