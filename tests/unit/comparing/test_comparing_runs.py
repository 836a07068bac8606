"""Run folders: names, chains, budgets, and what is refused before any work."""

import json
import re
from pathlib import Path

import pytest
import torch
from comparable import DATA, make_run

from mentor.comparing.budget import make_budget, ratios, unfairness
from mentor.comparing.comparison import Options, make_plan
from mentor.comparing.course import load_average, snapshots
from mentor.comparing.runs import distinguishing, find_place, open_data, read_runs, split_name
from mentor.errors import UserError
from mentor.models.checkpoint import load_generator
from mentor.training.checkpoint_files import listed, read_state

PARAMETERS = {"generator: head": 60, "generator: total": 100}


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [str(make_run(tmp_path / name)) for name in ("a", "b")]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/demo/1", "runs/demo/2"], ["1", "2"]),
        (["runs/c/ar/2", "runs/c/masked/2"], ["ar", "masked"]),
        (["runs/c/ar/2", "runs/c/diffusion/diffusion_2"], ["2", "diffusion_2"]),
        (["x/1/2", "x/1/3", "y/2/3"], ["1/2", "1/3", "2/3"]),
        (["runs/c", "runs/c/2"], ["c", "2"]),
    ],
)
def test_shortest_names_that_tell_runs_apart(folders: list[str], names: list[str]) -> None:
    assert distinguishing([Path(folder) for folder in folders]) == names


def test_names_on_the_command_line(tmp_path: Path) -> None:
    assert split_name("mine=runs/a") == ("mine", Path("runs/a"))
    assert split_name("runs/a") == ("", Path("runs/a"))
    odd = tmp_path / "lr=3"
    odd.mkdir()
    assert split_name(str(odd)) == ("", odd)


def test_paths_of_a_run_count_from_where_it_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there" / "runs" / "demo" / "2").mkdir(parents=True)
    (tmp_path / "there" / "data").mkdir()
    settings = {"run": {"dir": "runs/demo/2"}}
    folder = tmp_path / "there" / "runs" / "demo" / "2"
    assert find_place("data", folder, settings) == tmp_path / "there" / "data"
    assert find_place("elsewhere", folder, settings) == Path("elsewhere")
    assert find_place("/data", folder, settings) == Path("/data")
    monkeypatch.chdir(tmp_path / "there")
    assert find_place("data", Path("runs/demo/2"), settings) == Path("data")


def test_budget_is_the_sum_over_the_chain(tmp_path: Path) -> None:
    tokenizer = make_run(tmp_path / "tokenizer", stage="tokenizer")
    first = make_run(
        tmp_path / "1", image_tokenizer_from=str(tokenizer / "release"), summary={"seconds": 100.0, "processes": 1}
    )
    last = make_run(tmp_path / "2", stage="2", init_from=str(first / "release"), summary={"samples": 4})
    alone = make_run(tmp_path / "alone", summary={"seconds": 240.0, "samples": 210})
    runs = read_runs([f"both={last}", str(alone)])
    assert [stage.folder for stage in runs[0].stages] == [first, last]
    assert runs[0].image_tokenizer is not None
    assert runs[0].image_tokenizer.folder == tokenizer
    both, other = make_budget(runs[0], PARAMETERS), make_budget(runs[1], {"generator: total": 103})
    assert (both.seconds, both.updates, both.samples) == (100 + 2 * 10, 24, 100)
    assert both.facts["devices"] == "1 x cpu, 2 x cpu"
    assert both.facts["trainings"] == (
        f"stage 1: 100 s, 12 updates, 96 samples, {first}; stage 2: 20 s, 12 updates, 4 samples, {last}"
    )
    assert both.facts["image tokenizer's training, not counted"].startswith("stage tokenizer: 20 s")
    assert ratios([both, other]) == {
        "parameters": [1.0, 1.03],
        "seconds of compute": [1.0, 4.0],
        "updates": [1.0, 0.5],
        "samples seen": [1.0, 2.1],
    }
    assert unfairness([both, other]) == [
        "The runs differ in seconds of compute by 300 %, more than 10 %: both 120, alone 480.",
        "The runs differ in samples seen by 110 %, more than 10 %: both 100, alone 210.",
    ]
    assert unfairness([both, both]) == []


def test_what_came_before_and_is_gone_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "2", init_from="org/model")
    other = make_run(tmp_path / "other")
    budgets = [make_budget(one, PARAMETERS) for one in read_runs([str(run), str(other)])]
    assert unfairness(budgets) == [
        "2 began with org/model, whose run folder is not there: what that cost is not counted."
    ]


def test_snapshots_count_the_seconds_of_the_whole_chain(tmp_path: Path) -> None:
    first = make_run(tmp_path / "1", model=True, checkpoints=2)
    last = make_run(tmp_path / "2", stage="2", init_from=str(first / "release"), model=True, checkpoints=1)
    run = read_runs([str(last), str(make_run(tmp_path / "3"))])[0]
    found = snapshots(run)
    assert [(one.label, one.seconds) for one in found] == [
        ("stage 1, step 4", pytest.approx(20 / 3)),
        ("stage 1, step 8", pytest.approx(40 / 3)),
        ("stage 1, release after step 12", 20),
        ("stage 2, step 4", pytest.approx(20 + 20 / 3)),
        ("stage 2, release after step 12", 40),
    ]


def test_averaged_weights_of_a_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "1", model=True, checkpoints=1)
    generator = load_generator(run / "release").generator
    checkpoint = listed(run / "checkpoints")[0][1]
    state = read_state(checkpoint)["state_dict"]
    load_average(generator, {**state, "image_tokenizer.x": torch.zeros(1)}, checkpoint)
    assert all(torch.equal(value, state[f"generator.{name}"]) for name, value in generator.state_dict().items())
    name = next(iter(dict(generator.named_parameters())))
    with pytest.raises(UserError, match=re.escape(f"is not one of the run's model ({name} is missing)")):
        load_average(generator, {key: value for key, value in state.items() if key != f"generator.{name}"}, checkpoint)
    with pytest.raises(UserError, match="x is unknown"):
        load_average(generator, {**state, "generator.x": torch.zeros(1)}, checkpoint)
    with pytest.raises(UserError, match="size mismatch"):
        load_average(generator, {**state, f"generator.{name}": torch.zeros(1)}, checkpoint)


def test_refused_runs(tmp_path: Path, pair: list[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    half = make_run(tmp_path / "half", summary={"status": "stopped", "step": 3})
    old = make_run(tmp_path / "old")
    (old / "summary.json").write_text('{"status": "finished", "seconds": 3}')
    broken = make_run(tmp_path / "broken")
    (broken / "summary.json").write_text("{")
    adapter = make_run(tmp_path / "adapter")
    (adapter / "release" / "config.json").write_text('{"format": "mentor", "version": 4, "kind": "adapter"}')
    one = pair[0]
    said = {
        (one,): "a comparison needs at least two runs, found 1: say --runs FOLDER FOLDER with the run folders of two "
        "finished trainings",
        (one, one): f"the run {one} is given 2 times: give each run once",
        (one, f"x={one}/../a"): f"the run {one} is given 2 times: give each run once",
        (one, str(empty)): f"{empty} is no run folder (no config.yaml in it): give the run.dir of a finished training",
        (one, str(half)): f"the run {half} is not finished (it is at step 3 of 12, status 'stopped'): start its "
        "training again, which goes on from its last checkpoint",
        (one, str(old)): f"{old}/summary.json does not tell processes, max_steps, samples: compare runs that this "
        "version trained",
        (one, str(broken)): f"{broken}/summary.json is damaged (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)): compare another run",
        (one, str(adapter)): f"the run {adapter} trained an adapter, and generators are compared: give the run folder "
        "of a later stage",
        (f"x={pair[0]}", f"x={pair[1]}"): "2 runs are called 'x': give them names of their own with NAME=FOLDER",
    }
    for arguments, message in said.items():
        with pytest.raises(UserError) as caught:
            read_runs(arguments)
        assert str(caught.value) == message


def test_a_run_without_release_is_not_finished(pair: list[str]) -> None:
    (Path(pair[1]) / "release" / "config.json").unlink()
    with pytest.raises(UserError, match="b is not finished"):
        read_runs(pair)


def test_different_data_names_both_fingerprints_and_both_runs(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / "a", data="1" * 64)), str(make_run(tmp_path / "b", data="2" * 64))]
    with pytest.raises(UserError) as caught:
        read_runs(runs)
    assert str(caught.value) == (
        f"the runs were trained on different data: a on {'1' * 64}, b on {'2' * 64}: compare runs that were trained "
        "on the same"
    )


def test_different_picture_sizes(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / "a")), str(make_run(tmp_path / "b", size=128))]
    with pytest.raises(UserError) as caught:
        read_runs(runs)
    assert str(caught.value) == (
        "the runs draw pictures of different sizes: a of 64 px, b of 128 px: compare runs of the same data.image_size"
    )


def test_data_other_than_the_runs(shapes: Path, pair: list[str]) -> None:
    runs = read_runs(pair)
    own = json.loads((shapes / "manifest.json").read_text())["fingerprint"]
    with pytest.raises(UserError) as caught:
        open_data(runs, str(shapes))
    assert str(caught.value) == (
        f"the data in {shapes} are {own}, and the runs were trained on {DATA}: give the folder of those with "
        "--data FOLDER"
    )


def test_a_chain_that_bites_its_tail(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", init_from=str(tmp_path / "a" / "release"))
    with pytest.raises(UserError, match="begins with its own release"):
        read_runs([str(run), str(make_run(tmp_path / "b"))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 1)}, "--seeds 1 1: give one or more different numbers"),
        ({"counts": 1}, "--counts 1 must be 2 or more"),
        ({"curve_counts": -1}, "--curve-counts -1 must be 0 or more"),
        ({"settings": ["seed=3"]}, "seed=3: a comparison sets seed itself; use --seeds"),
        ({"settings": ["data=x"]}, "data=x: a comparison sets data itself; use --data"),
        ({"settings": ["model=x"]}, "model=x: a comparison sets model itself; use --runs"),
    ],
)
def test_refused_options(changes: dict, message: str, pair: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(Options(pair, tmp_path / "out", **changes))
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()
