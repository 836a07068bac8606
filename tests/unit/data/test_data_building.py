"""Builds: the same bytes by any number of workers, found again, never written over other things."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import RECIPES, SMALL, album, contents, descriptions, everything, load, records, stored
from layouts import write_picture

from mentor.data.making.building import build_dataset
from mentor.data.making.steps import Caption
from mentor.data.making.work import Job, RecordWork
from mentor.data.sources.items import FileBlob, Item
from mentor.data.storage.decoding import Limits
from mentor.data.storage.encoding import Layout
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_one_and_two_workers_and_a_rerun_write_the_same_bytes(tmp_path: Path) -> None:
    loaded = load("shapes", *SMALL)
    for name, workers in (("one", 1), ("two", 2), ("again", 1)):
        build_dataset(loaded, tmp_path / name, workers)
    assert len(contents(tmp_path / "one")) == 8
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "again")


def test_a_finished_data_set_is_found_and_a_damaged_shard_of_it_is_made_again(tmp_path: Path) -> None:
    loaded, root = load("shapes", *SMALL), tmp_path / "out"
    assert not build_dataset(loaded, root).found
    before = contents(root)
    assert build_dataset(loaded, root).found
    shard = root / "train/000001.tar"
    shard.write_bytes(shard.read_bytes()[:-700])
    assert not build_dataset(loaded, root).found
    assert contents(root) == before


def test_what_is_not_ours_is_never_written_over(tmp_path: Path) -> None:
    build_dataset(load("shapes", *SMALL), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="already holds another data set"):
        build_dataset(load("shapes", *SMALL, "seed=1"), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/text.tex").write_text("dear")
    with pytest.raises(UserError, match="is not empty"):
        build_dataset(load("shapes", *SMALL), tmp_path / "thesis")
    assert list((tmp_path / "thesis").iterdir()) == [tmp_path / "thesis/text.tex"]


def test_the_command_says_one_line_and_the_second_time_that_all_is_there(command: Command, tmp_path: Path) -> None:
    first = command("tools/make_shards.py", "shapes", "workers=1", *SMALL, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("data/shapes now holds 40 train and 10 heldout samples in 5 shards")
    assert first.stdout.count("\n") == 1
    second = command("tools/make_shards.py", "shapes", "workers=2", *SMALL, cwd=tmp_path)
    assert second.returncode == 0
    assert "already holds" in second.stdout
    manifest = json.loads((tmp_path / "data/shapes/manifest.json").read_text())
    assert str(tmp_path) not in json.dumps(manifest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["films"], "no recipe 'films'"),
        (["shapes", "scenes.train=0"], "too few records"),
        (["shapes", "workers=two"], "workers=two is not a number"),
        (["shapes", "output=file/below"], "cannot write to file/below"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    arguments: list[str], message: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = command("tools/make_shards.py", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_becomes_shards_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    (folder / "lonely.jpg").write_bytes((folder / "000.jpg").read_bytes())
    build = build_dataset(records(folder), tmp_path / "out")
    assert build.manifest["dropped"] == {"too small": 6, "exact duplicate": 2, "no caption": 1}
    assert sum(build.manifest["samples"].values()) == 60 - 8
    assert build.examples["too small"].endswith(": 4 x 12")
    assert build.examples["no caption"] == "lonely.jpg"
    found = everything(tmp_path / "out")
    assert found["000.jpg"]["captions"] == ["a thing numbered 0"]
    assert not {"sub/017.jpg", "sub/027.jpg"} & found.keys()
    shards = ShardSet(tmp_path / "out", "train")
    assert shards.record(0, 0).image.shape == (24, 24, 3)
    assert not (tmp_path / "out/.work").exists()


def test_keys_are_places_in_the_source_whatever_is_dropped(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    build_dataset(records(folder), tmp_path / "some")
    build_dataset(records(folder, steps=[]), tmp_path / "all")
    some, every = everything(tmp_path / "some"), everything(tmp_path / "all")
    assert len(every) == 60
    assert {one["key"] for one in every.values()} == {f"{number:09d}" for number in range(60)}
    assert [every[origin]["key"] for origin in sorted(every)] == sorted(one["key"] for one in every.values())
    assert all(one["key"] == every[origin]["key"] for origin, one in some.items())


def test_pictures_that_nothing_changed_are_copied_byte_for_byte(tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 12)
    build_dataset(records(folder, steps=[]), tmp_path / "out")
    stored_bytes = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.tar")))
    assert all(path.read_bytes() in stored_bytes for path in folder.rglob("*.jpg"))


def test_records_too_are_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    seen: list[tuple[str, int, int | None]] = []
    build_dataset(records(folder), tmp_path / "one", report=lambda *facts: seen.append(facts))
    build_dataset(records(folder), tmp_path / "two", workers=2)
    assert len(contents(tmp_path / "one")) > 9
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [stage for stage, *_ in dict.fromkeys((stage,) for stage, *_ in seen)] == [
        "reading the source",
        "looking for duplicates",
        "making shards",
    ]
    assert seen[-1] == ("making shards", 60, 60)


@pytest.mark.slow
def test_ray_makes_the_same_bytes_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(RECIPES.parent))
    folder = album(tmp_path / "album")
    for loaded, name in ((records(folder), "records"), (load("shapes", *SMALL), "scenes")):
        build_dataset(loaded, tmp_path / f"{name} here", workers=1)
        build_dataset(loaded, tmp_path / f"{name} there", workers=2, engine="ray")
        assert contents(tmp_path / f"{name} here") == contents(tmp_path / f"{name} there")


def test_the_order_of_samples_is_mixed_unless_asked_otherwise(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    build_dataset(records(folder, steps=[]), tmp_path / "mixed")
    build_dataset(records(folder, steps=[], seed=1), tmp_path / "other")
    build_dataset(records(folder, steps=[], shuffle=False), tmp_path / "sorted")
    orders = [list(stored(tmp_path / name, "train")) for name in ("mixed", "other", "sorted")]
    assert orders[2] == sorted(orders[0]) == sorted(orders[1])
    assert len({tuple(order) for order in orders}) == 3


def test_subjects_are_held_out_as_a_whole_and_never_none_or_all(tmp_path: Path) -> None:
    for subject in range(4):
        for number in range(3):
            write_picture(tmp_path / "subjects" / f"thing{subject}" / f"{number}.png", (subject * 60, number * 90, 5))
    source = {"kind": "subjects", "path": str(tmp_path / "subjects")}
    for share, salt in ((0.001, "a"), (0.999, "a"), (0.5, "b"), (0.5, "c")):
        recipe = records(tmp_path / "subjects", sources=[source], steps=[], heldout={"share": share, "salt": salt})
        root = tmp_path / f"{share}{salt}"
        build_dataset(recipe, root)
        train, heldout = ({one["subject"] for one in stored(root, split).values()} for split in ("train", "heldout"))
        assert train and heldout and not train & heldout
        assert len(train | heldout) == 4
        assert all(one["views"] for one in everything(root).values())


def test_a_limit_takes_of_both_splits_in_proportion_and_always_the_same(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    build_dataset(records(folder, steps=[]), tmp_path / "all")
    build_dataset(records(folder, steps=[], limit=20), tmp_path / "few")
    build_dataset(records(folder, steps=[], limit=20, seed=5), tmp_path / "others")
    every, few, others = (
        [set(stored(tmp_path / name, split)) for split in ("train", "heldout")] for name in ("all", "few", "others")
    )
    assert sum(map(len, few)) == 20
    assert len(few[1]) == round(20 * len(every[1]) / 60)
    assert few[0] <= every[0] and few[1] <= every[1]
    assert few != others
    with pytest.raises(UserError, match="limit=1 leaves a split without records"):
        build_dataset(records(folder, limit=1), tmp_path / "none")


def test_a_held_out_picture_that_training_has_too_goes(tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 40)
    for path in [*folder.rglob("*.jpg")]:
        copy = path.with_name(f"again-{path.name}")
        copy.write_bytes(path.read_bytes())
        copy.with_suffix(".txt").write_text("again")
    twins = [{"step": "duplicates"}]
    build_dataset(records(folder, steps=[], heldout={"share": 0.4}), tmp_path / "all")
    build_dataset(records(folder, steps=twins, heldout={"share": 0.4}), tmp_path / "once")
    train, heldout = stored(tmp_path / "once", "train"), stored(tmp_path / "once", "heldout")
    shown = [Path(origin).name.removeprefix("again-") for origin in [*train, *heldout]]
    assert len(set(shown)) == len(shown) == 38
    both = {Path(origin).name.removeprefix("again-") for origin in stored(tmp_path / "all", "train")}
    assert both == {Path(origin).name.removeprefix("again-") for origin in train} | ({"017.jpg", "027.jpg"} & both)


def test_when_nothing_is_left_the_reasons_are_told_and_nothing_stays(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    with pytest.raises(UserError, match=r"nothing is left.*58 too small.*2 exact duplicate") as caught:
        build_dataset(
            records(folder, steps=[{"step": "duplicates"}, {"step": "size", "min_side": 999}]), tmp_path / "out"
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    for text in folder.rglob("*.txt"):
        text.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match=r"nothing in the source can be used: 60 .*for example"):
        build_dataset(records(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_data_are_found_again_from_elsewhere_and_no_place_is_told(tmp_path: Path) -> None:
    here = album(tmp_path / "here" / "album", 12)
    there = album(tmp_path / "there" / "album", 12)
    first = build_dataset(records(here), tmp_path / "out")
    assert str(tmp_path) not in json.dumps(first.manifest)
    assert build_dataset(records(there), tmp_path / "out").found
    (there / "000.txt").write_text("another")
    with pytest.raises(UserError, match="already holds another data set"):
        build_dataset(records(there), tmp_path / "out")


def test_other_readers_read_the_shards(tmp_path: Path, shapes: Path) -> None:
    import datasets
    import webdataset

    folder = album(tmp_path / "album")
    build_dataset(records(folder), tmp_path / "out")
    for root in (tmp_path / "out", shapes):
        paths = sorted(map(str, (root / "train").glob("*.tar")))
        expected = [one["captions"][0] for one in descriptions(root, "train")]
        read = webdataset.WebDataset(paths, shardshuffle=False)
        assert [sample["txt"].decode() for sample in read] == expected
        loaded = datasets.load_dataset(
            "webdataset", data_files=paths, split="train", cache_dir=str(tmp_path / "cache"), streaming=True
        )
        rows = list(loaded)
        assert [row["txt"] for row in rows] == expected
        picture = "jpg" if root != shapes else "png"
        assert rows[0][picture].size == (24, 24) if root != shapes else (64, 64)


def test_text_that_no_file_can_hold_is_counted(tmp_path: Path) -> None:
    blob = FileBlob(write_picture(tmp_path / "red.jpg"))
    work = RecordWork(tmp_path, (), Layout(picture="jpg", masks=False, views=False), Limits())
    items = tuple(enumerate((Item("a", blob, ("fine",)), Item("b", blob, ("odd",), attributes={"note": "\ud800"}))))
    made = work.begin()(Job("train/000000.tar", "train", items), lambda: None)
    assert (made.shard.samples, dict(made.shard.dropped)) == (1, {"text is not UTF-8": 1})
    assert made.examples == {"text is not UTF-8": "b"}


def test_what_a_sample_loses_is_counted_though_it_stays(tmp_path: Path) -> None:
    blob = FileBlob(write_picture(tmp_path / "red.jpg"))
    step = Caption(min_words=2)
    work = RecordWork(tmp_path, (step,), Layout(picture="jpg", masks=False, views=False), Limits())
    made = work.begin()(Job("train/000000.tar", "train", ((3, Item("a", blob, ("x", "two words"))),)), lambda: None)
    assert (made.shard.samples, dict(made.shard.dropped)) == (1, {"caption too short": 1})
    assert made.shard.index.keys(0) == ["000000003"]
