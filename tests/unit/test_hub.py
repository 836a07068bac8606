"""Releases from the hub: what is asked of it, what is kept, and each way in which it can fail. The hub is a fake."""

import errno
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakehub import READER, STRANGER, WRITER, Hub, environment, faked
from huggingface_hub import constants
from tiny import save_tiny_releases, tiny_fused_generator, tiny_image_tokenizer

from mentor.errors import UserError
from mentor.hub import fetch, is_hub_name, spelled
from mentor.models.checkpoint import Card, load_generator, save_generator
from mentor.releases import RELEASE_FILES, check_release

NAME = "me/shapes"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_releases(tmp_path_factory.mktemp("releases")) / "model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with faked(monkeypatch, tmp_path / "home") as hub:
        yield hub


@pytest.fixture
def stocked(hub: Hub, release: Path) -> Hub:
    """The hub, which has the release."""
    hub.add(NAME, release)
    return hub


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kept(home: Path) -> list[str]:
    """Files in the cache that could be taken for a release's."""
    return sorted(path.name for path in home.rglob("*") if path.is_file() and "snapshots" in path.parts)


def test_a_folder_is_what_it_is_and_nobody_is_asked(hub: Hub, release: Path, tmp_path: Path) -> None:
    assert fetch(release, cache_dir=tmp_path / "cache", token="any") == release == fetch(str(release))
    (tmp_path / "me" / "shapes").mkdir(parents=True)
    assert fetch(NAME) == Path(NAME)
    assert not is_hub_name(NAME) and is_hub_name("me/others")
    with pytest.raises(UserError, match="folders have no revisions: leave revision v1 out"):
        fetch(release, "v1")
    assert hub.asked == []


@pytest.mark.parametrize("place", ["model", "a/b/c", "./me/shapes", "/me/shapes", "me/sha--pes", "me/../x", "me/x.git"])
def test_what_can_be_neither_folder_nor_name_is_refused_without_a_word_to_the_hub(hub: Hub, place: str) -> None:
    with pytest.raises(UserError, match=r"is not a release folder, nor a name on the hub \(OWNER/NAME\)"):
        fetch(place)
    assert hub.asked == [] and not is_hub_name(place)


def test_a_fetched_release_is_the_one_that_is_there(stocked: Hub, release: Path, tmp_path: Path) -> None:
    folder = fetch(NAME)
    assert content(folder) == content(release)
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    commit = stocked.repositories[NAME].branches["main"]
    assert spelled(folder) == f"{NAME}@{commit}"
    assert spelled(release) == str(release)
    assert fetch(spelled(folder)) == folder


def test_a_release_with_pretrained_encoders_comes_with_them(hub: Hub, tmp_path: Path) -> None:
    tokenizer = tiny_image_tokenizer()
    save_generator(tmp_path / "fused", tiny_fused_generator(tokenizer), tokenizer, 64, Card("test"))
    hub.add(NAME, tmp_path / "fused")
    folder = fetch(NAME)
    assert (folder / "text_encoder" / "model.safetensors").is_file()
    assert (folder / "vision_encoder" / "model.safetensors").is_file()
    assert load_generator(folder).fingerprint == load_generator(tmp_path / "fused").fingerprint


def test_only_files_of_a_release_are_asked_for(stocked: Hub, release: Path) -> None:
    files = stocked.repositories[NAME].files()
    harm = ["model.pt", "pytorch_model.bin", "run.py", "image_tokenizer/modeling.py", "x.pkl", "notes.ipynb", "a.ckpt"]
    files |= dict.fromkeys(harm, b"import os; os.abort()")
    folder = fetch(NAME)
    assert stocked.fetched() == set(content(release)) == set(content(folder))
    assert not any(pattern.endswith((".py", ".bin", ".pt", ".pkl", "*")) for pattern in RELEASE_FILES)


def test_revisions_are_branches_and_commits(stocked: Hub, release: Path) -> None:
    repository = stocked.repositories[NAME]
    first = repository.branches["main"]
    repository.commit(repository.files() | {"notes.txt": b"old"}, "v1")
    repository.commit(repository.files() | {"notes.txt": b"new"})
    assert (fetch(NAME) / "notes.txt").read_bytes() == b"new"
    assert (fetch(NAME, "v1") / "notes.txt").read_bytes() == (fetch(f"{NAME}@v1") / "notes.txt").read_bytes() == b"old"
    assert not (fetch(NAME, first) / "notes.txt").exists()
    with pytest.raises(UserError, match=r"the hub has me/shapes, but no revision v9 of it: give a branch, a tag or a"):
        fetch(NAME, "v9")
    with pytest.raises(UserError, match="names revision v1, and revision main is asked for"):
        fetch(f"{NAME}@v1", "main")


def test_a_later_commit_is_seen_and_an_earlier_one_stays(stocked: Hub) -> None:
    repository = stocked.repositories[NAME]
    before = fetch(NAME)
    repository.commit(repository.files() | {"notes.txt": b"new"})
    after = fetch(NAME)
    assert after != before and (after / "notes.txt").is_file() and not (before / "notes.txt").exists()


def test_the_cache_is_used_without_a_request_offline_and_for_commits(
    stocked: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(NAME)
    stocked.asked.clear()
    assert fetch(spelled(folder)) == folder
    assert stocked.asked == []
    fetch(NAME)
    assert stocked.asked != [], "a branch may have moved"
    stocked.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(NAME) == fetch(NAME, "main") == folder
    assert stocked.asked == []


def test_offline_says_what_is_not_in_the_cache(stocked: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no folder me/shapes, and .* not in the cache.*HF_HUB_OFFLINE=1 forbids"):
        fetch(NAME)
    assert stocked.asked == [] and kept(tmp_path / "home") == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = fetch(NAME, cache_dir=tmp_path / "own")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(NAME, cache_dir=tmp_path / "own") == folder
    (folder / "text_tokenizer.json").unlink()
    with pytest.raises(UserError, match="not in the cache, or not all of it"):
        fetch(NAME, cache_dir=tmp_path / "own")


def test_another_process_obeys_the_environment(stocked: Hub, tmp_path: Path) -> None:
    def ask(**more: str) -> subprocess.CompletedProcess[str]:
        code = "from mentor import errors, hub; errors.run_main(lambda: print(hub.fetch('me/shapes')))"
        own = os.environ | {"PYTHONPATH": str(ROOT)} | environment(stocked, tmp_path / "process") | more
        return subprocess.run([sys.executable, "-c", code], env=own, cwd=tmp_path, capture_output=True, text=True)

    absent = ask(HF_HUB_OFFLINE="1")
    assert absent.returncode == 2 and absent.stderr.count("\n") == 1 and "HF_HUB_OFFLINE=1" in absent.stderr
    assert stocked.asked == []
    fetched = ask()
    assert fetched.returncode == 0 and fetched.stderr == ""
    stocked.asked.clear()
    assert ask(HF_HUB_OFFLINE="1").stdout == fetched.stdout
    assert stocked.asked == []


def test_private_and_gated_repositories_want_a_token(
    hub: Hub, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, release, private=True)
    hub.add("me/gated", release, gated=True)
    for name in (NAME, "me/none"):
        with pytest.raises(
            UserError, match=rf"no folder {name}, and no repository {name} on the hub, or it is private"
        ):
            fetch(name)
    for token in (None, WRITER):
        with pytest.raises(UserError, match="me/gated is gated on the hub: ask for access on its page"):
            fetch("me/gated", token=token)
    with pytest.raises(UserError, match="the hub does not accept the token that me/shapes was asked for with"):
        fetch(NAME, token=STRANGER)
    with pytest.raises(UserError, match="no folder me/none, and no repository"):
        fetch("me/none", token=READER)
    assert kept(tmp_path / "home") == []
    assert content(fetch(NAME, token=READER)) == content(fetch("me/gated", token=READER)) == content(release)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert content(fetch(NAME, cache_dir=tmp_path / "own")) == content(release)


def test_what_is_no_release_is_refused_before_its_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    repository = hub.add(NAME, tmp_path / "other")
    foreign = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights"}
    ours = json.dumps({"format": "mentor", "kind": "generator"}).encode()
    for files, said in (
        ({"README.md": b"hello"}, r"no release of mentor: there is no config.json in it"),
        ({"config.json": ours}, r"no release of mentor: there is no model.safetensors in it"),
        (foreign, r'no release of mentor: config.json is of something else \(no "format": "mentor"'),
        ({"config.json": ours, "model.pt": b"harm"}, r"has pickled weights \(model.pt\), which could run code and are"),
        ({"pytorch_model.bin": b"harm"}, r"pickled weights \(pytorch_model.bin\).* never loaded, and no safetensors"),
    ):
        repository.commit(files)
        with pytest.raises(UserError, match=f"me/shapes on the hub .*{said}"):
            fetch(NAME)
    assert hub.fetched() == {"config.json"}


def test_half_a_download_is_never_taken_for_whole(
    stocked: Hub, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library waits between tries
    warnings: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = warnings.append
    logging.getLogger("huggingface_hub").addHandler(listener)
    stocked.cut["model.safetensors"] = 1000
    with pytest.raises(UserError, match=r"me/shapes cannot be fetched from the hub \(.*: try again"):
        fetch(NAME)
    logging.getLogger("huggingface_hub").removeHandler(listener)
    assert not warnings, "there is one line, ours"
    assert not [path for path in (tmp_path / "home").rglob("*") if path.suffix == ".incomplete"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not in the cache, or not all of it"):
        fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    stocked.cut.clear()
    assert content(fetch(NAME)) == content(release)


@pytest.mark.parametrize("file", ["model.safetensors", "image_tokenizer/model.safetensors"])
def test_a_file_that_was_cut_in_the_cache_or_on_the_hub_is_named(stocked: Hub, file: str) -> None:
    folder = fetch(NAME)
    blob = (folder / file).resolve()
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1])
    with pytest.raises(
        UserError, match=rf"me/shapes is damaged \({file} is not whole: .*\): delete .*models--me--shapes"
    ):
        fetch(NAME)
    repository = stocked.repositories["me/cut"] = stocked.repositories[NAME]
    repository.files()[file] = whole[:-1]
    with pytest.raises(UserError, match=rf"me/cut is damaged \({file} is not whole.*its owner has to push it again"):
        fetch("me/cut")


@pytest.mark.parametrize(
    "file", ["model.safetensors", "image_tokenizer/model.safetensors", "text_encoder/2.safetensors"]
)
def test_a_release_without_one_of_its_parts_is_none(hub: Hub, tmp_path: Path, file: str) -> None:
    folder = save_tiny_releases(tmp_path / "releases") / "model"
    (folder / "text_encoder").mkdir()
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    for number in (1, 2):
        (folder / "text_encoder" / f"{number}.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert check_release(folder)["kind"] == "generator"
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"^{file} is missing"):
        check_release(folder)
    hub.add(NAME, folder)
    with pytest.raises(UserError, match=file):
        fetch(NAME)


def test_a_hub_out_of_reach_is_not_waited_for_and_the_cache_serves(
    stocked: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetch(NAME)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setattr("mentor.hub.PATIENCE", 0.1)
        for status, endpoint in (
            (503, stocked.endpoint),
            (None, f"http://127.0.0.1:{deaf.getsockname()[1]}"),
            (None, "http://127.0.0.1:1"),
        ):
            stocked.status = status
            monkeypatch.setattr(constants, "ENDPOINT", endpoint)
            assert fetch(NAME) == folder
            said = capsys.readouterr().err
            assert (
                said.count("\n") == 1 and "the hub is out of reach (" in said and f"{spelled(folder)} is from" in said
            )
            with pytest.raises(
                UserError, match=r"me/none cannot be fetched from the hub \(.*\), and is not in the cache"
            ):
                fetch("me/none")
    assert time.monotonic() - started < 5


def test_a_full_or_closed_disk_is_named(stocked: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", fill)
        with pytest.raises(UserError, match=r"no room is left for me/shapes \(No space left on device\): make some"):
            fetch(NAME)
    assert kept(tmp_path / "home") == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"me/shapes cannot be kept in .*file.* \(Not a directory\): say another cache"):
        fetch(NAME, cache_dir=tmp_path / "file")


def test_the_library_is_heard_again_afterwards(stocked: Hub) -> None:
    from huggingface_hub import utils

    utils.enable_progress_bars()
    before = utils.logging.get_verbosity()
    with pytest.raises(UserError):
        fetch("me/none")
    assert utils.logging.get_verbosity() == before and not utils.are_progress_bars_disabled()
