"""Web servers on this machine: one that misbehaves as it is told, and one that shows a folder."""

import contextlib
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Web(ThreadingHTTPServer):
    """Serves `files`, well unless it is told otherwise.

    Attributes:
        files: path -> content; what is not in it, or empty, does not exist.
        asked: how often each path was asked for; heads are not counted.
        active: how many pieces of each path were sent.
        pieces, pause: a file is sent in so many pieces, with so many seconds after each.
        body, length: what is sent of a content, and the length that is told; none is told if it is None.
        fault: told the request and the content, may answer in its own way; says whether it did.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.active: Counter[str] = Counter()
        self.pieces, self.pause = 1, 0.0
        self.body: Callable[[bytes], bytes] = lambda content: content
        self.length: Callable[[bytes], int | None] = len
        self.fault: Callable[[BaseHTTPRequestHandler, bytes], bool] = lambda handler, content: False

    def url(self, path: str = "/a.tar") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def add(self, path: str, size: int) -> tuple[str, str]:
        """Serve some content of that size; its URL and SHA-256."""
        content = hashlib.sha256(path.encode()).digest() * (size // 32)
        self.files[path] = content + bytes(size - len(content))
        return self.url(path), hashlib.sha256(self.files[path]).hexdigest()

    def handle_error(self, request, client_address) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    server: Web  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        if self.path in self.server.files and self.server.fault(self, self.server.files[self.path]):
            return
        content = self.server.body(self._head())
        piece = max(1, len(content) // self.server.pieces)
        for start in range(0, len(content), piece):
            self.wfile.write(content[start : start + piece])
            self.server.active[self.path] += 1
            time.sleep(self.server.pause)
        self.close_connection = True

    def _head(self) -> bytes:
        content = self.server.files.get(self.path, b"")
        self.send_response(200 if content else 404)
        length = self.server.length(content)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("ETag", hashlib.md5(content).hexdigest())
        self.end_headers()
        return content

    def log_message(self, format: str, *args) -> None:
        pass


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args) -> None:
        pass


@contextlib.contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """The server answers while the context lasts."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL at which a folder is shown while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    with running(server):
        yield f"http://127.0.0.1:{server.server_port}"
