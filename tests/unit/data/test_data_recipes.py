"""Recipes: settings and inputs, what they lead to, and their refusals."""

import os
from pathlib import Path

import pytest
from builds import RECIPES, load

from mentor.data.making.building import build_dataset
from mentor.data.making.composing import Composer
from mentor.data.making.recipes import list_recipes
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError


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
    needs = {"coco": ["images=x", "captions=y"], "img2dataset": ["paths=x"], "emoji": [], "shapes": [], "subject": []}
    listed = list_recipes(RECIPES)
    assert len(listed) == 10
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
