"""All kinds of sources alike: told apart by their kind, items that travel, an order without a locale."""

import json
import os
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import datasets
import pytest
from layouts import picture_bytes, source, write_coco, write_cutout, write_lines, write_picture, write_tar

from mentor.data.sources import read_items
from mentor.data.sources.items import Item
from mentor.errors import UserError

KINDS = {
    "folder": {"kind": "folder", "path": "pics", "captions": "none"},
    "coco": {"kind": "coco", "images": "photos", "instances": "instances.json"},
    "subjects": {"kind": "subjects", "path": "subjects"},
    "huggingface": {"kind": "huggingface", "path": "hf"},
    "mentor_rows": {"kind": "mentor_rows", "path": "rows.jsonl", "root": "pics"},
    "tars": {"kind": "tars", "paths": "*.tar"},
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_coco(tmp_path_factory.mktemp("all kinds é"))
    for name in ("ä.jpg", "z.jpg", "Z.jpg", "日本/a b.jpg"):
        write_picture(folder / "pics" / name)
    for name in ("dog/0.png", "dog/1.png"):
        write_cutout(folder / "subjects" / name)
    row = {"image_path": "z.jpg", "source_image": "ä.jpg", "objects": "dog", "input_text": "x", "do_mask": True}
    write_lines(folder / "rows.jsonl", [row])
    write_tar(folder / "x.tar", [("ü.jpg", picture_bytes()), ("ü.txt", b"x")])
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_small_and_travel_between_processes(everything: Path, kind: str) -> None:
    if kind == "huggingface":
        rows = {"image": [{"bytes": picture_bytes(), "path": None}], "text": ["x"]}
        made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        made.save_to_disk(everything / "hf")
    items = [item for item in read_items(source(**KINDS[kind]), everything) if isinstance(item, Item)]
    assert items
    for item in items:
        sent = ForkingPickler.dumps(item)
        received = ForkingPickler.loads(sent)
        assert len(sent) < 3000
        assert received == item
        assert received.picture.read() == item.picture.read()
        # Attributes end up in a sample's JSON.
        assert json.loads(json.dumps(dict(item.attributes))) == item.attributes


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"kind.*'folder', 'coco', 'subjects', 'huggingface', 'mentor_rows', 'tars'"):
        source(kind="cocoa", path="x")
    with pytest.raises(UserError, match=r"caption: unknown key .*captions"):
        source(kind="folder", path="x", caption="auto")


def test_the_order_does_not_depend_on_locale_or_time_zone(everything: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path; from layouts import source;"
        "from mentor.data.sources import describe_inputs, read_items;"
        "kinds = json.loads(sys.argv[1]); root = Path(sys.argv[2]);"
        "print(json.dumps([[[item.origin for item in read_items(source(**kind), root)],"
        " describe_inputs(source(**kind), root)] for kind in kinds]))"
    )
    kinds = json.dumps([settings for kind, settings in KINDS.items() if kind != "huggingface"])
    printed = set()
    for locale in ("C", "C.UTF-8", "tr_TR.UTF-8"):
        path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[3])])
        zone = "Asia/Tokyo" if locale == "C" else "UTC"
        environment = {**os.environ, "LC_ALL": locale, "TZ": zone, "PYTHONPATH": path}
        command = [sys.executable, "-c", code, kinds, str(everything)]
        printed.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(printed) == 1
    assert json.loads(printed.pop())[0][0] == ["Z.jpg", "z.jpg", "ä.jpg", "日本/a b.jpg"]
