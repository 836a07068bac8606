"""Tars of others as a data set: indexed beside, never rewritten, the same bytes for any number of workers."""

import hashlib
import http.server
import json
import os
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from layouts import picture_bytes, write_tar

from mentor.data.datamodule import DataModule
from mentor.data.making.engines import Engine, open_engine
from mentor.data.making.indexing import Indexed, index_dataset
from mentor.data.making.recipes import HeldOutConfig
from mentor.data.settings import DataConfig
from mentor.data.storage.decoding import Limits
from mentor.data.storage.files import CacheSettings
from mentor.data.storage.manifest import lock, read_manifest
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.tarsets import TarFields
from mentor.errors import UserError

pytestmark = [pytest.mark.fault(14)]

HELDOUT = HeldOutConfig(share=0.25)
COLOURS = ("red", "green", "blue", "white")


def members(key: str, number: int = 0) -> list[tuple[str, bytes]]:
    """A sample as img2dataset writes one."""
    described = {"caption": f"picture {key}", "status": "success", "key": key}
    return [
        (f"{key}.jpg", picture_bytes(COLOURS[number % 4], (24, 16))),
        (f"{key}.json", json.dumps(described).encode()),
        (f"{key}.txt", f"picture {key}".encode()),
    ]


def write_tars(folder: Path, tars: int = 3, samples: int = 8) -> list[Path]:
    return [
        write_tar(
            folder / f"{tar:05d}.tar",
            [member for number in range(samples) for member in members(f"{tar:05d}{number:04d}", number)],
        )
        for tar in range(tars)
    ]


def run(*paths: Path | str, output: Path | None = None, fields: TarFields | None = None, **settings: Any) -> Indexed:
    return index_dataset([str(path) for path in paths], fields or TarFields(), HELDOUT, output, **settings)


def hashes(folder: Path, *endings: str) -> dict[str, str]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and (not endings or path.suffix in endings)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def captions(root: Path | str, cache: CacheSettings | None = None) -> dict[str, str]:
    """Key -> caption of all records of both splits, with their pictures read."""
    found: dict[str, str] = {}
    for split in ("train", "heldout"):
        shards = ShardSet(root, split, cache)
        for shard, count in enumerate(shards.counts):
            for position in range(count):
                record = shards.record(shard, position)
                assert record.image.shape == (16, 24, 3)
                found[record.key] = record.captions[0]
    return found


def everything(tars: int = 3, samples: int = 8) -> dict[str, str]:
    keys = [f"{tar:05d}{number:04d}" for tar in range(tars) for number in range(samples)]
    return {key: f"picture {key}" for key in keys}


def test_tars_are_read_where_they_lie_and_stay_as_they_are(tmp_path: Path) -> None:
    write_tars(tmp_path)
    before = hashes(tmp_path)
    result = run(tmp_path)
    assert result.output == tmp_path and not result.found
    after = hashes(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"manifest.json", "train.index", "heldout.index"}
    assert {path.name for path in tmp_path.iterdir()} == set(after)
    assert captions(tmp_path) == everything()


def test_the_manifest_says_what_there_is(tmp_path: Path) -> None:
    write_tars(tmp_path)
    write_tar(tmp_path / "00003.tar", [*members("a"), ("b.jpg", b"no picture"), ("b.txt", b"b"), ("c.txt", b"c")])
    manifest = run(tmp_path / "*.tar").manifest
    assert manifest == read_manifest(tmp_path)
    assert manifest["kind"] == "tars" and manifest["layout"] == TarFields().model_dump(mode="json")
    assert sum(manifest["samples"].values()) == 25 and min(manifest["samples"].values()) > 0
    assert manifest["dropped"] == {"no picture": 1, "not a picture": 1}
    assert manifest["left_out"] == [] and manifest["repeated_keys"] == 0 and "base" not in manifest
    splits = [row["split"] for row in manifest["files"]]
    assert splits == sorted(splits, reverse=True)
    for row in manifest["files"]:
        content = (tmp_path / row["path"]).read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_training_reads_them(tmp_path: Path) -> None:
    write_tars(tmp_path)
    run(tmp_path)
    config = DataConfig(
        root=str(tmp_path), mixture={"text_to_image": 1}, batch_size=4, workers=0, image_size=16, validation_limit=4
    )
    data = DataModule(config, seed=0)
    batch = next(iter(data.train_dataloader()))
    assert len(batch.keys) == 4 and set(batch.keys) <= set(everything())
    heldout = {key for batch in data.val_dataloader() for key in batch.keys}
    assert heldout and not heldout & {data.train_shards[0].key(0, n) for n in range(data.train_shards[0].counts[0])}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, workers: int) -> None:
    for folder in ("first", "second"):
        write_tars(tmp_path / folder, tars=5)
    run(tmp_path / "first")
    with open_engine("local", workers) as engine:
        run(tmp_path / "second", engine=engine)
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")


def test_a_sample_stays_in_its_split_when_tars_are_added(tmp_path: Path) -> None:
    paths = write_tars(tmp_path / "tars", tars=6)
    run(*paths[:2], output=tmp_path / "few")
    run(*paths, output=tmp_path / "all")

    def heldout(root: Path) -> set[str]:
        shards = ShardSet(root, "heldout")
        return {key for shard in range(len(shards.counts)) for key in shards.index.keys(shard)}

    few, all_ = heldout(tmp_path / "few"), heldout(tmp_path / "all")
    assert few and few == {key for key in all_ if key < "00002"} and len(all_) > len(few)


def test_the_index_may_lie_elsewhere(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    manifest = run(tmp_path / "tars", output=tmp_path / "index").manifest
    assert manifest["base"] == str(tmp_path / "tars")
    assert {row["path"] for row in manifest["files"]} == {"00000.tar", "00001.tar", "00002.tar"}
    assert captions(tmp_path / "index") == everything()
    assert len(hashes(tmp_path / "tars")) == 3


def test_paths_count_from_here_and_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tars(tmp_path / "my tars ü")
    monkeypatch.chdir(tmp_path)
    result = run("my tars ü/*.tar", "my tars ü/../my tars ü/00000.tar", output=Path("index"))
    assert len({row["path"] for row in result.manifest["files"]}) == 3
    assert run(tmp_path / "my tars ü", output=tmp_path / "index").found
    monkeypatch.chdir("/")
    assert captions(tmp_path / "index") == everything()


def test_tars_of_one_name_in_several_folders_stay_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_tar(tmp_path / folder / "00000.tar", [m for n in range(8) for m in members(f"{folder}{n}", n)])
    result = run(tmp_path / "*" / "*.tar")
    assert result.output == tmp_path
    assert {row["path"] for row in result.manifest["files"]} == {"a/00000.tar", "b/00000.tar"}
    assert sorted(captions(tmp_path)) == [f"{folder}{n}" for folder in "ab" for n in range(8)]


def test_keys_that_several_tars_have_are_kept_and_counted(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        write_tar(tmp_path / f"{name}.tar", [m for n in range(8) for m in members(str(n), n)])
    lines: list[str] = []
    manifest = run(tmp_path, log=lines.append).manifest
    assert manifest["repeated_keys"] == 16 and sum(manifest["samples"].values()) == 24
    assert len(lines) == 1 and "16 samples have a key that another tar has" in lines[0]


def test_the_same_tars_are_found_again_and_others_are_refused(tmp_path: Path) -> None:
    paths = write_tars(tmp_path)
    first = run(tmp_path)
    before = hashes(tmp_path)
    again = run(tmp_path / "0000{0,1,2}.tar")
    assert again.found and again.manifest == first.manifest and hashes(tmp_path) == before
    changes: list[tuple[dict[str, Any], str]] = [
        ({"fields": TarFields(caption="json.caption")}, "other tars or other settings"),
        ({"skip_damaged": True}, "other tars or other settings"),
        ({"limits": Limits(pixels=10_000)}, "other tars or other settings"),
    ]
    for settings, words in changes:
        with pytest.raises(UserError, match=f"{words} than are given now: delete .*manifest.json .the tars stay"):
            run(tmp_path, **settings)
    with pytest.raises(UserError, match="other tars, or ones of other sizes, than"):
        run(*paths[:2])
    paths[1].write_bytes(paths[1].read_bytes() + bytes(10240))
    with pytest.raises(UserError, match="other tars, or ones of other sizes, than"):
        run(tmp_path)
    assert {name: value for name, value in hashes(tmp_path).items() if name != "00001.tar"} == {
        name: value for name, value in before.items() if name != "00001.tar"
    }


def test_a_lost_index_is_made_again(tmp_path: Path) -> None:
    write_tars(tmp_path)
    run(tmp_path)
    before = hashes(tmp_path)
    (tmp_path / "train.index").unlink()
    assert not run(tmp_path).found
    assert hashes(tmp_path) == before


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("whole", "broken"):
        write_tars(tmp_path / folder, tars=5)
    run(tmp_path / "whole")
    calls: list[int] = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path / "broken", report=stop)
    assert (tmp_path / "broken/unfinished.json").exists() and not (tmp_path / "broken/manifest.json").exists()
    read: list[str] = []
    from mentor.data.making import indexing

    opened = indexing.open_stream
    monkeypatch.setattr(indexing, "open_stream", lambda name: (read.append(name), opened(name))[1])
    run(tmp_path / "broken")
    assert [Path(name).name for name in read] == ["00003.tar", "00004.tar"]
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "whole")


def test_an_interrupted_run_with_other_settings_starts_anew(tmp_path: Path) -> None:
    write_tars(tmp_path)

    def stop(done: int, total: int) -> None:
        if done == total:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path, report=stop)
    fields = TarFields(caption="json.caption")
    assert run(tmp_path, fields=fields).manifest["layout"]["caption"] == "json.caption"
    assert not (tmp_path / ".work").exists() and not (tmp_path / "unfinished.json").exists()


def test_a_damaged_note_is_not_believed(tmp_path: Path) -> None:
    write_tars(tmp_path)

    def stop(done: int, total: int) -> None:
        if done == total:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path, report=stop)
    notes = sorted((tmp_path / ".work").glob("*.index"))
    assert len(notes) == 3
    notes[0].write_bytes(notes[0].read_bytes()[:100])
    run(tmp_path)
    assert captions(tmp_path) == everything()


def test_two_runs_at_once_on_one_folder_are_refused(tmp_path: Path) -> None:
    write_tars(tmp_path)
    with lock(tmp_path), pytest.raises(UserError, match=r"another process .* is writing to"):
        run(tmp_path)


def test_progress_is_counted_in_bytes(tmp_path: Path) -> None:
    total = sum(path.stat().st_size for path in write_tars(tmp_path))
    calls: list[tuple[int, int]] = []
    run(tmp_path, report=lambda done, total: calls.append((done, total)))
    assert calls[0] == (0, total) and calls[-1] == (total, total) and len(calls) == 4


def test_a_damaged_tar_is_refused_by_name_or_left_out(tmp_path: Path) -> None:
    paths = write_tars(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:3000])
    with pytest.raises(UserError, match=r"1 of 3 tars cannot be used: .*00001\.tar: cut within .*skip_damaged=true"):
        run(tmp_path)
    lines: list[str] = []
    manifest = run(tmp_path, skip_damaged=True, log=lines.append).manifest
    (row,) = manifest["left_out"]
    assert row["path"] == "00001.tar" and row["reason"].startswith("cut within")
    assert len(lines) == 1 and "00001.tar" in lines[0] and "damaged" in lines[0]
    assert captions(tmp_path) == {key: value for key, value in everything().items() if not key.startswith("00001")}
    assert run(tmp_path, skip_damaged=True).found


def test_a_damaged_tar_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    paths = write_tars(tmp_path)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(bytes(2000) + whole[2000:])
    with pytest.raises(UserError, match="cannot be used"):
        run(tmp_path)
    paths[1].write_bytes(whole)
    run(tmp_path)
    assert captions(tmp_path) == everything()


def test_nothing_but_damaged_tars_are_refused(tmp_path: Path) -> None:
    for path in write_tars(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"every tar is damaged, .*00000\.tar among them"):
        run(tmp_path, skip_damaged=True)


def test_tars_that_img2dataset_has_not_completed_are_left_out(tmp_path: Path) -> None:
    paths = write_tars(tmp_path / "made")
    write_tar(tmp_path / "own/x.tar", members("x"))
    for path in paths[:2]:
        path.with_name(f"{path.stem}_stats.json").write_text("{}")
    lines: list[str] = []
    patterns = [tmp_path / "made", tmp_path / "own"]
    manifest = run(*patterns, output=tmp_path / "index", log=lines.append).manifest
    assert manifest["left_out"] == [{"path": "made/00002.tar", "reason": "unfinished"}]
    assert {row["path"] for row in manifest["files"]} == {"made/00000.tar", "made/00001.tar", "own/x.tar"}
    assert any("00002.tar" in line and "img2dataset" in line for line in lines)
    # Once it is complete, the data set is another.
    paths[2].with_name("00002_stats.json").write_text("{}")
    with pytest.raises(UserError, match="other tars"):
        run(*patterns, output=tmp_path / "index")


def test_nothing_but_unfinished_tars_are_refused(tmp_path: Path) -> None:
    paths = write_tars(tmp_path)
    (tmp_path / "00001_stats.json").write_text("{}")
    with pytest.raises(UserError, match=r"every tar is unfinished, .*00000\.tar among them"):
        run(paths[0], paths[2])


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TAR.ZST", "a.tar.xz"])
def test_packed_tars_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=f"{name} is compressed.*unpack it"):
        run(tmp_path / "*")


def test_a_packed_tar_under_the_name_of_a_plain_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b\x08\x00" + bytes(range(256)) * 8)
    with pytest.raises(UserError, match=r"a\.tar.*compressed: unpack it"):
        run(tmp_path)


def test_wrong_paths_are_refused_by_name(tmp_path: Path) -> None:
    write_tars(tmp_path)
    cases: list[tuple[list[str], str]] = [
        ([], "no tars were given"),
        ([f"{tmp_path}/none-*.tar"], "no file matches"),
        ([f"{tmp_path}/none.tar"], "none.tar cannot be read"),
        (["pipe:cat x.tar"], "cannot be read: allowed are"),
        ([f"{tmp_path}/00000.tar::x.tar"], "nothing is piped or chained"),
    ]
    (tmp_path / "empty").mkdir()
    cases.append(([f"{tmp_path}/empty"], "no tars were given"))
    (tmp_path / "words.txt").write_text("x")
    cases.append(([f"{tmp_path}/*"], "is no tar: give paths or patterns that end in .tar"))
    for paths, words in cases:
        with pytest.raises(UserError, match=words):
            run(*paths)
    assert not (tmp_path / "manifest.json").exists() and not (tmp_path / ".work").exists()


def test_tars_without_a_sample_are_refused_with_the_reasons(tmp_path: Path) -> None:
    write_tars(tmp_path)
    with pytest.raises(UserError, match=r"there are no records to write .dropped: 24 no picture"):
        run(tmp_path, fields=TarFields(image=("png",)))
    with pytest.raises(UserError, match="dropped: 24 no caption"):
        run(tmp_path, fields=TarFields(caption="json.prompt"))
    # Nothing of that is in the way of the right settings.
    run(tmp_path)
    assert captions(tmp_path) == everything()


def test_what_lies_in_the_output_already_is_spared(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no data set"):
        run(tmp_path / "tars", output=tmp_path / "other")
    (tmp_path / "tars/manifest.json").write_text('{"version": "of another program"}')
    with pytest.raises(UserError, match=r"damaged or none of this program's: delete .*manifest.json .the tars stay"):
        run(tmp_path / "tars")
    (tmp_path / "tars/manifest.json").unlink()
    (tmp_path / "tars/unfinished.json").write_text('{"kind": "records"}')
    with pytest.raises(UserError, match="unfinished build of something else"):
        run(tmp_path / "tars")
    (tmp_path / "tars/unfinished.json").unlink()
    (tmp_path / "tars/00009.tar.partial").write_bytes(b"a download of somebody else")
    run(tmp_path / "tars")
    assert (tmp_path / "tars/00009.tar.partial").exists()


def test_a_folder_that_cannot_be_written_asks_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tars(tmp_path)
    # Permissions are nothing to a test that runs as root.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written: say where the index goes with output=DIR"):
        run(tmp_path)


def test_a_tar_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    paths = write_tars(tmp_path)
    content = paths[2].read_bytes()

    def grow(done: int, total: int) -> None:
        paths[2].write_bytes(content + bytes(10240))

    with pytest.raises(UserError, match=r"00002\.tar changed while it was read"):
        run(tmp_path, report=grow)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = write_tars(tmp_path, tars=1)[0]
    path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar"))
    with pytest.raises(UserError, match=r"not UTF-8.*rename"):
        run(tmp_path)


def put_into_memory(folder: Path, url: str) -> None:
    system = fsspec.filesystem("memory")
    for path in folder.iterdir():
        system.pipe(f"{url}/{path.name}", path.read_bytes())


def test_remote_tars_are_indexed_and_read_through_the_cache(tmp_path: Path) -> None:
    paths = write_tars(tmp_path / "tars")
    for path in paths[:2]:
        path.with_name(f"{path.stem}_stats.json").write_text("{}")
    url = f"memory://{tmp_path.name}/tars"
    put_into_memory(tmp_path / "tars", url)
    with pytest.raises(UserError, match="output=DIR"):
        run(f"{url}/*.tar")
    manifest = run(f"{url}/0000{{0..2}}.tar", output=tmp_path / "index").manifest
    assert manifest["base"] == url
    assert [row["path"] for row in manifest["left_out"]] == ["00002.tar"]
    cache = CacheSettings(str(tmp_path / "cache"))
    assert captions(tmp_path / "index", cache) == {
        key: value for key, value in everything().items() if not key.startswith("00002")
    }


def test_tars_on_a_web_server_are_asked_for_their_stats_one_by_one(tmp_path: Path) -> None:
    paths = write_tars(tmp_path / "tars")
    for path in paths[1:]:
        path.with_name(f"{path.stem}_stats.json").write_text("{}")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/tars"
        manifest = run(f"{url}/{{00000..00002}}.tar", output=tmp_path / "index").manifest
        assert manifest["base"] == url
        assert manifest["left_out"] == [{"path": "00000.tar", "reason": "unfinished"}]
        read = captions(tmp_path / "index", CacheSettings(str(tmp_path / "cache")))
        server.shutdown()
    assert read == {key: value for key, value in everything().items() if not key.startswith("00000")}


def test_local_and_remote_tars_mix(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    url = f"memory://{tmp_path.name}/mixed"
    put_into_memory(tmp_path / "tars", url)
    output = tmp_path / "index"
    run(f"{url}/00000.tar", f"{url}/00002.tar", tmp_path / "tars/00001.tar", output=output)
    assert captions(output, CacheSettings(str(tmp_path / "cache"))) == everything()


def test_an_engine_is_told_what_to_do_once(tmp_path: Path) -> None:
    write_tars(tmp_path)
    seen: list[int] = []

    class Counting:
        def warm(self) -> None:
            pass

        def run(self, work: Any, jobs: Any, done: Any, tick: Any) -> None:
            seen.append(len(jobs))
            with open_engine("local", 1) as engine:
                engine.run(work, jobs, done, tick)

    engine: Engine = Counting()
    run(tmp_path, engine=engine)
    assert seen == [3]
