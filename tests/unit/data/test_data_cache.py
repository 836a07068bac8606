"""The cache of remote shards: bounded, whole files only, shared by processes that may be killed."""

import fcntl
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from webserver import Web

from mentor.data.storage.cache import ShardCache
from mentor.data.storage.remote import Missing, Patience, Unreadable
from mentor.errors import UserError

HASTY = Patience(attempts=2, pause=0.01, timeout=5)
SIZE = 200_000
READER = """
import hashlib, os, sys
from pathlib import Path
from mentor.data.storage.cache import ShardCache
folder, base = Path(sys.argv[1]), sys.argv[3]
limit, shift, rounds = (int(sys.argv[place]) for place in (2, 4, 5))
wanted = [line.split() for line in sys.stdin]
cache = ShardCache(folder, limit)
for turn in range(rounds):
    for number in range(len(wanted)):
        path, digest = wanted[(number * (1 + shift) + shift) % len(wanted)]
        file = cache.open(base + path, SIZE, None if turn % 2 else digest)
        with os.fdopen(file, "rb") as opened:
            assert hashlib.sha256(opened.read()).hexdigest() == digest, path
"""


def content_of(cache: ShardCache, *args) -> bytes:
    with os.fdopen(cache.open(*args), "rb") as file:
        return file.read()


def held(folder: Path) -> int:
    """The sizes of all files in the cache at one moment."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in folder.iterdir() if path.name != "lock")


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir() if path.name != "lock")


def start_reader(folder: Path, limit: int, web: Web, shift: int, rounds: int) -> subprocess.Popen:
    lines = "".join(f"{path} {hashlib.sha256(content).hexdigest()}\n" for path, content in web.files.items())
    arguments = [str(folder), str(limit), web.url(""), str(shift), str(rounds)]
    process = subprocess.Popen(
        [sys.executable, "-c", READER.replace("SIZE", str(SIZE)), *arguments],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdin is not None
    process.stdin.write(lines)
    process.stdin.close()
    return process


def start_slow_reader(folder: Path, web: Web, rounds: int, pieces: int) -> subprocess.Popen:
    """A reader that has got so many of the 20 pieces of /a.tar and waits for the next."""
    web.pieces, web.pause = 20, 0.1
    process = start_reader(folder, SIZE, web, 0, rounds)
    deadline = time.monotonic() + 30
    while web.active["/a.tar"] < pieces and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def test_a_file_is_downloaded_once_and_then_needs_no_network(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    cache = ShardCache(tmp_path / "cache", 10 * SIZE, HASTY)
    assert content_of(cache, url, SIZE, digest) == web.files["/a.tar"]
    web.files.clear()
    assert content_of(cache, url, SIZE, digest) == content_of(
        ShardCache(tmp_path / "cache", SIZE), url, None, digest.upper()
    )
    assert cache.fetch(url, SIZE, digest).read_bytes() == content_of(cache, url, SIZE, digest)
    assert web.asked == {"/a.tar": 1}
    assert files(tmp_path / "cache") == [".shard"]


def test_a_file_that_another_process_finished_just_now_is_not_downloaded_again(web, tmp_path, monkeypatch):
    url, digest = web.add("/a.tar", SIZE)
    cache = ShardCache(tmp_path, 10 * SIZE, HASTY)
    content_of(cache, url, SIZE, digest)
    look, looked = cache._cached, []
    monkeypatch.setattr(cache, "_cached", lambda *args: look(*args) if looked else looked.append(args))
    assert content_of(cache, url, SIZE, digest) == web.files["/a.tar"]
    assert len(looked) == 1 and web.asked["/a.tar"] == 1
    assert files(tmp_path) == [".shard"]


def test_without_a_digest_new_content_under_the_same_url_is_noticed(web, tmp_path):
    url, _ = web.add("/a.tar", SIZE)
    cache = ShardCache(tmp_path, 10 * SIZE, HASTY)
    first = content_of(cache, url)
    assert content_of(cache, url) == first and web.asked["/a.tar"] == 1
    web.files["/a.tar"] = bytes(SIZE)
    assert content_of(cache, url) == bytes(SIZE) != first


def test_digests_keep_two_versions_of_one_url_apart(web, tmp_path):
    url, old = web.add("/a.tar", SIZE)
    cache = ShardCache(tmp_path, 10 * SIZE, HASTY)
    before = content_of(cache, url, SIZE, old)
    web.files["/a.tar"] = bytes(SIZE)
    assert content_of(cache, url, SIZE, hashlib.sha256(bytes(SIZE)).hexdigest()) == bytes(SIZE)
    assert content_of(cache, url, SIZE, old) == before


def test_fsspec_files_of_other_kinds_are_cached_too(tmp_path):
    fsspec.filesystem("memory").pipe("/cache/a", b"x" * 100)
    cache = ShardCache(tmp_path, 150, HASTY)
    assert content_of(cache, "memory://cache/a") == b"x" * 100
    fsspec.filesystem("memory").pipe("/cache/a", b"y" * 100)
    assert content_of(cache, "memory://cache/a") == b"y" * 100


def test_a_local_path_is_opened_where_it_is(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"local")
    cache = ShardCache(tmp_path / "cache", 1)
    assert content_of(cache, str(tmp_path / "a.tar")) == b"local"
    assert cache.fetch(str(tmp_path / "a.tar")) == tmp_path / "a.tar"
    assert files(tmp_path / "cache") == []
    with pytest.raises(Missing):
        cache.open(str(tmp_path / "none.tar"))


@pytest.mark.parametrize("url", ["pipe:x", "file:///etc/passwd", "simplecache::http://a/b"])
def test_hostile_names_are_refused(url, tmp_path):
    with pytest.raises(UserError, match="allowed are local paths"):
        ShardCache(tmp_path, 10).open(url, 1, "0" * 64)


def test_the_least_recently_used_file_goes_first(web, tmp_path):
    wanted = [web.add(f"/{number}.tar", SIZE) for number in range(4)]
    cache = ShardCache(tmp_path, 3 * SIZE, HASTY)
    for number in (0, 1, 2, 0, 3):
        content_of(cache, wanted[number][0], SIZE, wanted[number][1])
    assert held(tmp_path) == 3 * SIZE
    for number in (0, 2, 3):
        content_of(cache, wanted[number][0], SIZE, wanted[number][1])
    assert web.asked == {f"/{number}.tar": 1 for number in range(4)}
    content_of(cache, *wanted[1][:1], SIZE, wanted[1][1])
    assert web.asked["/1.tar"] == 2


def test_a_descriptor_outlives_the_eviction_of_its_file(web, tmp_path):
    (first, first_digest), (second, second_digest) = web.add("/a.tar", SIZE), web.add("/b.tar", SIZE)
    cache = ShardCache(tmp_path, SIZE, HASTY)
    with os.fdopen(cache.open(first, SIZE, first_digest), "rb") as file:
        content_of(cache, second, SIZE, second_digest)
        assert held(tmp_path) == SIZE
        assert file.read() == web.files["/a.tar"]


def test_a_file_larger_than_the_cache_is_refused_with_both_sizes(web, tmp_path):
    small, small_digest = web.add("/small.tar", 50)
    url, digest = web.add("/a.tar", SIZE)
    cache = ShardCache(tmp_path, SIZE - 1, HASTY)
    content_of(cache, small, 50, small_digest)
    with pytest.raises(UserError, match=r"a\.tar has 200,000 bytes and the cache .* only 199,999"):
        cache.open(url, SIZE, digest)
    with pytest.raises(UserError, match="200,000 bytes"):
        cache.open(url)
    assert files(tmp_path) == [".shard"], "nothing was evicted for it"


def test_files_that_are_not_the_caches_own_are_left_alone(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    (tmp_path / "notes.txt").write_bytes(b"x" * 2 * SIZE)
    content_of(ShardCache(tmp_path, SIZE, HASTY), url, SIZE, digest)
    assert (tmp_path / "notes.txt").stat().st_size == 2 * SIZE


def test_wrong_content_is_named_with_both_digests_after_one_more_try(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    web.body = lambda content: content[:-1] + b"!"
    found = hashlib.sha256(web.files["/a.tar"][:-1] + b"!").hexdigest()
    with pytest.raises(Unreadable) as caught:
        ShardCache(tmp_path, 2 * SIZE, HASTY).open(url, SIZE, digest)
    assert all(text in str(caught.value) for text in (url, digest, found))
    assert web.asked["/a.tar"] == 2
    assert files(tmp_path) == []


def test_content_that_was_wrong_once_is_taken_when_it_comes_right(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    web.body = lambda content: content if web.asked["/a.tar"] > 1 else content[:-1] + b"!"
    assert content_of(ShardCache(tmp_path, 2 * SIZE, HASTY), url, SIZE, digest) == web.files["/a.tar"]


@pytest.mark.parametrize(
    ("size", "message"), [(SIZE + 1, "200,000 bytes instead of 200,001"), (SIZE - 1, "or more instead of 199,999")]
)
def test_a_wrong_length_is_named_with_both_values(web, tmp_path, size, message):
    url, digest = web.add("/a.tar", SIZE)
    cache = ShardCache(tmp_path, 2 * SIZE, HASTY)
    for known in (digest, None):
        with pytest.raises(Unreadable, match=message):
            cache.open(url, size, known)
    assert files(tmp_path) == []


def test_an_endless_body_is_not_written_beyond_its_size(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    web.body, web.length = (lambda content: content * 50), (lambda content: len(content) * 50)
    with pytest.raises(Unreadable, match="or more instead of"):
        ShardCache(tmp_path, 2 * SIZE, HASTY).open(url, SIZE, digest)


def test_a_truncated_body_leaves_nothing(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    web.body = lambda content: content[: SIZE // 2]
    with pytest.raises(Unreadable, match=r"a\.tar cannot be read after 2 attempts"):
        ShardCache(tmp_path, 2 * SIZE, HASTY).open(url, SIZE, digest)
    assert files(tmp_path) == []


def test_a_server_that_does_not_tell_the_size_is_refused_unless_the_size_is_known(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    web.length = lambda content: None
    cache = ShardCache(tmp_path, 2 * SIZE, HASTY)
    with pytest.raises(Unreadable, match="does not tell its size"):
        cache.open(url, None, digest)
    assert content_of(cache, url, SIZE, digest) == web.files["/a.tar"]


def test_a_missing_file_is_named(web, tmp_path):
    for known in ((), (SIZE, "0" * 64)):
        with pytest.raises(Missing, match=r"none\.tar does not exist"):
            ShardCache(tmp_path, SIZE, HASTY).open(web.url("/none.tar"), *known)
    assert files(tmp_path) == []


def test_a_cached_file_that_somebody_cut_is_fetched_anew(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    cache = ShardCache(tmp_path, 2 * SIZE, HASTY)
    os.truncate(cache.fetch(url, SIZE, digest), 100)
    assert content_of(cache, url, SIZE, digest) == web.files["/a.tar"]


def test_a_full_disk_is_named_and_leaves_nothing(web, tmp_path, monkeypatch):
    url, digest = web.add("/a.tar", SIZE)

    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the cache .* cannot be used: No space left on device; free space"):
        ShardCache(tmp_path, 2 * SIZE, HASTY).open(url, SIZE, digest)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/cache cannot be used"):
        ShardCache(tmp_path / "file" / "cache", 10)


def test_a_forked_process_downloads_too(web, tmp_path):
    (first, first_digest), (second, second_digest) = web.add("/a.tar", SIZE), web.add("/b.tar", SIZE)
    cache = ShardCache(tmp_path, 2 * SIZE, HASTY)
    content_of(cache, first, SIZE, first_digest)
    child = multiprocessing.get_context("fork").Process(target=content_of, args=(cache, second, SIZE, second_digest))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert web.asked == {"/a.tar": 1, "/b.tar": 1}
    assert files(tmp_path) == [".shard", ".shard"]


def test_threads_share_one_download(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    web.pieces, web.pause = 5, 0.05
    cache = ShardCache(tmp_path, SIZE, HASTY)
    with ThreadPoolExecutor(8) as pool:
        contents = set(pool.map(lambda _: content_of(cache, url, SIZE, digest), range(8)))
    assert contents == {web.files["/a.tar"]}
    assert web.asked["/a.tar"] == 1


def test_downloads_that_do_not_fit_side_by_side_wait_for_each_other(web, tmp_path):
    wanted = [web.add(f"/{number}.tar", SIZE) for number in range(4)]
    web.pieces, web.pause = 4, 0.03
    cache = ShardCache(tmp_path, SIZE + SIZE // 2, HASTY)
    most = 0
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(content_of, cache, url, SIZE, digest) for url, digest in wanted]
        while not all(future.done() for future in running):
            most = max(most, held(tmp_path))
            time.sleep(0.005)
    assert [future.result() for future in running] == list(web.files.values())
    assert SIZE <= most <= SIZE + SIZE // 2


@pytest.mark.parametrize(("shards", "rounds"), [(12, 1), (3, 6)])
def test_processes_share_a_cache_and_keep_its_bound(web, tmp_path, shards, rounds):
    for number in range(12):
        web.add(f"/{number}.tar", SIZE)
    web.pieces, web.pause = 2, 0.002
    limit = shards * SIZE
    folder = tmp_path / "cache"
    folder.mkdir()
    readers = [start_reader(folder, limit, web, shift, rounds) for shift in (0, 4, 0, 6)]
    most = 0
    while any(reader.poll() is None for reader in readers):
        most = max(most, held(folder))
        time.sleep(0.002)
    assert [reader.stderr.read() for reader in readers] == [""] * 4
    assert 2 * SIZE <= most <= limit
    assert set(files(folder)) == {".shard"}
    if shards == 12:
        assert web.asked == dict.fromkeys(web.files, 1)


def test_a_killed_download_leaves_no_file_and_the_next_one_works(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    process = start_slow_reader(tmp_path, web, rounds=2, pieces=5)
    assert files(tmp_path) == [".part"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert files(tmp_path) == [".part"], "the kill came during the download"
    web.pause = 0
    # The cache holds one such file only: the left-over must neither be counted nor be taken for somebody's work.
    cache = ShardCache(tmp_path, SIZE, HASTY)
    assert content_of(cache, url, SIZE, digest) == web.files["/a.tar"]
    assert files(tmp_path) == [".shard"]


def test_left_overs_of_the_killed_are_removed_by_other_downloads(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    (tmp_path / f"{'0' * 40}.part").write_bytes(b"x" * SIZE)
    cache = ShardCache(tmp_path, SIZE, HASTY)
    assert content_of(cache, url, SIZE, digest) == web.files["/a.tar"]
    assert files(tmp_path) == [".shard"]


def test_a_waiting_process_takes_over_from_a_killed_one(web, tmp_path):
    url, digest = web.add("/a.tar", SIZE)
    process = start_slow_reader(tmp_path, web, rounds=1, pieces=3)
    cache = ShardCache(tmp_path, SIZE, HASTY)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(content_of, cache, url, SIZE, digest)
        time.sleep(0.2)
        assert web.asked["/a.tar"] == 1 and not waiting.done()
        web.pause = 0
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert waiting.result(20) == web.files["/a.tar"]
