"""Examples are seeded, judges are right on the ground truth, and a whole evaluation of an untrained release runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mentor import evaluate as entry
from mentor.config import compose, validate
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError
from mentor.evaluation.benchmarks import (
    evaluate,
    load_contestant,
    make_examples,
    make_judge,
    measure_tokenizer,
    parameters_by_part,
)
from mentor.evaluation.config import EvaluationConfig
from mentor.evaluation.judges import SubjectJudge, rivals, targets_of
from mentor.evaluation.oracles import SceneOracle

COUNTS = {"reconstruct": 3, "segment": 3, "text_to_image": 4, "recover": 3, "subject": 4}
PROMISED = (
    "tokenizer/psnr",
    "tokenizer/usage",
    "reconstruct/psnr",
    "reconstruct/ceiling_psnr",
    "segment/iou",
    "text_to_image/prompt_following",
    "recover/psnr_gain",
    "subject/cp",
    "subject/pf",
    "subject/cp_pf",
    "seconds/total",
)


def settings(*overrides: str) -> EvaluationConfig:
    few = [f"counts.{task}={count}" for task, count in COUNTS.items()]
    composed = compose("evaluate", [*few, "counts.tokenizer=12", "batch_size=4", *overrides])
    return validate(EvaluationConfig, composed | {"model": "m", "data": "d", "output": "o"})


@pytest.fixture(scope="module")
def heldout(shapes: Path) -> ShardSet:
    return ShardSet(shapes, "heldout")


def test_counts_of_an_issue_of_this_size() -> None:
    composed = compose("evaluate", [])
    assert all(composed["counts"][task] >= 96 for task in COUNTS)
    assert composed["candidates"] == 16


def test_examples_are_a_seeded_choice(heldout: ShardSet) -> None:
    first, again = (make_examples("subject", heldout, settings(), 64) for _ in range(2))
    other = make_examples("subject", heldout, settings("seed=7"), 64)
    assert [example.key for example in first] == [example.key for example in again]
    assert all(torch.equal(one.target, two.target) for one, two in zip(first, again, strict=True))
    assert [example.key for example in first] != [example.key for example in other]


@pytest.mark.parametrize("task", COUNTS)
def test_judges_on_the_ground_truth(task: str, heldout: ShardSet) -> None:
    config = settings("candidates=4")
    examples = make_examples(task, heldout, config, 64)
    judge = make_judge(task, SceneOracle(64), examples, config)
    scores = judge(examples, targets_of(examples))
    assert {len(values) for values in scores.values()} == {len(examples)}
    headline = next(iter(scores.values()))
    least = {"reconstruct": 50, "segment": 0.8, "text_to_image": 0.99, "recover": 10, "subject": 0.99}[task]
    kept = [value for value, example in zip(headline, examples, strict=True) if "black" not in example.facts["object"]]
    assert np.mean(kept) >= least
    if task == "subject":
        assert scores["pf"].mean() >= 0.99


def test_rivals_are_different_subjects_with_the_own_among_them(heldout: ShardSet) -> None:
    config = settings("counts.subject=16")
    examples = make_examples("subject", heldout, config, 64)
    by_key = {example.key: example.facts["subject"] for example in examples}
    for example in examples:
        keys = rivals(example, examples, 4, 0)
        assert keys == rivals(example, examples, 4, 0)
        assert example.key in keys
        assert len({by_key[key] for key in keys}) == len(keys) <= 4
    places = {rivals(example, examples, 4, 0).index(example.key) for example in examples}
    assert len(places) > 1
    judge = SubjectJudge(SceneOracle(64), examples, 1000, 0)
    assert judge.candidates == len(set(by_key.values()))


def test_whole_evaluation_of_a_generator(heldout: ShardSet, releases: Path) -> None:
    contestant = load_contestant(releases / "model")
    seen: list[tuple[str, int, int]] = []
    config = settings()
    results = evaluate(contestant, heldout, config, lambda *progress: seen.append(progress))
    assert results.metrics.keys() >= set(PROMISED)
    assert all(isinstance(value, float) and np.isfinite(value) for value in results.metrics.values())
    assert {task: len(cases) for task, cases in results.cases.items()} == COUNTS
    assert {task for task, _, _ in seen} == {"tokenizer", *COUNTS}
    assert all(results.metrics[f"{task}/count"] == count for task, count in COUNTS.items())
    assert results.metrics["recover/psnr_gain_nothing"] == pytest.approx(0)
    assert results.metrics["subject/pf_truth"] >= 0.75 > results.metrics["subject/pf_chance"]
    cp, pf = results.metrics["subject/cp"], results.metrics["subject/pf"]
    assert results.metrics["subject/cp_pf"] == pytest.approx(cp * pf)
    again = evaluate(contestant, heldout, config)
    assert {**again.metrics, "seconds/total": 0} == {**results.metrics, "seconds/total": 0}
    for task, cases in results.cases.items():
        assert all((a.output == b.output).all() for a, b in zip(cases, again.cases[task], strict=True))


def test_a_release_of_an_image_tokenizer_alone(heldout: ShardSet, releases: Path) -> None:
    contestant = load_contestant(releases / "tokenizer")
    results = evaluate(contestant, heldout, settings())
    assert {key.split("/")[0] for key in results.metrics} == {"tokenizer", "seconds"}
    assert not results.cases
    assert list(parameters_by_part(contestant)) == ["image tokenizer"]


def test_usage_counts_codes_that_are_seen(heldout: ShardSet, releases: Path) -> None:
    contestant = load_contestant(releases / "tokenizer")
    measured = measure_tokenizer(contestant, heldout, settings("counts.tokenizer=1"), lambda *progress: None)
    assert measured["tokenizer/count"] == 1
    assert 1 / 64 <= measured["tokenizer/usage"] <= 1
    assert 1 <= measured["tokenizer/perplexity"] <= 64 * measured["tokenizer/usage"] + 1e-6


def arguments(shapes: Path, model: Path, output: Path, *more: str) -> list[str]:
    few = [f"counts.{task}={count}" for task, count in {**COUNTS, "tokenizer": 8}.items()]
    return [f"model={model}", f"data={shapes}", f"output={output}", *few, *more]


def test_command_writes_all_files(
    shapes: Path, releases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a folder, with = and (brackets)"
    entry.main(arguments(shapes, releases / "model", output))
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics.keys() >= set(PROMISED)
    assert {path.stem for path in (output / "samples").iterdir()} == set(COUNTS)
    assert (output / "report.html").read_text().startswith("<!doctype html>")
    assert not list(output.rglob("*.partial"))
    assert "subject/cp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("data=missing", "make_shards.py"),
        ("model=missing", "release"),
        ("output={file}/x", "output"),
        ("model=", "model"),
        ("seed=-1", "seed"),
        ("counts.sbject=3", "counts.sbject"),
        ("sampling.subject.temperature=-1", "temperature"),
        ("runs=[missing]", "missing"),
        ("device=nothing", "device"),
    ],
)
def test_mistakes(changed: str, said: str, shapes: Path, releases: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "out"
    given = arguments(shapes, releases / "model", output, changed.format(file=tmp_path / "file"))
    with pytest.raises(UserError, match=said) as caught:
        entry.main(given)
    assert "\n" not in str(caught.value)
    assert not output.exists()
