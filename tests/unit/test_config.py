"""The composed settings and every mistake one can make in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from mentor.config import (
    Config,
    compose,
    compose_command,
    compose_with_options,
    config_groups,
    flatten,
    near,
    read_yaml,
    to_yaml,
    validate,
)
from mentor.errors import UserError
from mentor.train import planned_world_size


class Leaf(Config):
    kind: Literal["leaf"] = "leaf"
    size: int = Field(default=1, gt=0)


class Twig(Config):
    kind: Literal["twig"] = "twig"
    length: float = 1.0


class Tree(Config):
    name: str
    part: Annotated[Leaf | Twig, Field(discriminator="kind")] = Leaf()
    leaves: tuple[Leaf, ...] = ()


def message(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("stage", ["tokenizer", "1", "2"])
def test_a_stage_of_digits_is_a_choice_like_any_other(stage: str) -> None:
    composed = compose("train", [f"stage={stage}"])
    assert composed["stage"] == stage
    assert composed["run"]["dir"] == f"runs/demo/{stage}"
    assert composed["name"] == "demo"


def test_an_unknown_stage_lists_the_stages() -> None:
    assert (
        message(compose, "train", ["stage=3"])
        == "stage=3 is unknown: choose one of 1, 2, diffusion, diffusion_2, tokenizer"
    )


def test_a_missing_stage_lists_the_stages() -> None:
    text = message(compose, "train", [])
    assert "stage=CHOICE" in text
    assert "1, 2, diffusion, diffusion_2, tokenizer" in text


@pytest.mark.parametrize(("choice", "options"), [("backbone=huge", "tiny"), ("experiment=none", "demo")])
def test_an_unknown_choice_lists_the_choices(choice: str, options: str) -> None:
    text = message(compose, "train", ["stage=1", choice])
    assert text.startswith(f"{choice} is unknown")
    assert options in text


def test_a_group_of_another_stage_is_refused() -> None:
    assert "backbone does not apply here" in message(compose, "train", ["stage=2", "backbone=l"])


@pytest.mark.parametrize("override", ["stage", "trainer.max_steps", "a.b='"])
def test_an_unreadable_setting_is_refused(override: str) -> None:
    text = message(compose, "train", ["stage=1", override])
    assert override in text
    assert "key=value" in text


def test_an_experiment_brings_the_file_of_the_stage() -> None:
    first = compose("train", ["stage=1", "experiment=test"])
    second = compose("train", ["experiment=test", "stage=2"])
    assert first["backbone"]["layers"] == 2
    assert first["data"]["root"] == second["data"]["root"] == "data/shapes"
    assert "backbone" not in second
    assert second["init_from"] == "runs/test/1/release"


def test_the_command_line_wins_over_the_experiment() -> None:
    composed = compose("train", ["trainer.max_steps=7", "stage=1", "backbone.width=96", "experiment=test"])
    assert composed["trainer"]["max_steps"] == 7
    assert composed["backbone"]["width"] == 96


def test_a_choice_on_the_command_line_wins_over_the_experiment() -> None:
    assert compose("train", ["stage=1", "backbone=xl", "experiment=demo"])["backbone"]["layers"] == 36


def test_a_setting_only_the_classes_know_can_be_given() -> None:
    assert compose("train", ["stage=1", "backbone.dropout=0.1"])["backbone"]["dropout"] == 0.1


def test_every_choice_of_every_group_can_be_read() -> None:
    groups = config_groups()
    assert {"stage", "backbone", "experiment", "data", "trainer"} <= groups.keys()
    for experiment in groups["experiment"]:
        for stage in groups["stage"]:
            assert compose("train", [f"stage={stage}", f"experiment={experiment}"])["name"] == experiment


def test_help_prints_the_groups_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        compose_command("train", ["--help"], "how to use it")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "how to use it" in printed
    assert "stage: 1, 2, diffusion, diffusion_2, tokenizer" in printed


def test_cfg_prints_what_would_be_used_and_ends(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        compose_command("train", ["stage=1", "--cfg", "seed=3"], "")
    assert caught.value.code == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert read_yaml(path) == compose("train", ["stage=1", "seed=3"])


def test_an_unknown_option_is_refused() -> None:
    assert "--stage" in message(compose_command, "train", ["--stage", "1"], "")
    known = "known are --help, --cfg, --try and --times"
    assert known in message(compose_with_options, "train", ["--stage"], "", {"--try": False, "--times": True})


@pytest.mark.parametrize("given", [["--times", "64"], ["--times=64"]])
def test_a_value_follows_its_option_after_a_blank_or_an_equals_sign(given: Sequence[str]) -> None:
    options = {"--try": False, "--times": True, "--never": False}
    arguments = ["stage=1", *given, "seed=3", "--try"]
    assert compose_with_options("train", arguments, "", options) == (
        compose("train", ["stage=1", "seed=3"]),
        {"--times": "64", "--try": ""},
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--times"], "--times needs a value: write --times=VALUE"),
        (["--times="], "--times needs a value"),
        (["--times", "--try"], "--times needs a value"),
        (["--try=yes"], "--try takes no value, found --try=yes"),
        (["--cfg=all"], "--cfg takes no value"),
    ],
)
def test_an_option_with_a_value_too_few_or_too_many_is_refused(given: Sequence[str], told: str) -> None:
    options = {"--try": False, "--times": True}
    assert message(compose_with_options, "train", ["stage=1", *given], "", options).startswith(told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"--world-size": "64"}, "--world-size belongs to --dry-run"),
        ({"--dry-run": "", "--world-size": "0"}, "--world-size 0"),
        ({"--dry-run": "", "--world-size": "-2"}, "--world-size -2"),
        ({"--dry-run": "", "--world-size": "many"}, "--world-size many"),
        ({"--dry-run": "", "--world-size": "1.5"}, "1 or more"),
    ],
)
def test_a_world_size_that_means_nothing_is_refused(options: Mapping[str, str], told: str) -> None:
    assert told in message(planned_world_size, options)


def test_a_world_size_is_a_number_of_processes() -> None:
    assert planned_world_size({"--dry-run": "", "--world-size": "64"}) == 64
    assert planned_world_size({"--dry-run": ""}) is None
    assert planned_world_size({}) is None


def test_validate_makes_the_class() -> None:
    tree = validate(Tree, {"name": "oak", "part": {"kind": "twig", "length": 2}})
    assert tree == Tree(name="oak", part=Twig(length=2.0))


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"name": "a", "part": {"kind": "leaf", "sise": 1}}, ["part.sise: unknown key", "did you mean size?"]),
        ({"name": "a", "nam": 1}, ["nam: unknown key", "did you mean name?"]),
        ({}, ["name: must be given"]),
        ({"name": "a", "part": {"kind": "leaf", "size": 0}}, ["part.size: 0", "greater than 0"]),
        ({"name": "a", "leaves": [{}, {"size": "x"}]}, ["leaves.1.size: 'x'", "integer"]),
        ({"name": "a", "part": {"kind": "root"}}, ["part", "'leaf', 'twig'"]),
    ],
)
def test_validate_names_path_value_and_what_is_allowed(data: dict[str, object], parts: Sequence[str]) -> None:
    text = message(validate, Tree, data)
    for part in parts:
        assert part in text


def test_a_key_of_another_class_of_the_union_is_not_offered_again() -> None:
    assert message(validate, Tree, {"name": "a", "part": {"kind": "leaf", "length": 2}}) == "part.length: unknown key"


def test_validate_takes_unions() -> None:
    either = Annotated[Leaf | Twig, Field(discriminator="kind")]
    assert validate(either, {"kind": "twig"}) == Twig()
    assert "lenght: unknown key (did you mean length?)" in message(validate, either, {"kind": "twig", "lenght": 1})


def test_instances_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Leaf().size = 2


def test_flatten_and_near() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": {}}) == {"a.b": 1, "a.c.d": 2, "e": {}}
    assert near("widht", ["width", "height"]) == " (did you mean width?)"
    assert near("zzz", ["width"]) == ""


def test_yaml_comes_back_as_it_was(tmp_path: Path) -> None:
    data = {"a": 1, "b": {"c": [1.5, "2", None, True]}, "d": "1"}
    path = tmp_path / "a.yaml"
    path.write_text(to_yaml(data))
    assert read_yaml(path) == data


@pytest.mark.parametrize("text", [None, "- 1\n- 2\n", "a: [1\n"])
def test_a_file_that_holds_no_settings_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_text(text)
    assert str(path) in message(read_yaml, path)
