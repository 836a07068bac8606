"""Tars of others as a data set: indexed beside, never rewritten, the same bytes for any number of workers."""

import hashlib
from pathlib import Path
from typing import Any

import fsspec
import pytest
from builds import contents
from foreigntars import captions, everything, members, run, write_tars
from layouts import write_tar
from webserver import serving

from mentor.data.datamodule import DataModule
from mentor.data.making.engines import Engine, open_engine
from mentor.data.settings import DataConfig
from mentor.data.storage.decoding import Limits
from mentor.data.storage.files import CacheSettings
from mentor.data.storage.manifest import read_manifest
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.tarsets import TarFields
from mentor.errors import UserError

pytestmark = [pytest.mark.fault(14)]


def test_tars_are_read_where_they_lie_and_stay_as_they_are(tmp_path: Path) -> None:
    write_tars(tmp_path)
    before = contents(tmp_path)
    result = run(tmp_path)
    assert result.output == tmp_path and not result.found
    after = contents(tmp_path)
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


def test_what_the_recipe_says_of_the_pictures_is_kept_in_the_manifest(tmp_path: Path) -> None:
    write_tars(tmp_path)
    said = {"name": "cats", "description": "cats on mats", "licence": "CC BY 4.0"}
    manifest = run(tmp_path, **said).manifest
    assert manifest["recipe"] == manifest["recipe"] | said and manifest == read_manifest(tmp_path)
    assert run(tmp_path, **said).found
    with pytest.raises(UserError, match="other settings"):
        run(tmp_path, **said | {"licence": "CC0"})


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
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


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
    assert len(contents(tmp_path / "tars")) == 3


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
    before = contents(tmp_path)
    again = run(tmp_path / "0000{0,1,2}.tar")
    assert again.found and again.manifest == first.manifest and contents(tmp_path) == before
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
    assert {name: value for name, value in contents(tmp_path).items() if name != "00001.tar"} == {
        name: value for name, value in before.items() if name != "00001.tar"
    }


def test_a_lost_index_is_made_again(tmp_path: Path) -> None:
    write_tars(tmp_path)
    run(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "train.index").unlink()
    assert not run(tmp_path).found
    assert contents(tmp_path) == before


class Interrupted(Exception):
    pass


def stop_at_the_end(folder: Path) -> None:
    """A run that is interrupted when every tar is read and nothing else is done."""
    write_tars(folder)

    def stop(done: int, total: int) -> None:
        if done == total:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(folder, report=stop)


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
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_an_interrupted_run_with_other_settings_starts_anew(tmp_path: Path) -> None:
    stop_at_the_end(tmp_path)
    fields = TarFields(caption="json.caption")
    assert run(tmp_path, fields=fields).manifest["layout"]["caption"] == "json.caption"
    assert not (tmp_path / ".work").exists() and not (tmp_path / "unfinished.json").exists()


def test_a_damaged_note_is_not_believed(tmp_path: Path) -> None:
    stop_at_the_end(tmp_path)
    notes = sorted((tmp_path / ".work").glob("*.index"))
    assert len(notes) == 3
    notes[0].write_bytes(notes[0].read_bytes()[:100])
    run(tmp_path)
    assert captions(tmp_path) == everything()


def test_progress_is_counted_in_bytes(tmp_path: Path) -> None:
    total = sum(path.stat().st_size for path in write_tars(tmp_path))
    calls: list[tuple[int, int]] = []
    run(tmp_path, report=lambda done, total: calls.append((done, total)))
    assert calls[0] == (0, total) and calls[-1] == (total, total) and len(calls) == 4


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
    with serving(tmp_path) as place:
        url = f"{place}/tars"
        manifest = run(f"{url}/{{00000..00002}}.tar", output=tmp_path / "index").manifest
        assert manifest["base"] == url
        assert manifest["left_out"] == [{"path": "00000.tar", "reason": "unfinished"}]
        read = captions(tmp_path / "index", CacheSettings(str(tmp_path / "cache")))
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
