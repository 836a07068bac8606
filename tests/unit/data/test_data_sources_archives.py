"""Sources: the bundled archives are what their index says and name a licence each; damaged ones are refused."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mentor.data.sources.archives import (
    CutoutSource,
    PhotoSource,
    ShapeSource,
    digest_inputs,
    read_cutouts,
    read_photos,
)
from mentor.errors import UserError

RECIPES = Path(__file__).resolve().parents[3] / "data_recipes"
OBJECTS = CutoutSource(source="cutouts", archive="emoji/objects.zip")
PHOTOS = PhotoSource(source="photos", archive="emoji/photos.zip")


def write_zip(path: Path, rows: list[dict], members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("index.jsonl", "\n".join(map(json.dumps, rows)))
        for name, content in members.items():
            archive.writestr(name, content)


def picture(mode: str = "RGBA") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (10, 6), "red").save(file, "PNG")
    return file.getvalue()


def row(**changes: str) -> dict:
    plain = {"id": "x", "file": "x.png", "name": "apple", "number": "singular", "style": "3d", "licence": "MIT"}
    return {**plain, **changes}


def test_the_bundle_fits_into_the_repository() -> None:
    size = sum(path.stat().st_size for path in (RECIPES / "emoji").rglob("*") if path.is_file())
    assert size < 12e6


def test_bundled_cutouts_have_names_in_lower_case_one_per_subject_and_a_licence_each() -> None:
    cutouts = read_cutouts(OBJECTS, RECIPES)
    assert len({cutout.id for cutout in cutouts}) == len(cutouts) > 1200
    by_code: dict[str, set[str]] = {}
    for cutout in cutouts:
        assert cutout.name == cutout.name.lower().strip()
        assert {"licence", "attribution", "source_url"} <= cutout.credit.keys()
        by_code.setdefault(cutout.id.partition("-")[2], set()).add(cutout.name)
    assert all(len(names) == 1 for names in by_code.values())
    names = [(cutout.name, cutout.style) for cutout in cutouts]
    assert len(set(names)) == len(names)


def test_bundled_cutouts_are_cropped_to_their_object() -> None:
    for cutout in read_cutouts(OBJECTS, RECIPES)[::40]:
        rgba = cutout.read()
        assert rgba.dtype == np.uint8
        assert rgba.shape[2] == 4
        assert max(rgba.shape[:2]) <= 96
        opaque = rgba[..., 3] > 16
        assert opaque[0].any() and opaque[-1].any() and opaque[:, 0].any() and opaque[:, -1].any()


def test_one_style_alone() -> None:
    chosen = read_cutouts(CutoutSource(source="cutouts", archive="emoji/objects.zip", styles=("noto",)), RECIPES)
    assert {cutout.style for cutout in chosen} == {"noto"}
    with pytest.raises(UserError, match=r"styles: 'oil' is unknown.*3d, noto"):
        read_cutouts(CutoutSource(source="cutouts", archive="emoji/objects.zip", styles=("oil",)), RECIPES)


def test_bundled_photographs_have_captions_masks_of_their_size_and_a_licence_each() -> None:
    photos = read_photos(PHOTOS, RECIPES)
    assert len({photo.id for photo in photos}) == len(photos) > 650
    assert all(photo.captions and {"licence", "attribution", "source_url"} <= photo.credit.keys() for photo in photos)
    assert all(photo.credit.get("author") for photo in photos if photo.id.startswith("flower"))
    for photo in photos[::30]:
        image = photo.read()
        assert min(image.shape[:2]) == 128
        for _, read in photo.objects:
            mask = read()
            assert mask.shape == image.shape[:2]
            assert mask.dtype == np.bool_
            assert mask.any()


def test_every_bundled_flower_has_its_photographer_in_the_licence_file() -> None:
    text = (RECIPES / "emoji/LICENSES/flower_photos-CC-BY-2.0.txt").read_text(encoding="utf-8")
    flowers = [photo for photo in read_photos(PHOTOS, RECIPES) if photo.id.startswith("flower")]
    assert flowers
    assert all(photo.credit["source_url"] in text for photo in flowers)


def test_archives_have_fixed_dates() -> None:
    for name in ("objects", "photos"):
        with zipfile.ZipFile(RECIPES / f"emoji/{name}.zip") as archive:
            assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_some_shapes_alone() -> None:
    source = ShapeSource(source="shapes", shapes=("circle", "ring"), colours=("red",), textures=("plain", "striped"))
    names = {cutout.name for cutout in read_cutouts(source, RECIPES)}
    assert names == {"red circle", "striped red circle", "red ring", "striped red ring"}
    first = read_cutouts(source, RECIPES)[0]
    assert first.attributes == {"shape": "circle", "colour": "red", "texture": "plain"}
    with pytest.raises(UserError, match="'blob' is unknown"):
        read_cutouts(ShapeSource(source="shapes", shapes=("blob",)), RECIPES)


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"emoji/objects\.zip cannot be read"):
        read_cutouts(OBJECTS, tmp_path)
    with pytest.raises(UserError, match=r"emoji/photos\.zip cannot be read"):
        digest_inputs([PHOTOS], tmp_path)


def test_an_archive_that_is_no_zip_or_has_no_index_is_refused(tmp_path: Path) -> None:
    source = CutoutSource(source="cutouts", archive="a.zip")
    (tmp_path / "a.zip").write_bytes(b"not a zip file at all")
    with pytest.raises(UserError, match=r"a\.zip is damaged"):
        read_cutouts(source, tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(UserError, match=r"a\.zip is damaged"):
        read_cutouts(source, tmp_path)


def test_a_corrupt_picture_in_an_archive_is_named(tmp_path: Path) -> None:
    source = CutoutSource(source="cutouts", archive="a.zip")
    write_zip(tmp_path / "a.zip", [row()], {"x.png": picture()[:40]})
    with pytest.raises(UserError, match=r"x\.png is missing or no readable picture"):
        read_cutouts(source, tmp_path)[0].read()
    write_zip(tmp_path / "a.zip", [row()], {"y.png": picture()})
    with pytest.raises(UserError, match=r"x\.png is missing"):
        read_cutouts(source, tmp_path)[0].read()


def test_members_outside_the_archive_are_never_touched(tmp_path: Path) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(picture())
    inside = tmp_path / "recipe"
    inside.mkdir()
    write_zip(inside / "a.zip", [row(file="../secret.png")], {})
    with pytest.raises(UserError, match="missing or no readable picture"):
        read_cutouts(CutoutSource(source="cutouts", archive="a.zip"), inside)[0].read()


def test_digests_follow_the_bytes(tmp_path: Path) -> None:
    source = CutoutSource(source="cutouts", archive="a.zip")
    write_zip(tmp_path / "a.zip", [row()], {"x.png": picture()})
    before = digest_inputs([source, ShapeSource(source="shapes")], tmp_path)
    assert list(before) == ["a.zip"]
    write_zip(tmp_path / "a.zip", [row(name="pear")], {"x.png": picture()})
    assert digest_inputs([source], tmp_path) != before
