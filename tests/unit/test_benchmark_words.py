"""What `tools/benchmark.py words` asks, of whom, and what it refuses."""

import importlib
import importlib.util
import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import save_tiny_releases

from mentor.data.storage.shards import ShardSet
from mentor.data.tensors import to_pixels
from mentor.errors import UserError
from mentor.evaluation.benchmarks import make_examples
from mentor.evaluation.oracles import SceneOracle
from mentor.types import Example, prompt_text

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def words() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield importlib.import_module("benchmarks.words")


@pytest.fixture(scope="module")
def program(words: ModuleType) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        spec = importlib.util.spec_from_file_location("benchmark_program_of_words", TOOLS / "benchmark.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@pytest.fixture(scope="module")
def examples(words: ModuleType, shapes: Path) -> list[Example]:
    return make_examples("text_to_image", ShardSet(shapes, "heldout"), words.settings(1), 64)


@pytest.fixture(scope="module")
def texts(words: ModuleType, shapes: Path) -> str:
    return words.training_texts(ShardSet(shapes, "train"))


def kind_of(words: ModuleType, name: str):
    return next(kind for kind in words.KINDS if kind.name == name)


def trained(folder: Path, shapes: Path, **facts: object) -> Path:
    """A release that says that it was trained on the shapes."""
    release = save_tiny_releases(folder) / "model"
    config = json.loads((release / "config.json").read_text())
    config["data"] = {"root": str(shapes), "fingerprint": "f"} | {k: v for k, v in facts.items() if k == "fingerprint"}
    config["training"] = {"seed": 0, "conditioner.text_encoder": "", "optimizer.lr": 0.1} | facts
    (release / "config.json").write_text(json.dumps(config))
    return release


@pytest.mark.parametrize("name", ["colours", "patterns", "places"])
def test_one_kind_of_word_is_replaced_and_nothing_else(
    words: ModuleType, examples: list[Example], texts: str, name: str
) -> None:
    kind = kind_of(words, name)
    asked = [example for example in examples if words.usable(kind, example)]
    assert asked
    for example in asked:
        same = words.reworded(kind, example, "trained words", texts, 1)
        assert prompt_text(same.prompt) == example.facts["caption"]
        for wording in ("unseen words", "nonsense"):
            new = words.reworded(kind, example, wording, texts, 1)
            assert new.facts is example.facts and torch.equal(new.target, example.target)
            caption = prompt_text(new.prompt)
            assert caption != example.facts["caption"]
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
            assert caption == prompt_text(words.reworded(kind, example, wording, texts, 1).prompt)
            kept = [word for word in example.facts["caption"].split() if word not in " ".join(kind.asked(example))]
            assert [word for word in kept if word not in caption.split() and word not in ("a", "an")] == []
            head, _, tail = example.facts["caption"].rpartition(" on ")
            assert caption.startswith(head) == (name != "places"), "an object may be red too"
            assert caption.endswith(tail) == (name == "places")


def test_an_object_keeps_its_colour(words: ModuleType, examples: list[Example], texts: str) -> None:
    background = {"colour": "red", "kind": "plain", "phrase": "a red background"}
    caption = "a large red circle at the left on a red background"
    example = replace(examples[0], facts=examples[0].facts | {"caption": caption, "background": background})
    asked = prompt_text(words.reworded(kind_of(words, "colours"), example, "unseen words", texts, 1).prompt)
    assert re.fullmatch(r"a large red circle at the left on a (scarlet|crimson) background", asked)


def test_nonsense_is_as_long_and_nowhere_in_training(words: ModuleType, examples: list[Example], texts: str) -> None:
    kind = kind_of(words, "places")
    for example in examples:
        unseen, nonsense = (
            prompt_text(words.reworded(kind, example, wording, texts, 1).prompt)
            for wording in ("unseen words", "nonsense")
        )
        assert unseen != nonsense
        assert [len(word) for word in unseen.split()] == [len(word) for word in nonsense.split()]
    assert words.nonsense(3, "", random.Random(0)) != words.nonsense(3, "", random.Random(1))
    first = words.nonsense(3, "", random.Random(0))
    assert words.nonsense(3, f"a {first} b", random.Random(0)) != first


def test_articles_fit_what_follows(words: ModuleType) -> None:
    assert words.with_article("a azure background") == "an azure background"
    assert words.with_article("an scarlet gradient") == "a scarlet gradient"
    assert words.with_article("azure dots") == "azure dots"


def test_a_word_that_training_has_is_refused(words: ModuleType, texts: str) -> None:
    for kind in words.KINDS:
        words.check_unseen(kind, texts)
    assert "triangle" in texts
    seen = replace(kind_of(words, "colours"), unseen={"blue": ("azure", "purple")})
    with pytest.raises(UserError, match=r"'purple' is no unseen word, training has it in .* take another one"):
        words.check_unseen(seen, texts)
    words.check_unseen(replace(seen, unseen={"blue": ("purp",)}), texts)


def test_the_truth_is_right_and_another_picture_is_not(words: ModuleType, examples: list[Example]) -> None:
    scenes = SceneOracle(64)
    for kind in words.KINDS:
        asked = [example for example in examples if words.usable(kind, example)]
        readings = [scenes.read(to_pixels(example.target)) for example in asked]
        right = [kind.right(reading, example) for reading, example in zip(readings, asked, strict=True)]
        assert sum(right) >= 0.9 * len(asked)
        other = {"colours": {"colour": "none"}, "patterns": {"kind": "none"}, "places": {}}[kind.name]
        for reading, example in zip(readings, asked, strict=True):
            background = example.facts["background"] | other
            facts = example.facts | {"background": background} | ({"objects": []} if kind.name == "places" else {})
            assert not kind.right(reading, replace(example, facts=facts))


def test_two_models_are_asked_the_same_and_each_has_its_rows(
    words: ModuleType, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [trained(tmp_path / name, shapes) for name in ("one", "two")]
    asked: dict[str, list[str]] = {}
    original = words.draw

    def draw(contestant, task, examples, *more):
        asked.setdefault(contestant.folder.parent.name, []).extend(prompt_text(example.prompt) for example in examples)
        return original(contestant, task, examples, *more)

    monkeypatch.setattr(words, "draw", draw)
    rows = words.measure_words(tmp_path, True, models)
    assert asked["one"] == asked["two"]
    assert len(rows) == 3 * 3 * 2 and {row.peer for row in rows} == {f"BPE ({model})" for model in models}
    assert {row.case for row in rows if "colours" in row.case} == {f"colours, {wording}" for wording in words.WORDINGS}
    assert all(0 <= row.value <= 100 and re.search(r"standard error [\d.]+, n \d+", row.note) for row in rows)
    one, two = rows[0], rows[1]
    assert (one.value, one.case) == (two.value, two.case), "the two are the same model"


def test_models_that_were_not_trained_alike_are_refused(words: ModuleType, shapes: Path, tmp_path: Path) -> None:
    first = trained(tmp_path / "a", shapes)
    words.check_alike([words.load_contestant(path) for path in (first, first)])
    encoder = trained(tmp_path / "b", shapes, **{"conditioner.text_encoder": "minilm"})
    assert words.check_alike([words.load_contestant(path) for path in (first, encoder)]) == shapes
    for change, said in (({"optimizer.lr": 0.2}, "optimizer.lr"), ({"fingerprint": "g"}, "data fingerprint")):
        other = trained(tmp_path / said.replace(" ", "-"), shapes, **change)
        with pytest.raises(UserError, match=f"were not trained alike .*{said}"):
            words.check_alike([words.load_contestant(path) for path in (first, other)])
    tokenizer = first.parent / "tokenizer"
    with pytest.raises(UserError, match="reads no words"):
        words.measure_words(tmp_path, True, [tokenizer])
    with pytest.raises(UserError, match="say --model DIR, once for each"):
        words.measure_words(tmp_path, True, [])


def test_models_are_given_to_what_has_a_use_for_them(program: ModuleType, tmp_path: Path) -> None:
    two = [tmp_path / "a", tmp_path / "b"]
    assert program.choose("words", two).keywords == {"models": two}
    assert program.choose("decode", two[:1]).keywords == {"model": two[0]}
    assert program.choose("training", []) is program.SUBJECTS["training"]
    with pytest.raises(UserError, match="decode measures one model, 2 were given"):
        program.choose("decode", two)
    with pytest.raises(UserError, match="data has no use for it"):
        program.choose("data", two[:1])
