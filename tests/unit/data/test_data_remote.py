"""Names of remote files, and reading them from web servers that misbehave."""

import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import fsspec
import pytest
from webserver import Web

from mentor.data.storage.remote import (
    SCHEMES,
    Missing,
    Patience,
    Unreadable,
    check_url,
    expand_braces,
    is_remote,
    list_files,
    open_stream,
    read_file,
    shown,
)
from mentor.errors import UserError

HASTY = Patience(attempts=3, pause=0.01, timeout=5)
CONTENT = bytes(range(256)) * 1200


@pytest.fixture
def web(web: Web) -> Web:
    web.files["/a.tar"] = CONTENT
    return web


def some_of(content: bytes, count: int, claimed: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """What sends fewer bytes than it says."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) if claimed is None else claimed))
        handler.end_headers()
        handler.wfile.write(content[:count])
        handler.close_connection = True

    return send


HOSTILE = [
    "pipe:touch canary",
    " pipe:touch canary",
    "PIPE:touch canary",
    "\tpipe:x",
    "ok.tar::pipe:touch canary",
    "http://a/b.tar::pipe:x",
    "simplecache::http://a/b.tar",
    "simplecache::pipe:x",
    "filecache::s3://a/b",
    "zip://x::http://a/b.zip",
    "file:/etc/passwd",
    "file:///etc/passwd",
    "-",
    "",
    " ",
    "{a,pipe:x}",
    "{a,-}",
    "{a,b::pipe:x}",
    "{a,{b,pipe:x}}",
    "{pipe,a}:x",
    "a{,::pipe:}b",
    "http:x",
    "http:/x",
    "http://",
    "s3://",
    "http://a/pipe://b",
    "gopher://a/b",
    "reference://a",
    "github://a:b@c/d",
    "S3://bucket/a.tar",
    "data:text/plain,x",
    "c:shard.tar",
    "a\nb.tar",
    "a\x00b.tar",
    "a.tar ",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.fault(16)
def test_what_is_no_plain_name_is_refused_with_what_is_allowed(text):
    with pytest.raises(UserError) as caught:
        check_url(text)
    assert repr(text) in str(caught.value) or shown(text) in str(caught.value)
    assert all(f"{scheme}://" in str(caught.value) for scheme in SCHEMES)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("function", [open_stream, list_files, lambda text: read_file(text, 10)])
@pytest.mark.fault(16)
def test_every_reader_refuses_what_is_no_plain_name(text, function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="allowed are local paths"):
        function(text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("data/shapes", False),
        ("/data/with space/ü.tar", False),
        ("./like:this.tar", False),
        ("folder/a:b", False),
        ("../x.tar", False),
        ("-x.tar", False),
        ("{0000..0003}.tar", False),
        ("data/*.tar", False),
        ("s3://bucket/{000..003}.tar", True),
        ("http://127.0.0.1:8000/a.tar?key=b", True),
        ("https://user:word@host/a.tar", True),
        ("hf://datasets/a/b/*.tar", True),
        ("memory://a.tar", True),
        ("memory:///a.tar", True),
    ],
)
def test_paths_and_allowed_urls_pass_unchanged(text, remote):
    assert check_url(text) == text
    assert is_remote(text) is remote


def test_messages_show_no_passwords_and_no_signatures():
    assert shown("https://user:secret@host/a.tar?X-Signature=secret") == "https://user:...@host/a.tar?..."
    assert shown("https://host:80/a@b.tar") == "https://host:80/a@b.tar"
    with pytest.raises(UserError) as caught:
        check_url("ftp://user:secret@host/a?secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{0,1}b{x,y}", ["a0bx", "a0by", "a1bx", "a1by"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,{b,c}d}", ["a", "bd", "cd"]),
        ("{a}{}", ["{a}{}"]),
        ("{a}{b,c}", ["{a}b", "{a}c"]),
        ("a}{b", ["a}{b"]),
        ("x{,y}", ["x", "xy"]),
    ],
)
def test_braces_stand_for_what_they_stand_for_in_a_shell(pattern, names):
    assert sorted(expand_braces(pattern)) == sorted(names)
    if "{b,c}d" not in pattern:
        assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..99999999}", "{0..999}" * 5, "{0," * 3 + "{1..9}}}}" + "{0..9}" * 8])
def test_braces_that_stand_for_too_many_names_are_refused_at_once(pattern):
    start = time.monotonic()
    with pytest.raises(UserError, match="more than 1,000,000 names"):
        expand_braces(pattern)
    assert time.monotonic() - start < 20


def test_wildcards_find_local_and_remote_files_sorted(tmp_path):
    system = fsspec.filesystem("memory")
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
        system.pipe(f"/wild/{name}", b"1")
    assert list_files(f"{tmp_path}/*.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert list_files(f"{tmp_path}/{{b,a,a}}.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert [read_file(url, 9) for url in list_files("memory://wild/*.tar")] == [b"1", b"1"]
    assert list_files("http://host/a?b=c") == ["http://host/a?b=c"]
    with pytest.raises(UserError, match=r"no file matches .*\*\.jpg"):
        list_files(f"{tmp_path}/*.jpg")
    with pytest.raises(UserError, match=r"no file matches 'memory://wild/\*\.jpg'"):
        list_files("memory://wild/*.jpg")


def test_a_folder_on_the_web_is_listed_by_its_page(web):
    web.files["/set/"] = b'<a href="b.tar">b.tar</a> <a href="a.tar">a.tar</a> <a href="x.txt">x</a>'
    assert list_files(web.url("/set/*.tar")) == [web.url("/set/a.tar"), web.url("/set/b.tar")]


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "abfs", "sftp"])
def test_a_missing_back_end_is_named(scheme, monkeypatch):
    monkeypatch.setitem(sys.modules, SCHEMES[scheme], None)
    with pytest.raises(UserError, match=f"{scheme}:// needs the package {SCHEMES[scheme]}; .*pip install"):
        read_file(f"{scheme}://bucket/a.json", 10, HASTY)


def test_small_files_are_read_and_large_ones_refused(tmp_path, web):
    (tmp_path / "a").write_bytes(b"12345")
    fsspec.filesystem("memory").pipe("/small/a", b"12345")
    web.files["/small"] = b"12345"
    for url in (str(tmp_path / "a"), "memory://small/a", web.url("/small")):
        assert read_file(url, 5, HASTY) == b"12345"
        with pytest.raises(UserError, match="larger than the 4 bytes"):
            read_file(url, 4, HASTY)


def test_missing_files_are_told_apart_from_unreadable_ones_and_asked_for_once(tmp_path, web):
    for url in (str(tmp_path / "none"), "memory://none/none", web.url("/none")):
        start = time.monotonic()
        with pytest.raises(Missing, match="does not exist"):
            read_file(url, 5, Patience(attempts=3, pause=5))
        assert time.monotonic() - start < 4
    with pytest.raises(Unreadable, match="cannot be read") as caught:
        read_file(str(tmp_path), 5)
    assert not isinstance(caught.value, Missing)


@pytest.mark.parametrize(("status", "attempts"), [(403, 1), (401, 1), (503, 3), (429, 3)])
def test_a_refusal_that_may_pass_is_met_with_patience(web, status, attempts):
    web.fault = lambda handler, content: handler.send_error(status) is None
    with pytest.raises(Unreadable) as caught:
        read_file(web.url(), 1 << 20, HASTY)
    assert not isinstance(caught.value, Missing)
    assert web.url() in str(caught.value) and str(status) in str(caught.value)
    assert web.asked["/a.tar"] == attempts


def test_nobody_listening_is_no_missing_file(web):
    web.shutdown()
    web.socket.close()
    with pytest.raises(Unreadable, match="cannot be read after 3 attempts") as caught:
        read_file(web.url(), 10, HASTY)
    assert not isinstance(caught.value, Missing)


@pytest.mark.parametrize("sent", [0, 1, 100_000])
def test_a_stream_goes_on_where_the_connection_broke(web, sent):
    def fault(handler: BaseHTTPRequestHandler, content: bytes) -> bool:
        if web.asked["/a.tar"] > 2:
            return False
        some_of(content, sent * web.asked["/a.tar"])(handler)
        return True

    web.fault = fault
    with open_stream(web.url(), HASTY) as stream:
        assert stream.read() == CONTENT
    assert web.asked["/a.tar"] == 3


def test_a_body_that_always_breaks_off_is_given_up(web):
    web.fault = lambda handler, content: some_of(content, 1000)(handler) is None
    with pytest.raises(Unreadable, match="after 3 attempts"), open_stream(web.url(), HASTY) as stream:
        stream.read()
    assert web.asked["/a.tar"] in (3, 4)


def test_a_server_that_falls_silent_is_given_up_after_the_timeout(web):
    silence = threading.Event()
    web.fault = lambda handler, content: silence.wait(20)
    start = time.monotonic()
    with pytest.raises(Unreadable, match="after 2 attempts"):
        read_file(web.url(), 1 << 20, Patience(attempts=2, pause=0.01, timeout=0.3))
    silence.set()
    assert time.monotonic() - start < 5


def test_a_slow_start_is_waited_for(web):
    web.fault = lambda handler, content: bool(time.sleep(1))
    assert read_file(web.url(), 1 << 20, HASTY) == CONTENT
    assert web.asked["/a.tar"] == 1


def test_a_remote_stream_is_read_in_order_and_local_ones_can_seek(web, tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    fsspec.filesystem("memory").pipe("/order/a", CONTENT)
    for url in (str(tmp_path / "a"), "memory://order/a", web.url()):
        with open_stream(url, HASTY) as stream:
            assert stream.seekable() is not is_remote(url)
            assert b"".join(iter(lambda stream=stream: stream.read(7777), b"")) == CONTENT


def test_streams_of_one_remote_file_do_not_disturb_each_other():
    fsspec.filesystem("memory").pipe("/twice/a", CONTENT * 8)
    with open_stream("memory://twice/a") as first, open_stream("memory://twice/a") as second:
        halves = [first.read(1_300_000), second.read(1_300_000), first.read(), second.read()]
    assert halves[0] + halves[2] == CONTENT * 8 == halves[1] + halves[3]


def test_readers_on_the_web_ask_for_no_compression(web):
    seen: list[str] = []
    web.fault = lambda handler, content: bool(seen.append(handler.headers["Accept-Encoding"]))
    read_file(web.url(), 1 << 20, HASTY)
    assert seen == ["identity"]


def test_the_scheme_of_every_url_is_checked_before_anything_is_opened(monkeypatch):
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *args, **options: pytest.fail("opened"))
    monkeypatch.setattr(Path, "open", lambda *args, **options: pytest.fail("opened"))
    for text in HOSTILE:
        with pytest.raises(UserError):
            open_stream(text)
