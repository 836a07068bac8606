"""Recipes: who is held out, what a record says of itself, and settings with their refusals."""

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mentor.data.making.building import build_dataset
from mentor.data.making.composing import FREE_SIDE, Composer
from mentor.data.making.recipes import HeldOutConfig, LoadedRecipe, list_recipes, load_recipe
from mentor.data.making.scenes import COLOURS, Background, box_corner, box_side, fit, render_background
from mentor.data.making.splits import is_held_out, split_photos
from mentor.data.making.synthetic import draw_shape
from mentor.data.records import Record
from mentor.data.sources.archives import Photo
from mentor.data.storage.manifest import SPLITS
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError

RECIPES = Path(__file__).resolve().parents[3] / "data_recipes"


def load(name: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(name, overrides, RECIPES)


def descriptions(root: Path, split: str) -> list[dict]:
    shards = ShardSet(root, split)
    return [
        shards.description(shard, position) for shard, count in enumerate(shards.counts) for position in range(count)
    ]


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


def test_limit_counts_all_records_and_keeps_both_splits() -> None:
    plan = Composer(load("shapes", "limit=50")).plan
    assert sum(map(len, plan.values())) == 50
    assert plan["train"] and plan["heldout"]


def test_settings_reach_nested_keys() -> None:
    recipe = load("emoji", "scenes.train=5", "scenes.backgrounds={plain: 1}", "heldout.salt=x").recipe
    assert recipe.scenes is not None
    assert (recipe.scenes.train, recipe.scenes.backgrounds, recipe.heldout.salt) == (5, {"plain": 1.0}, "x")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scenes.tran=5"], r"unknown key scenes\.tran \(did you mean .*scenes\.train"),
        (["ouput=x"], r"unknown key ouput \(did you mean output"),
        (["scenes.train=many"], r"scenes\.train: 'many'"),
        (["scenes.backgrounds.plain=-1"], r"scenes\.backgrounds.*negative"),
        (["subjects.source=films"], r"subjects.*films"),
        (["size=60"], r"multiple of snap"),
        (["limit=0"], r"limit: 0"),
        (["seed"], r"cannot read 'seed'"),
        (["seed=[1"], r"seed: '\[1' cannot be read"),
    ],
)
def test_wrong_settings_name_the_full_path(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load("shapes", *overrides)
    assert "\n" not in str(caught.value)


def test_unknown_recipes_are_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no recipe 'emojis'.*did you mean emoji.*choose one of coco, dreambench, emoji, "
    ):
        load("emojis")
    with pytest.raises(UserError, match=r"no recipe .*other\.yaml"):
        load(str(tmp_path / "other.yaml"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scenes.train=0"], "too few records"),
        (["scenes.train=0", "scenes.heldout=0"], "too few records"),
        (["subjects.shapes=[ring]", "subjects.colours=[red]"], "too few for scenes"),
        (["limit=1"], "limit=1 leaves a split without records"),
    ],
)
def test_recipes_without_records_are_refused_before_anything_is_written(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        build_dataset(load("shapes", *overrides), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_photographs_alone_make_a_data_set(tmp_path: Path) -> None:
    recipe = tmp_path / "album.yaml"
    archive = os.path.relpath(RECIPES / "emoji/photos.zip", tmp_path)
    recipe.write_text(
        f"kind: scenes\nphotographs: {{source: photos, archive: {archive}, collections: [flowers]}}\n"
        "limit: 30\nsize: 32\nsnap: 4\n"
    )
    build_dataset(load(str(recipe)), tmp_path / "out")
    shards = ShardSet(tmp_path / "out", "train")
    assert shards.manifest["recipe"]["name"] == "album"
    assert shards.record(0, 0).image.shape == (32, 32, 3)
    assert shards.record(0, 0).objects == shards.record(0, 0).views == ()


RECORDS = """
kind: records
inputs: {path: "??? the folder", size: 64, captions: auto}
sources:
  - {kind: folder, path: "${path}", captions: "${captions}"}
steps:
  - {step: resize, size: "${size}"}
"""


def write_recipe(folder: Path, text: str = RECORDS) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_recipe_without_a_kind_is_told_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe mine: it does not say its `kind`: there are records .*scenes .*tars"):
        load(write_recipe(tmp_path, "size: 32\n"))
    with pytest.raises(UserError, match=r"kind 'record' is unknown \(did you mean records\?\): there are"):
        load(write_recipe(tmp_path, "kind: record\n"))


def test_inputs_are_put_in_and_must_be_given(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(UserError, match=r"recipe mine: path has no default: say path=PATH, the folder"):
        load(recipe)
    with pytest.raises(UserError, match=r"path has no default \(pth is unknown\): say path=PATH"):
        load(recipe, "pth=x")
    loaded = load(recipe, "path=pictures", "size=32", "seed=3").recipe
    assert (loaded.sources[0].path, loaded.steps[0].size, loaded.seed) == ("pictures", 32, 3)
    with pytest.raises(UserError, match=r"unknown key captoins \(did you mean .*captions"):
        load(recipe, "path=pictures", "captoins=none")
    with pytest.raises(UserError, match=r"steps.0.size: 'big'"):
        load(recipe, "path=pictures", "size=big")


@pytest.mark.parametrize("name", ["2024", "a # b", "x: y", "true", "null.d", "été", "~nobody"])
def test_inputs_are_taken_as_they_stand(name: str, tmp_path: Path) -> None:
    assert load(write_recipe(tmp_path), f"path={name}").recipe.sources[0].path == name


def test_a_folder_that_is_here_is_meant_whatever_lies_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "emoji").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert load("folder", "path=emoji").recipe.sources[0].path == str(tmp_path / "here" / "emoji")


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${HOME}", "${oc.decode:1}", "${path.real}"])
def test_nothing_but_inputs_is_ever_put_in(value: str, tmp_path: Path) -> None:
    text = RECORDS.replace("${captions}", value)
    with pytest.raises(UserError, match="is none of the inputs"):
        load(write_recipe(tmp_path, text), "path=x")


@pytest.mark.parametrize("inputs", ["[path]", "{output: x}", "{kind: x}", "{a b: x}"])
def test_inputs_that_could_not_be_said_are_refused(inputs: str, tmp_path: Path) -> None:
    text = RECORDS.replace('{path: "??? the folder", size: 64, captions: auto}', inputs)
    with pytest.raises(UserError, match="inputs: "):
        load(write_recipe(tmp_path, text))


def test_entries_of_lists_are_set_by_their_number(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    loaded = load(recipe, "path=x", "sources.0.captions=none", "steps.0.crop=false", "heldout.share=0.5").recipe
    assert (loaded.sources[0].captions, loaded.steps[0].crop, loaded.heldout.share) == ("none", False, 0.5)
    assert load(recipe, "path=x", "steps=[]").recipe.steps == ()
    with pytest.raises(UserError, match=r"unknown key sources\.1\.captions \(did you mean sources\.0\.captions"):
        load(recipe, "path=x", "sources.1.captions=none")


def test_where_things_lie_is_no_part_of_what_they_are(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    resolved = load(recipe, f"path={tmp_path}/a/b").recipe.resolved()
    assert resolved == load(recipe, "path=~/c/b").recipe.resolved()
    assert resolved["sources"][0]["path"] == "b"
    assert str(tmp_path) not in str(resolved)


def test_every_ready_recipe_says_what_it_needs_and_can_be_read() -> None:
    needs = {"coco": ["images=x", "captions=y"], "img2dataset": ["paths=x"], "emoji": [], "shapes": []}
    listed = list_recipes(RECIPES)
    assert len(listed) == 9
    for name, line in listed.items():
        given = needs.get(name, ["path=x"])
        assert load(name, *given).recipe.description in line
        assert all(f"{one.partition('=')[0]}=" in line for one in given[:1])
        for missing in given[:1]:
            with pytest.raises(UserError, match=f"{missing.partition('=')[0]} has no default"):
                load(name)


def test_several_steps_for_duplicates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several look for duplicates"):
        load(write_recipe(tmp_path), "path=x", "steps=[{step: duplicates}, {step: duplicates, perceptual: 3}]")
