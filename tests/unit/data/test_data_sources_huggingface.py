"""Hugging Face's data sets on disk: columns found, bytes unchanged, no code run and no file outside read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import captions, outcomes, picture_bytes, source, write_lines, write_picture, write_tar

from mentor.data.sources import describe_inputs
from mentor.errors import UserError

RED, BLUE = picture_bytes("red"), picture_bytes("blue", format="PNG")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "cache" / name)


def read(folder: Path, path: str = "data", **settings: Any) -> tuple[dict, dict]:
    return outcomes(folder, kind="huggingface", path=path, **settings)


def make(**columns: Any) -> Any:
    rows = {"image": [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": "x.png"}], **columns}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def test_a_saved_data_set_gives_its_bytes_unchanged(tmp_path: Path) -> None:
    make(text=["a red one", ""], number=[1, 2]).save_to_disk(tmp_path / "data")
    items, dropped = read(tmp_path)
    assert captions(items) == {"row/0": ["a red one"], "row/1": []}
    assert [item.picture.read() for item in items.values()] == [RED, BLUE]
    assert not dropped


def test_splits_are_chosen_by_name(tmp_path: Path) -> None:
    sets = {"train": make(text=["a", "b"]), "test": make(text=["c", "d"])}
    datasets.DatasetDict(sets).save_to_disk(tmp_path / "data")
    assert [item.captions for item in read(tmp_path)[0].values()] == [("a",), ("b",)]
    items, _ = read(tmp_path, split="test")
    assert [item.captions for item in items.values()] == [("c",), ("d",)]
    with pytest.raises(UserError, match="no split 'val': choose one of train, test"):
        read(tmp_path, split="val")


def test_parquet_as_a_folder_and_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    make(caption=[["one", "two"], []]).to_parquet(tmp_path / "data/train.parquet")
    for path in ("data", "data/train.parquet"):
        items, _ = read(tmp_path, path)
        assert [item.captions for item in items.values()] == [("one", "two"), ()]
        assert [item.picture.read() for item in items.values()] == [RED, BLUE]


def test_parquet_of_other_tools(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"jpg": [RED, None, BLUE], "words": ["a", "b", "c"]}), tmp_path / "data/x.parquet")
    items, dropped = read(tmp_path)
    assert [(item.captions, item.picture.read()) for item in items.values()] == [(("a",), RED), (("c",), BLUE)]
    assert list(dropped.values()) == ["no picture"]


def test_a_folder_of_pictures_and_one_of_tars(tmp_path: Path) -> None:
    write_picture(tmp_path / "data/train/a.jpg")
    write_lines(tmp_path / "data/train/metadata.jsonl", [{"file_name": "a.jpg", "text": "one"}])
    items, _ = read(tmp_path)
    assert [item.captions for item in items.values()] == [("one",)]
    assert next(iter(items.values())).picture.read() == (tmp_path / "data/train/a.jpg").read_bytes()
    write_tar(tmp_path / "tars/train-0.tar", [("k.jpg", RED), ("k.txt", b"two")])
    items, _ = read(tmp_path, "tars", caption_column="txt")
    assert [(item.captions, item.picture.read()) for item in items.values()] == [(("two",), RED)]


def test_class_labels_become_captions(tmp_path: Path) -> None:
    labelled = make(label=[1, 0]).cast_column("label", datasets.ClassLabel(names=["owl", "red_cat"]))
    labelled.save_to_disk(tmp_path / "data")
    assert [item.captions for item in read(tmp_path)[0].values()] == [
        ("a photo of a red cat",),
        ("a photo of an owl",),
    ]


def test_columns_have_to_be_clear_or_named(tmp_path: Path) -> None:
    make(one=["a", "b"], two=["c", "d"]).save_to_disk(tmp_path / "data")
    with pytest.raises(UserError, match=r"several columns could be captions.*image, one, two.*caption_column"):
        read(tmp_path)
    assert [item.captions for item in read(tmp_path, caption_column=["two", "one"])[0].values()] == [
        ("c", "a"),
        ("d", "b"),
    ]
    assert [item.captions for item in read(tmp_path, caption_column=[])[0].values()] == [(), ()]
    with pytest.raises(UserError, match="no column 'x'"):
        read(tmp_path, image_column="x")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "words")
    with pytest.raises(UserError, match=r"no column has pictures.*image_column"):
        read(tmp_path, "words")


def test_a_row_that_names_a_file_outside_is_not_read(tmp_path: Path) -> None:
    secret = write_picture(tmp_path / "secret.jpg")
    (tmp_path / "data").mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": str(secret)}, {"bytes": None, "path": None}], kind)
    pq.write_table(pa.table({"image": rows, "text": ["a", "b"]}), tmp_path / "data/x.parquet")
    items, _ = read(tmp_path)
    for item in items.values():
        with pytest.raises(OSError, match="no file within the data set"):
            item.picture.read()


def test_no_code_of_a_data_set_is_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/data.py").write_text(f"open({str(canary)!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be opened"):
        read(tmp_path)
    assert not canary.exists()


def test_what_is_no_data_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="data cannot be opened"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"\./gone does not exist"):
        read(tmp_path, "./gone")
    for path in ("pipe:cat x", "http://example.org/x", "../no-such-place"):
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path, path)
    (tmp_path / "x.bin").touch()
    with pytest.raises(UserError, match=r"x\.bin is a file"):
        read(tmp_path, "x.bin")


def test_an_id_is_not_asked_for_without_a_network(tmp_path: Path) -> None:
    # tests/conftest.py has set HF_HUB_OFFLINE.
    with pytest.raises(
        UserError, match=r"somebody/something cannot be opened \(no folder of that name exists either\)"
    ):
        read(tmp_path, "somebody/something")


def test_without_the_library_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        read(tmp_path)


def test_the_library_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, mentor.data.sources; sys.exit('datasets' in sys.modules or 'pycocotools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_identity_is_the_same_for_a_copy(tmp_path: Path) -> None:
    (tmp_path / "a/data").mkdir(parents=True)
    make(text=["a", "b"]).to_parquet(tmp_path / "a/data/x.parquet")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b/data/x.parquet", (1, 1))
    for path in ("data", "data/x.parquet"):
        config = source(kind="huggingface", path=path)
        assert describe_inputs(config, tmp_path / "a") == describe_inputs(config, tmp_path / "b")
