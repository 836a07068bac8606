"""Files that lie elsewhere: which names are allowed, and how they are read through fsspec.

A name is a local path or a URL with one of `SCHEMES`. Nothing of it ever reaches a shell, and fsspec's chains
(`simplecache::...`) are refused. Credentials and endpoints are fsspec's and its back ends' own business: their usual
environment variables and `~/.config/fsspec` count.
"""

import contextlib
import glob
import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec.core

from mentor.errors import UserError

# Scheme -> the package that reads it; empty: nothing more is needed.
SCHEMES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "memory": "",
}
_WEB = ("http", "https")
# A request is too early, too slow or one of too many: the only refusals that may pass.
_PASSING = (408, 425, 429)
_MOST_NAMES = 1_000_000
_CHUNK = 1 << 20
_BLOCK = 4 << 20

T = TypeVar("T")


class Unreadable(UserError):
    """A file that cannot be read, now or for good; the message names it and the cause."""


class Missing(Unreadable):
    """A file that is not there."""


@dataclass(frozen=True)
class Patience:
    """How failures of a network are met.

    Attributes:
        attempts: at most so many for each piece; what makes progress starts counting anew.
        pause: seconds before the second attempt, doubled before each further one.
        timeout: seconds without a single byte after which a web server counts as gone.
    """

    attempts: int = 5
    pause: float = 1.0
    timeout: float = 60.0


PATIENT = Patience()


def check_url(text: str) -> str:
    """`text` itself, if it may name files: a local path or a URL, with braces (`{000..099}`, `{a,b}`) or without.

    Raises:
        UserError: it is something else; the message names it and what is allowed.
    """
    for name in expand_braces(text):
        match = re.match(r"([^/]*?):(.*)", name, re.DOTALL)
        odd = name in ("", "-") or name != name.strip() or any(ord(letter) < 32 or letter == "\x7f" for letter in name)
        chained = "::" in name or "://" in name[name.find("://") + 3 :]
        wrong = match is not None and (match[1] not in SCHEMES or not re.match(r"//[^/]|///[^/]", match[2]))
        if odd or chained or wrong:
            raise UserError(
                f"{shown(text)!r} cannot be read: allowed are local paths and URLs that begin with "
                f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}; nothing is piped or chained, "
                f"and a local path with a colon is written ./like:this"
            )
    return text


def is_remote(text: str) -> bool:
    """Whether `text`, which `check_url` has let pass, is a URL."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def shown(url: str) -> str:
    """The URL for messages: without a password and without what follows a question mark, where signatures stand."""
    if "://" not in url:
        return url
    return re.sub(r"\?.*", "?...", re.sub(r"(://[^/@]*):[^/@]*@", r"\1:...@", url), flags=re.DOTALL)


def expand_braces(pattern: str) -> list[str]:
    """All names that a pattern with `{a,b}` and `{000..123}` stands for, in order; other braces are plain letters.

    Raises:
        UserError: they are too many.
    """
    names = [pattern]
    done: list[str] = []
    while names:
        name = names.pop()
        for match in re.finditer(r"\{([^{}]*)\}", name):
            choices = _choices(match[1], pattern)
            if choices:
                # The last is taken next, so the first must come last.
                names += [name[: match.start()] + choice + name[match.end() :] for choice in reversed(choices)]
                break
        else:
            done.append(name)
        if len(names) + len(done) > _MOST_NAMES:
            raise UserError(f"{shown(pattern)!r} stands for more than {_MOST_NAMES:,} names: use a shorter range")
    # Nested braces give some names twice.
    return list(dict.fromkeys(done))


def list_files(pattern: str, patience: Patience = PATIENT) -> list[str]:
    """The files that a path or URL with braces and wildcards (`*`, `**`, `[..]`, locally also `?`) names, sorted.

    A name without wildcards stands for itself, whether or not there is such a file.

    Raises:
        UserError: nothing matches the wildcards, or they cannot be looked up.
    """
    check_url(pattern)
    found: set[str] = set()
    for name in expand_braces(pattern):
        if not re.search(r"[*\[]" if is_remote(name) else r"[*?\[]", name):
            found.add(name)
            continue
        names = _remote_glob(name, patience) if is_remote(name) else _local_glob(name)
        if not names:
            raise UserError(f"no file matches {shown(name)!r}: check the path")
        found.update(check_url(match) for match in names)
    return sorted(found)


def open_stream(url: str, patience: Patience = PATIENT) -> BinaryIO:
    """The file's bytes from the first on; a local file can seek, a remote one cannot.

    Where the network fails the stream goes on at the same byte, as far as the patience lasts.

    Raises:
        Unreadable: there is no such file or it cannot be opened; raised when a remote one is first read.
    """
    check_url(url)
    if is_remote(url):
        return io.BufferedReader(_Stream(url, patience), _CHUNK)
    try:
        return Path(url).open("rb")
    except FileNotFoundError:
        raise Missing(f"{url} does not exist: check the path") from None
    except OSError as error:
        raise Unreadable(f"{url} cannot be read: {error.strerror}") from None


def read_file(url: str, limit: int, patience: Patience = PATIENT) -> bytes:
    """The content of a small file.

    Raises:
        Missing: there is no such file.
        UserError: it cannot be read, or holds more than `limit` bytes.
    """
    try:
        with open_stream(url, patience) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise Unreadable(f"{shown(url)} cannot be read: {error.strerror}") from None
    if len(content) > limit:
        raise UserError(f"{shown(url)} is larger than the {limit:,} bytes that such a file may have")
    return content


def ask(url: str, patience: Patience = PATIENT) -> dict[str, Any]:
    """What the server tells of a remote file: `size`, and by which keys it likes its version (fsspec's `info`).

    Raises:
        Unreadable: it tells nothing.
    """

    def look() -> dict[str, Any]:
        system, path = _file_system(url, patience)
        system.invalidate_cache()
        return system.info(path)

    check_url(url)
    return _persist(url, patience, look)


class _Stream(io.RawIOBase):
    """A remote file read in order; after a failure it is opened anew and goes on where it was."""

    def __init__(self, url: str, patience: Patience) -> None:
        super().__init__()
        self._url, self._patience = url, patience
        self._file: Any = None
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = _persist(self._url, self._patience, lambda: self._read(len(buffer)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            if self._url.startswith(_WEB):
                if self._file is None:
                    self._file = _open(self._url, self._patience, block_size=0)
                    self._discard(self._position)
            else:
                if self._file is None:
                    self._file = _open(self._url, self._patience, block_size=_BLOCK, cache_type="readahead")
                if self._file.tell() != self._position:
                    self._file.seek(self._position)
            return self._file.read(size)
        except BaseException:
            self._drop()
            raise

    def _discard(self, size: int) -> None:
        """Not every web server can begin in the middle."""
        while size:
            content = self._file.read(min(size, _CHUNK))
            if not content:
                raise OSError("it has become shorter")
            size -= len(content)

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(Exception):
                file.close()


def _choices(inside: str, pattern: str) -> list[str]:
    """What a pair of braces stands for; nothing when it is just a pair of braces."""
    match = re.fullmatch(r"(\d+)\.\.(\d+)", inside, re.ASCII)
    if match is None:
        return inside.split(",") if "," in inside else []
    first, last = int(match[1][:18]), int(match[2][:18])
    if abs(last - first) >= _MOST_NAMES:
        raise UserError(f"{shown(pattern)!r} stands for more than {_MOST_NAMES:,} names: use a shorter range")
    width = max(len(match[1]), len(match[2])) if match[1].startswith("0") or match[2].startswith("0") else 0
    step = 1 if last >= first else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]


def _file_system(url: str, patience: Patience) -> tuple[Any, str]:
    """The file system of fsspec and the path within it."""
    scheme = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if scheme in _WEB:
            import aiohttp

            # aiohttp would give up after five minutes in all, however well the download goes.
            wait = aiohttp.ClientTimeout(total=None, sock_connect=patience.timeout, sock_read=patience.timeout)
            options = {
                "client_kwargs": {"timeout": wait, "trust_env": True},
                "headers": {"Accept-Encoding": "identity"},
            }
        return fsspec.core.url_to_fs(url, **options)
    except ImportError:
        raise UserError(
            f"{shown(url)} cannot be read: {scheme}:// needs the package {SCHEMES[scheme]}; "
            f"install it with `pip install {SCHEMES[scheme]}`"
        ) from None


def _open(url: str, patience: Patience, **options: Any) -> Any:
    system, path = _file_system(url, patience)
    return system.open(path, "rb", **options)


def _local_glob(pattern: str) -> list[str]:
    # Path.glob would need a folder to start from, and would rewrite the names.
    return glob.glob(pattern, recursive=True)  # noqa: PTH207


def _remote_glob(url: str, patience: Patience) -> list[str]:
    def look() -> list[str]:
        system, path = _file_system(url, patience)
        system.invalidate_cache()
        return [system.unstrip_protocol(name) for name in system.glob(path)]

    return _persist(url, patience, look)


def _persist(url: str, patience: Patience, action: Callable[[], T]) -> T:
    """What the action gives, tried again after a failure that may pass.

    Raises:
        Unreadable: the last failure.
    """
    for attempt in range(patience.attempts):
        try:
            return action()
        except UserError:
            raise
        # Every back end has its own classes of errors, and some derive from nothing but Exception.
        except Exception as error:
            status = _status(error)
            absent = isinstance(error, FileNotFoundError) and (status in (404, 410) or not _is_web_failure(url, error))
            if absent:
                raise Missing(f"{shown(url)} does not exist: check the address") from error
            lasting = isinstance(error, PermissionError | IsADirectoryError) or (
                status is not None and 400 <= status < 500 and status not in _PASSING
            )
            if lasting or attempt + 1 == patience.attempts:
                cause = " ".join((str(error.__cause__ or error) or type(error).__name__).replace(url, "").split())
                times = "" if lasting else f" after {patience.attempts} attempts"
                raise Unreadable(f"{shown(url)} cannot be read{times}: {cause}") from error
        time.sleep(patience.pause * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    for candidate in (error, error.__cause__):
        status = getattr(candidate, "status", None)
        if isinstance(status, int):
            return status
    return None


def _is_web_failure(url: str, error: BaseException) -> bool:
    """Whether fsspec calls a file missing although the web server was never heard."""
    return url.startswith(_WEB) and error.__cause__ is not None
