"""Recipes of scenes: who is held out, what a record says of itself, and that it is so."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from builds import descriptions, load

from mentor.data.making.building import build_dataset
from mentor.data.making.composing import FREE_SIDE, Composer
from mentor.data.making.recipes import HeldOutConfig
from mentor.data.making.scenes import COLOURS, Background, box_corner, box_side, fit, render_background
from mentor.data.making.splits import is_held_out, split_photos
from mentor.data.making.synthetic import draw_shape
from mentor.data.records import Record
from mentor.data.sources.archives import Photo
from mentor.data.storage.manifest import SPLITS
from mentor.errors import UserError


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("emoji") / "data"
    build_dataset(load("emoji", "scenes.train=700", "scenes.heldout=120", "size=32", "snap=4", "scenes.views=1"), root)
    return root


@pytest.fixture(scope="module")
def shapes_records() -> list[Record]:
    composer = Composer(load("shapes"))
    return [composer.record("train", position) for position in range(120)]


def test_no_held_out_subject_occurs_in_training_in_any_style(emoji: Path) -> None:
    train, heldout = (descriptions(emoji, split) for split in SPLITS)
    seen = {thing["name"].lower() for record in train for thing in record["objects"]}
    unseen = {thing["name"].lower() for record in heldout for thing in record["objects"]}
    assert len(unseen) > 60
    assert len(seen) > 500
    assert not seen & unseen
    styles = {thing["attributes"].get("style") for record in heldout for thing in record["objects"]}
    assert {"3d", "noto"} <= styles
    pictures = [
        {thing["attributes"].get("id") for record in split for thing in record["objects"]} for split in (train, heldout)
    ]
    assert pictures[0] & pictures[1] <= {None}
    codes = [{name.partition("-")[2] for name in split if name} for split in pictures]
    assert not codes[0] & codes[1]


def test_no_caption_of_a_training_photograph_mentions_a_held_out_subject(emoji: Path) -> None:
    unseen = {record["subject"] for record in descriptions(emoji, "heldout")} - {""}
    mention = re.compile(rf"\b({'|'.join(map(re.escape, unseen))})s?\b")
    photos = [record for record in descriptions(emoji, "train") if record["attributes"]["kind"] == "photo"]
    assert len(photos) > 500
    assert not [caption for record in photos for caption in record["captions"] if mention.search(caption)]


def test_photographs_are_in_one_split_alone_also_behind_scenes(emoji: Path) -> None:
    used = []
    for split in SPLITS:
        credits = [credit for record in descriptions(emoji, split) for credit in record["attributes"]["credits"]]
        used.append({credit["id"] for credit in credits if credit["id"].startswith(("coco", "flower", "grocery"))})
    assert len(used[1]) > 40
    assert not used[0] & used[1]
    backdrops = [
        {
            record["attributes"]["background"]["colour"]
            for record in descriptions(emoji, split)
            if background(record) == "photo"
        }
        for split in SPLITS
    ]
    assert backdrops[1]
    photos = split_photos_of_emoji()
    assert backdrops[1] <= {photo.background for photo in photos["train"]}


def background(record: dict) -> str:
    return record["attributes"].get("background", {}).get("kind", "")


def split_photos_of_emoji() -> dict[str, list[Photo]]:
    return Composer(load("emoji", "limit=10")).photos


def test_every_subject_gets_equally_many_scenes(emoji: Path) -> None:
    for split in SPLITS:
        counts = Counter(record["subject"] for record in descriptions(emoji, split) if record["subject"])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_each_record_names_licence_and_source(emoji: Path) -> None:
    for record in descriptions(emoji, "train"):
        assert record["attributes"]["credits"]
        assert all(
            {"licence", "attribution", "source_url"} <= credit.keys() for credit in record["attributes"]["credits"]
        )


def test_the_coin_is_fair_fixed_and_blind_to_case() -> None:
    config = HeldOutConfig(share=0.1)
    held = [is_held_out(f"thing {number}", config) for number in range(5000)]
    assert 0.085 < np.mean(held) < 0.115
    assert [is_held_out(f"Thing  {number}", config) for number in range(5000)] == held
    assert held != [is_held_out(f"thing {number}", HeldOutConfig(share=0.1, salt="other")) for number in range(5000)]
    expected = int.from_bytes(hashlib.sha256(b"mentor:acorn").digest()[:8], "big") < 0.1 * 2**64
    assert is_held_out("acorn", config) == expected


def test_a_photograph_of_a_held_out_thing_is_held_out_and_keeps_only_held_out_labels() -> None:
    config = HeldOutConfig(share=0.3)
    names = [f"thing{number}" for number in range(50)]
    seen = next(name for name in names if not is_held_out(name, config))
    unseen = next(name for name in names if is_held_out(name, config))
    plain = [identity for identity in names if not is_held_out(identity, config)]

    def photo(identity: str, caption: str, *labels: str) -> Photo:
        empty = tuple((label, lambda: np.zeros((4, 4), dtype=bool)) for label in labels)
        return Photo(identity, (caption,), lambda: np.zeros((4, 4, 3), np.uint8), objects=empty)

    photos = [
        photo(plain[0], "a photo", seen),
        photo(plain[1], "a photo", seen, unseen),
        photo(plain[2], f"two {unseen}s in a row", seen),
        photo(unseen, "a photo", seen),
    ]
    splits = split_photos(photos, [unseen], config)
    assert [found.id for found in splits["train"]] == [plain[0]]
    labels = {found.id: [name for name, _ in found.objects] for found in splits["heldout"]}
    assert labels == {plain[1]: [unseen], plain[2]: [], unseen: []}


def test_captions_say_what_the_attributes_say(shapes_records: list[Record]) -> None:
    for record in shapes_records:
        phrase = record.attributes["background"]["phrase"]
        parts = [f"a {thing.attributes['size']} {thing.name} {thing.attributes['place']}" for thing in record.objects]
        assert record.captions == (f"{' and '.join(parts)} on {phrase}",)
        if len(record.objects) == 2:
            assert all(thing.phrase == f"{thing.name} {thing.attributes['place']}" for thing in record.objects)
            assert {thing.attributes["size"] for thing in record.objects} == {"small"}
            assert record.objects[0].name != record.objects[1].name
        else:
            assert record.objects[0].phrase == ""
        assert record.subject == record.objects[0].name


def test_pictures_show_what_the_attributes_say(shapes_records: list[Record]) -> None:
    for record in shapes_records:
        facts = record.attributes["background"]
        expected = render_background(Background(facts["kind"], facts["colour"]), 64)
        shown = np.any([thing.mask for thing in record.objects], axis=0)
        far = ~np.any([grow(thing.attributes["box"]) for thing in record.objects], axis=0)
        assert np.array_equal(record.image[far], expected[far])
        assert shown.any()
        for thing in record.objects:
            size, place, box = (thing.attributes[key] for key in ("size", "place", "box"))
            side = box_side(size, 64)
            left, top = box_corner(place, side, 64)
            assert box == [left, top, left + side, top + side]
            assert not (thing.mask & ~grow(box)).any()
            drawn = fit(draw_shape(*(thing.attributes[key] for key in ("shape", "colour", "texture"))), side)
            window = (slice(top, top + side), slice(left, left + side))
            solid = drawn[..., 3] == 255
            assert np.array_equal(thing.mask[window], drawn[..., 3] >= 128)
            assert np.array_equal(record.image[window][solid], drawn[..., :3][solid])


def grow(box: list[int]) -> np.ndarray:
    inside = np.zeros((64, 64), dtype=bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    return inside


def test_views_show_the_same_subject_elsewhere(shapes_records: list[Record]) -> None:
    for record in shapes_records:
        subject = record.objects[0]
        aligned, free = record.views
        assert aligned.attributes["alignment"] == "aligned"
        assert aligned.attributes["size"] == subject.attributes["size"]
        assert aligned.attributes["place"] != subject.attributes["place"]
        assert all(edge % 8 == 0 for edge in aligned.attributes["box"])
        assert free.attributes["alignment"] == "free"
        assert free.attributes["place"] is free.attributes["size"] is None
        left, top, right, bottom = free.attributes["box"]
        assert right - left == bottom - top
        assert round(FREE_SIDE[0] * 64) <= right - left <= round(FREE_SIDE[1] * 64)
        for view in record.views:
            assert view.attributes["background"] != record.attributes["background"]
            assert view.attributes["style"] == record.attributes["style"]
            assert not (view.mask & ~grow(view.attributes["box"])).any()
        if len(record.objects) == 1:
            # The very same pixels, shifted; only their soft edges mix with another background.
            means = [
                picture[mask].mean(0) for picture, mask in ((record.image, subject.mask), (aligned.image, aligned.mask))
            ]
            assert np.abs(means[0] - means[1]).max() < 12
            assert subject.mask.sum() == aligned.mask.sum()


def test_backgrounds_do_not_swallow_the_object(shapes_records: list[Record]) -> None:
    for record in shapes_records:
        facts = record.attributes["background"]
        assert facts["colour"] not in {thing.attributes["colour"] for thing in record.objects}
        for view in record.views:
            assert view.attributes["background"]["colour"] != record.objects[0].attributes["colour"]
        if facts["kind"] == "plain":
            mean = record.image[record.objects[0].mask].mean(0)
            assert np.linalg.norm(mean - COLOURS[facts["colour"]]) > 40


def test_shares_are_the_recipes(emoji: Path) -> None:
    scenes = [record for record in descriptions(emoji, "train") if record["attributes"]["kind"] == "scene"]
    kinds = Counter(background(record) for record in scenes)
    assert abs(kinds["plain"] / len(scenes) - 0.35) < 0.06
    assert abs(kinds["photo"] / len(scenes) - 0.15) < 0.05
    assert abs(np.mean([len(record["objects"]) == 2 for record in scenes]) - 0.2) < 0.05
    single = [record["objects"][0]["attributes"]["size"] for record in scenes if len(record["objects"]) == 1]
    assert abs(single.count("large") / len(single) - 0.7) < 0.06


def test_a_record_does_not_depend_on_those_made_before() -> None:
    first, second = Composer(load("shapes")), Composer(load("shapes"))
    for position in (7, 3, 5):
        first.record("train", position)
    for position in (5, 7):
        ours, other = first.record("train", position), second.record("train", position)
        assert ours.captions == other.captions
        assert np.array_equal(ours.image, other.image)
        assert all(np.array_equal(a.image, b.image) for a, b in zip(ours.views, other.views, strict=True))
    reseeded = Composer(load("shapes", "seed=1")).record("train", 5)
    assert not np.array_equal(reseeded.image, second.record("train", 5).image)


def test_a_subject_of_ones_own_has_scenes_in_both_splits_and_none_in_both(tmp_path: Path) -> None:
    build_dataset(load("subject", "scenes.train=150", "scenes.heldout=60", "size=32", "snap=4"), tmp_path / "data")
    layouts = {}
    for split in SPLITS:
        found = descriptions(tmp_path / "data", split)
        assert {record["subject"] for record in found} == {"mochi"}
        assert {thing["attributes"]["id"] for record in found for thing in record["objects"]} == {
            f"mochi/{picture}" for picture in ("1f638", "1f63a", "1f63b", "1f63d", "1f63e", "1f63f")
        }
        layouts[split] = {record["captions"][0] for record in found}
    assert len(layouts["train"]) > 80 and len(layouts["heldout"]) > 20
    assert not layouts["train"] & layouts["heldout"]


def test_scenes_cannot_be_held_out_where_none_are_asked_for() -> None:
    for setting in ("heldout.share=0", "scenes.heldout=0"):
        with pytest.raises(UserError, match="do not go together"):
            load("subject", setting)
    composer = Composer(load("subject", "heldout.share=1e-9", "scenes.train=10", "scenes.heldout=1"))
    with pytest.raises(UserError, match=r"all of the other split: change heldout\.share"):
        composer.record("heldout", 0)
