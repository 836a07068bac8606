"""Local copies of remote shards in a folder of bounded size, safe between processes.

What it promises to any number of processes and threads that share the folder:

- A file appears whole, at its size and with its sha256, or not at all.
- Each file is downloaded by one of those that want it, while the others wait.
- The sizes of all files in the folder, those being downloaded included, never exceed the limit. Who is in the way is
  evicted, least recently used first. A reader that has such a file open keeps its content until it closes it, and the
  disk keeps the bytes as long.
- A file whose sha256 is known is reused without the network. Without a sha256, the server is asked each time whether
  the file is still the one that was cached, by its ETag, its time and its size, as far as it tells them.
- What a killed process left half done is never taken for a file, and is removed by the next download.

The folder must lie on a file system with working `flock`: a local disk.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from mentor.data.storage.remote import PATIENT, Patience, Unreadable, ask, check_url, is_remote, open_stream, shown
from mentor.errors import UserError

_VERSION_KEYS = ("ETag", "etag", "Content-MD5", "md5Hash", "blob_id", "generation", "Last-Modified")
_VERSION_KEYS += ("LastModified", "last_modified", "last_commit", "mtime", "modified", "created")
_CHUNK = 1 << 20
_DONE, _PART = ".shard", ".part"


class ShardCache:
    """Local copies of remote shards, never more than `limit_bytes` of them; see the head of this module.

    Args:
        folder: made where it is missing. Files that are not the cache's own are left alone and not counted.
        limit_bytes: of all files together; a share of the disk that holds several shards for each process.
        patience: with the network.
    """

    def __init__(self, folder: Path, limit_bytes: int, patience: Patience = PATIENT) -> None:
        self.folder, self.limit_bytes, self._patience = Path(folder), limit_bytes, patience
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._broken(error) from None

    def open(self, url: str, size: int | None = None, sha256: str | None = None) -> int:
        """A descriptor of the shard's local copy, open for reading: the caller closes it.

        It stays readable whatever is evicted afterwards. A local path is opened where it is.

        Args:
            url: of the shard.
            size: in bytes, if known.
            sha256: of the content, if known.

        Raises:
            UserError: it cannot be read, is not what size and sha256 say, or does not fit into the cache.
        """
        return self._find(url, size, sha256)[0]

    def fetch(self, url: str, size: int | None = None, sha256: str | None = None) -> Path:
        """Where the shard's local copy lies; as it may be evicted at any time, `open` is the safer choice."""
        file, path = self._find(url, size, sha256)
        os.close(file)
        return path

    def _find(self, url: str, size: int | None, sha256: str | None) -> tuple[int, Path]:
        check_url(url)
        if not is_remote(url):
            with open_stream(url) as file:
                return os.dup(file.fileno()), Path(url)
        if sha256 is not None:
            identity = sha256 = sha256.lower()
        else:
            size, identity = self._version(url, size)
        name = hashlib.sha256(identity.encode()).hexdigest()[:40]
        while True:
            found = self._cached(name, size)
            if found is not None:
                return found, self._path(name)
            with self._own(name) as part:
                # Another process may have finished it before the lock was ours.
                if part is not None and not self._path(name).exists():
                    return self._download(url, name, part, size, sha256), self._path(name)

    def _path(self, name: str, ending: str = _DONE) -> Path:
        return self.folder / (name + ending)

    def _version(self, url: str, size: int | None) -> tuple[int, str]:
        """The size, and what tells this content from earlier ones under the same URL."""
        info = ask(url, self._patience)
        if info.get("size") is None:
            raise Unreadable(
                f"{shown(url)}: the server does not tell its size, so it cannot be cached; copy it yourself"
            )
        if size is None:
            size = int(info["size"])
        known = [f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key)]
        return size, "\n".join([url, str(info["size"]), *known])

    def _cached(self, name: str, size: int | None) -> int | None:
        """A descriptor of a finished file, which thereby is the most recently used; None if there is none."""
        path = self._path(name)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._broken(error) from None
        if size is not None and os.fstat(file).st_size != size:
            # Nothing of ours does that: somebody changed it.
            os.close(file)
            path.unlink(missing_ok=True)
            return None
        now = time.time_ns()
        with contextlib.suppress(PermissionError):
            os.utime(file, ns=(now, now))
        return file

    @contextlib.contextmanager
    def _own(self, name: str) -> Iterator[int | None]:
        """The partial file, locked: its owner alone downloads. None: it changed hands while this process waited.

        The lock is the kernel's, on the partial file itself, so it ends with the process that holds it.
        """
        path = self._path(name, _PART)
        try:
            part = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._broken(error) from None
        try:
            fcntl.flock(part, fcntl.LOCK_EX)
            ours = _is_at(part, path)
            if ours:
                # A killed process may have left it at full length, which would count against us.
                os.ftruncate(part, 0)
            yield part if ours else None
        finally:
            if _is_at(part, path):
                path.unlink()
            # A process forked meanwhile holds the descriptor too, so closing alone would not unlock.
            fcntl.flock(part, fcntl.LOCK_UN)
            os.close(part)

    def _download(self, url: str, name: str, part: int, size: int | None, sha256: str | None) -> int:
        """A descriptor of the file, downloaded into `part`, checked and given its final name."""
        if size is None:
            size, _ = self._version(url, None)
        self._reserve(url, part, size)
        wrong = self._copy(url, part, size, sha256) and self._copy(url, part, size, sha256)
        if wrong:
            raise Unreadable(f"{shown(url)} is not what it should be: {wrong}; it was damaged or replaced")
        path = self._path(name, _PART)
        try:
            os.fsync(part)
            with self._accounting():
                os.replace(path, self._path(name))
                # Nobody evicts it before it is open.
                return os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._broken(error) from None

    def _copy(self, url: str, part: int, size: int, sha256: str | None) -> str:
        """What is wrong with the bytes that came, if anything; not more than `size` are written."""
        digest = hashlib.sha256()
        written = 0
        try:
            with open_stream(url, self._patience) as stream, open(part, "wb", closefd=False) as target:
                target.seek(0)
                while content := stream.read(_CHUNK):
                    written += len(content)
                    if written > size:
                        return f"{written:,} bytes or more instead of {size:,}"
                    digest.update(content)
                    target.write(content)
        except OSError as error:
            raise self._broken(error) from None
        if written < size:
            return f"{written:,} bytes instead of {size:,}"
        if sha256 not in (None, digest.hexdigest()):
            return f"sha256 {digest.hexdigest()} instead of {sha256}"
        return ""

    def _reserve(self, url: str, part: int, size: int) -> None:
        """Make room and take it by giving the partial file its final length."""
        if size > self.limit_bytes:
            raise UserError(
                f"{shown(url)} has {size:,} bytes and the cache {self.folder} only {self.limit_bytes:,}: "
                f"allow it more than that for each process"
            )
        while True:
            with self._accounting():
                if self._make_room(size):
                    os.ftruncate(part, size)
                    return
            # Only other downloads are in the way; they become evictable when they are done.
            time.sleep(0.05)

    def _make_room(self, size: int) -> bool:
        """Whether `size` bytes fit now, once the least recently used files that are in the way have gone."""
        done: list[tuple[int, int, Path]] = []
        total = size
        for path in sorted(self.folder.iterdir()):
            if not re.fullmatch(rf"[0-9a-f]{{40}}({_DONE}|{_PART})", path.name):
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.suffix == _PART and _is_left_over(path):
                    path.unlink()
                    continue
                status = path.stat()
                total += status.st_size
                if path.suffix == _DONE:
                    done.append((status.st_mtime_ns, status.st_size, path))
        if total - sum(length for _, length, _ in done) > self.limit_bytes:
            return False
        for _, length, path in sorted(done):
            if total <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= length
        return True

    @contextlib.contextmanager
    def _accounting(self) -> Iterator[None]:
        """Nobody else adds or evicts meanwhile."""
        try:
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._broken(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def _broken(self, error: OSError) -> UserError:
        return UserError(
            f"the cache {self.folder} cannot be used: {error.strerror}; free space or choose another folder"
        )


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is the one that bears the name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _is_left_over(part: Path) -> bool:
    """Whether nobody downloads into it any more."""
    file = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        fcntl.flock(file, fcntl.LOCK_UN)
        return True
    finally:
        os.close(file)
