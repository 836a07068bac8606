"""A hub on this machine: what the huggingface_hub library asks of the real one to fetch and to send a repository."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants
from webserver import running

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
LICENCES = ("apache-2.0", "cc-by-4.0", "mit", "other")


@dataclass
class Repository:
    """Commits of path -> content, and the branches that name some of them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        digest = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[digest] = files
        self.branches[branch] = digest
        self.messages.append(message)
        return digest

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[branch]]


class Hub(ThreadingHTTPServer):
    """Keeps `repositories` for those who may see them.

    Attributes:
        asked: method and path of each request.
        sent: path of a file -> bytes of it that are sent before the connection breaks.
        status: what every request is answered with; None for an answer of its own.
        lfs: sha256 -> content that was sent for a commit.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.cut: dict[str, int] = {}
        self.status: int | None = None
        self.lfs: dict[str, bytes] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, folder: Path, **about: Any) -> Repository:
        """A repository with all files of a folder."""
        repository = self.repositories[name] = Repository(**about)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        repository.commit({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})
        return repository

    def fetched(self) -> set[str]:
        """Files whose content was asked for."""
        return {path.split("/", 5)[5] for method, path in self.asked if method == "GET" and "/resolve/" in path}

    def handle_error(self, request, client_address) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.server.status is not None:
            return self._refuse(self.server.status, "", "out of order")
        match path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                return self._create(json.loads(body))
            case ["api", "validate-yaml"]:
                return self._validate(json.loads(body)["content"])
            case ["api", "models", owner, name, *rest]:
                return self._about(f"{owner}/{name}", rest, body)
            case ["lfs", oid]:
                self.server.lfs[oid] = body
                return self._answer(b"")
            case [owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                return self._batch(json.loads(body)["objects"])
            case [owner, name, "resolve", revision, *file]:
                return self._file(f"{owner}/{name}", revision, "/".join(file))
        return self._refuse(404, "", "no such page")

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def _about(self, name: str, rest: list[str], body: bytes) -> None:
        repository = self._find(name)
        if repository is None:
            return None
        match rest:
            case [] | ["revision", _] | ["tree", _]:
                revision = "/".join(rest[1:]) or "main"
                commit = self._resolve(repository, revision)
                if commit is None:
                    return None
                files = repository.commits[commit]
                if rest[:1] == ["tree"]:
                    return self._json([_entry(path, content) for path, content in files.items()])
                siblings = [{"rfilename": path} for path in files]
                facts = {"id": name, "sha": commit, "private": repository.private, "gated": repository.gated}
                return self._json(facts | {"siblings": siblings})
        if self._token() != WRITER:
            return self._refuse(403, "", "you have no right to write here")
        match rest:
            case ["branch", branch]:
                if branch in repository.branches:
                    return self._refuse(409, "", "it is there")
                repository.branches[branch] = repository.branches["main"]
                return self._json({})
            case ["preupload", _]:
                files = [(file["path"], file["path"].endswith(".safetensors")) for file in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "lfs" if large else "regular"} for path, large in files]
                return self._json({"files": [mode | {"shouldIgnore": False} for mode in modes]})
            case ["commit", branch]:
                return self._commit(name, repository, branch, [json.loads(line) for line in body.splitlines()])
        return self._refuse(404, "", "no such page")

    def _commit(self, name: str, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> None:
        files = dict(repository.files(branch))
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.lfs[value["oid"]]
        commit = repository.commit(files, branch, lines[0]["value"]["summary"])
        self._json({"commitUrl": f"{self.server.endpoint}/{name}/commit/{commit}", "commitOid": commit})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if self._token() not in (WRITER, READER):
            return self._refuse(401, "", "Invalid username or password.")
        if self._token() != WRITER:
            return self._refuse(403, "", f"you have no right to make a model in {wanted['organization']}")
        if name in self.server.repositories:
            return self._refuse(409, "", "it is there")
        repository = self.server.repositories[name] = Repository(private=wanted["visibility"] == "private")
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json({"url": f"{self.server.endpoint}/{name}"})

    def _validate(self, card: str) -> None:
        facts = yaml.safe_load(card.split("---\n")[1])
        if facts["license"] in LICENCES:
            return self._json({"errors": [], "warnings": []})
        return self._json({"errors": [{"message": '"license" must be one of a list'}], "warnings": []}, 400)

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        uploads = [
            thing | {"actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{thing['oid']}"}}} for thing in objects
        ]
        self._json({"transfer": "basic", "objects": uploads})

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._find(name)
        if repository is None:
            return None
        if repository.gated and self._token() != READER:
            return self._refuse(403, "GatedRepo", "ask for access")
        commit = self._resolve(repository, revision)
        if commit is None:
            return None
        content = repository.commits[commit].get(path)
        if content is None:
            return self._refuse(404, "EntryNotFound", "no such file", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(path, content)}"'}
        first = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return self._answer(content[first:], 206 if first else 200, headers, self.server.cut.get(path))

    def _find(self, name: str) -> Repository | None:
        """The repository, if there is one that may be seen; else it is refused."""
        if self._token() not in (WRITER, READER, None):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and self._token() is None):
            return self._refuse(401 if self._token() is None else 404, "RepoNotFound", "Repository not found")
        return repository

    def _resolve(self, repository: Repository, revision: str) -> str | None:
        commit = repository.branches.get(revision, revision)
        return commit if commit in repository.commits else self._refuse(404, "RevisionNotFound", "Invalid rev id")

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _json(self, content: Any, status: int = 200) -> None:
        self._answer(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        codes = {"X-Error-Code": code} if code else {}
        self._answer(b"", status, {**(headers or {}), **codes, "X-Error-Message": message})

    def _answer(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args) -> None:
        pass


def _oid(path: str, content: bytes) -> str:
    """As Git names a file, or large file storage."""
    if path.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(path, content)[:40]}
    if path.endswith(".safetensors"):
        entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 130}
    return entry


@contextmanager
def faked(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """A hub that the library in this process asks while the context lasts; its cache and token are in `home`."""
    hub = Hub()
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    try:
        with running(hub):
            yield hub
    finally:
        huggingface_hub.close_session()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """What makes the library of another process ask the hub."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
