"""MENTOR's rows: each flag gives the task that the original gives it, and bad rows are counted by reason."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import outcomes, source, write_lines, write_picture
from PIL import Image

from mentor.data.sources import describe_inputs
from mentor.errors import UserError

ROW = {"image_path": "m.jpg", "source_image": "s.jpg", "objects": "dog", "input_text": "<image> a dog <image>"}


def read(folder: Path, rows: list[Any], **settings: Any) -> tuple[dict, dict]:
    write_lines(folder / "rows.jsonl", rows)
    items, dropped = outcomes(folder, kind="mentor_rows", **{"path": "rows.jsonl", "root": "data", **settings})
    return {int(key.rpartition(":")[2]): item for key, item in items.items()}, {
        int(key.rpartition(":")[2]): reason for key, reason in dropped.items()
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("s.jpg", "r.jpg", "sub/t.png"):
        write_picture(tmp_path / "data" / name)
    for name in ("m.jpg", "n.png"):
        write_picture(tmp_path / "data" / name, "white")
    return tmp_path


def test_flags_say_the_task(data: Path) -> None:
    rows = [
        {"image_path": "sub/t.png", "input_text": "words", "objects": None, "generation_only": True},
        {**ROW, "do_mask": True},
        {**ROW, "do_replace": True},
        {**ROW, "image_path": "s.jpg", "objects": None},
        {**ROW, "image_path": "r.jpg"},
        {**ROW, "generation_only": True, "do_mask": True, "do_replace": True},
        {**ROW, "do_mask": True, "do_replace": True},
        {**ROW, "image_path": ["m.jpg", "n.png"], "objects": ["dog", "red ball"]},
        {**ROW, "image_path": ["m.jpg", "n.png"], "objects": ["dog", "red ball"], "do_mask": True},
        {**ROW, "do_mask": True, "task": "recover"},
    ]
    items, dropped = read(data, rows)
    assert not dropped
    tasks = [
        "text_to_image",
        "segment",
        "recover",
        "reconstruct",
        "subject",
        "text_to_image",
        "segment",
        "recover",
        "segment",
        "recover",
    ]
    assert [items[line].tasks for line in range(1, 11)] == [(task,) for task in tasks]
    pictures = [items[line].picture.path.rpartition("/")[2] for line in range(1, 11)]
    assert pictures == ["t.png", "s.jpg", "s.jpg", "s.jpg", "s.jpg", "m.jpg", "s.jpg", "s.jpg", "s.jpg", "s.jpg"]
    assert all(item.captions == ("a dog",) for line, item in items.items() if line > 1)
    assert [view.picture.path.rpartition("/")[2] for view in items[5].views] == ["r.jpg"]
    assert [(thing.name, thing.mask) for thing in items[5].objects] == [("dog", None)]
    assert [thing.name for thing in items[8].objects] == ["dog", "red ball"]
    assert all(thing.mask is not None for line in (2, 3, 7, 8, 9, 10) for thing in items[line].objects)
    assert not any(items[line].objects or items[line].views for line in (1, 4, 6))
    # All rows of one picture are on one side of the split.
    assert {items[line].subject for line in (2, 3, 4, 5)} == {"s.jpg"}


def test_a_row_without_flags_may_be_said_to_be_a_mask(data: Path) -> None:
    items, _ = read(data, [ROW], unmarked="segment")
    assert items[1].tasks == ("segment",)
    assert items[1].objects[0].mask.read(np.zeros((6, 8, 3), np.uint8), None).all()


def test_the_rings_of_a_jpeg_mask_are_no_object(tmp_path: Path) -> None:
    write_picture(tmp_path / "data/s.jpg", size=(64, 64))
    grid = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    file = io.BytesIO()
    Image.fromarray(grid.astype(np.uint8) * 255).save(file, "JPEG", quality=40)
    (tmp_path / "data/m.jpg").write_bytes(file.getvalue())
    items, _ = read(tmp_path, [{**ROW, "do_mask": True}])
    mask = items[1].objects[0].mask.read(np.zeros((64, 64, 3), np.uint8), None)
    assert abs(int(mask.sum()) - int(grid.sum())) < 0.01 * grid.sum()
    with pytest.raises(ValueError, match="another size"):
        items[1].objects[0].mask.read(np.zeros((64, 63, 3), np.uint8), None)


def test_bad_rows_are_dropped_by_reason(data: Path) -> None:
    bad = {
        "interleaved rows have no task": {**ROW, "input_img_list": True},
        "no object": {**ROW, "objects": None},
        "objects and pictures differ in number": {**ROW, "objects": ["a", "b"]},
        "unknown task": {**ROW, "task": "sing"},
        "missing file": {**ROW, "image_path": "gone.jpg"},
        "path outside the folder": {**ROW, "image_path": "../rows.jsonl"},
        "unknown kind of picture": {**ROW, "image_path": "notes.txt"},
        "caption is not UTF-8": {**ROW, "input_text": "\ud800"},
    }
    (data / "data/notes.txt").write_text("x")
    items, dropped = read(data, [{**row, "do_mask": True} for row in bad.values()])
    assert not items
    assert list(dropped.values()) == list(bad)


def test_unreadable_rows_have_their_line_and_half_of_them_end_it(data: Path) -> None:
    bad = [{**ROW, "do_mask": "yes"}, {**ROW, "objects": 3}, {"image_path": "s.jpg"}, [1]]
    write_lines(data / "rows.jsonl", [ROW] * 5 + bad)
    with (data / "rows.jsonl").open("ab") as file:
        file.write(b"\n{no json\n")
    items, dropped = outcomes(data, kind="mentor_rows", path="rows.jsonl", root="data", unmarked="segment")
    assert list(dropped) == [f"rows.jsonl:{line}" for line in (6, 7, 8, 9, 11)]
    assert set(dropped.values()) == {"unreadable row"}
    assert len(items) == 5
    with pytest.raises(UserError, match=r"rows\.jsonl: 4 of 5 rows are none of MENTOR's, line 1: do_mask"):
        read(data, [*bad, ROW])
    with pytest.raises(UserError, match="has no rows"):
        read(data, [])


def test_several_roots_and_beginnings_that_are_taken_off(data: Path) -> None:
    write_picture(data / "more/only.jpg")
    rows = [
        {"image_path": "/volume/somebody/more/only.jpg", "input_text": "x", "objects": None, "generation_only": True},
        {"image_path": "s.jpg", "input_text": "x", "objects": None, "generation_only": True},
        {"image_path": str(data / "data/s.jpg"), "input_text": "x", "objects": None, "generation_only": True},
        {"image_path": "/volume/somebody/more/../../data/s.jpg", "input_text": "x", "generation_only": True},
    ]
    items, dropped = read(data, rows, root=["data", "more"], strip=["/volume/somebody/more"])
    assert [items[line].picture.path.rpartition("/")[2] for line in (1, 2, 3)] == ["only.jpg", "s.jpg", "s.jpg"]
    assert dropped == {4: "path outside the folder"}
    items, dropped = read(data, rows[:2], root=[])
    assert not items and set(dropped.values()) == {"path outside the folder", "missing file"}


def test_rows_of_other_tasks_are_counted_not_kept(data: Path) -> None:
    items, dropped = read(data, [{**ROW, "do_mask": True}, {**ROW, "do_replace": True}], tasks=["recover"])
    assert list(items) == [2]
    assert dropped == {1: "task is not asked for"}
    with pytest.raises(UserError, match="tasks"):
        read(data, [ROW], tasks=["sing"])


def test_the_identity_is_the_files(data: Path) -> None:
    write_lines(data / "rows.jsonl", [ROW])
    write_lines(data / "more.jsonl", [ROW])
    config = source(kind="mentor_rows", path=["rows.jsonl", "more.jsonl"])
    described = describe_inputs(config, data)
    assert list(described) == ["rows.jsonl", "more.jsonl"]
    assert len(set(described.values())) == 1
