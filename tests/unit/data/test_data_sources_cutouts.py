"""A plain folder of RGBA pictures as cut-outs for scenes: names, an index, refusals, and scenes made of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from layouts import write_cutout, write_lines, write_picture

from mentor.data.making.composing import Composer
from mentor.data.making.recipes import load_recipe
from mentor.data.sources.archives import Cutout, CutoutSource, digest_inputs, read_cutouts
from mentor.errors import UserError


def read(folder: Path, **settings: Any) -> list[Cutout]:
    return read_cutouts(CutoutSource(source="cutouts", archive="cut", **settings), folder)


def facts(folder: Path) -> list[tuple[str, str, str]]:
    return [(cutout.id, cutout.name, cutout.style) for cutout in read(folder)]


def test_files_and_folders_are_names(tmp_path: Path) -> None:
    for name in ("red_apple.png", "tea-pot.webp", "dog/1.png", "dog/b/2.PNG"):
        write_cutout(tmp_path / "cut" / name)
    (tmp_path / "cut/notes.txt").write_text("x")
    assert facts(tmp_path) == [
        ("dog/1", "dog", "folder"),
        ("dog/b/2", "dog", "folder"),
        ("red_apple", "red apple", "folder"),
        ("tea-pot", "tea pot", "folder"),
    ]
    rgba = read(tmp_path)[0].read()
    assert rgba.shape == (2, 4, 4)
    assert (rgba == (255, 0, 0, 255)).all()


def test_an_index_says_more(tmp_path: Path) -> None:
    write_cutout(tmp_path / "cut/a.png")
    write_cutout(tmp_path / "cut/unlisted.png")
    row = {"file": "a.png", "name": "scissors", "number": "plural", "style": "ink", "licence": "CC0-1.0"}
    write_lines(tmp_path / "cut/index.jsonl", [row, {"file": "a.png", "id": "again"}])
    first, second = read(tmp_path)
    assert (first.id, first.name, first.number, first.style) == ("a", "scissors", "plural", "ink")
    assert first.credit == {"id": "a", "licence": "CC0-1.0"}
    assert (second.id, second.name, second.number, second.style) == ("again", "a", "singular", "folder")
    assert [cutout.name for cutout in read(tmp_path, styles=["ink"])] == ["scissors"]


def test_an_index_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    write_cutout(tmp_path / "secret.png")
    for file in ("../secret.png", str(tmp_path / "secret.png")):
        write_lines(tmp_path / "cut/index.jsonl", [{"file": file}])
        with pytest.raises(UserError, match=r"secret\.png cannot be used \(path outside the folder\)"):
            read(tmp_path)
    write_lines(tmp_path / "cut/index.jsonl", [{"file": "gone.png"}])
    with pytest.raises(UserError, match=r"gone\.png is missing"):
        read(tmp_path)
    (tmp_path / "cut/index.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(UserError, match=r"index\.jsonl, line 1: no file"):
        read(tmp_path)


def test_pictures_without_transparency_are_named(tmp_path: Path) -> None:
    write_cutout(tmp_path / "cut/good.png")
    for name in ("plain.png", "photo.jpg"):
        path = write_picture(tmp_path / "cut" / name)
        with pytest.raises(UserError, match=rf"{name} has no transparency"):
            read(tmp_path)
        path.unlink()
    write_picture(tmp_path / "cut/opaque.png", (1, 2, 3, 255), mode="RGBA")
    with pytest.raises(UserError, match=r"opaque\.png has no transparency"):
        [cutout.read() for cutout in read(tmp_path)]
    (tmp_path / "cut/opaque.png").write_text("<html>")
    with pytest.raises(UserError, match=r"opaque\.png is no readable"):
        read(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    with pytest.raises(UserError, match=r"cut holds no \.png or \.webp"):
        read(tmp_path)


def test_the_digest_follows_names_and_bytes_of_the_pictures(tmp_path: Path) -> None:
    source = CutoutSource(source="cutouts", archive="cut")
    digests = []
    for colour, name in (((255, 0, 0), "a.png"), ((254, 0, 0), "a.png"), ((254, 0, 0), "b.png")):
        write_cutout(tmp_path / "cut" / name, colour)
        digests.append(digest_inputs([source], tmp_path)["cut"])
    (tmp_path / "cut/notes.txt").write_text("x")
    assert digest_inputs([source], tmp_path)["cut"] == digests[2]
    assert len(set(digests)) == 3


def test_the_archive_may_lie_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cutout(tmp_path / "here/cut/a.png")
    (tmp_path / "recipes").mkdir()
    with pytest.raises(UserError, match=rf"archive cut cannot be read.*{tmp_path}/recipes/cut and "):
        read(tmp_path / "recipes")
    monkeypatch.chdir(tmp_path / "here")
    assert [cutout.name for cutout in read(tmp_path / "recipes")] == ["a"]


def test_scenes_are_made_of_a_folder(tmp_path: Path) -> None:
    for name in ("cup", "pear", "duck", "bell"):
        write_cutout(tmp_path / "cut" / f"{name}.png", (200, 30, 30), (32, 32))
    recipe = {
        "kind": "scenes",
        "subjects": {"source": "cutouts", "archive": "cut"},
        "scenes": {"train": 4, "heldout": 0, "backgrounds": {"plain": 1}},
        "heldout": {"share": 0},
        "size": 32,
        "snap": 4,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    composer = Composer(load_recipe(str(tmp_path / "mine.yaml"), [], tmp_path))
    records = [composer.record("train", position) for position in range(4)]
    assert {record.objects[0].name for record in records} <= {"cup", "pear", "duck", "bell"}
    assert all(np.asarray(record.objects[0].mask).any() for record in records)
