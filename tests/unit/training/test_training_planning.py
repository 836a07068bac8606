"""Plans say what a run would say and do, and do nothing."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from planned import opened, stage_tokenizer
from rich.console import Console
from tiny import save_tiny_releases

from mentor.adapters import AdapterConfig, begin_adapter, count_adapter
from mentor.config import compose, config_folder, read_yaml, validate
from mentor.data.packs import CodeLayout
from mentor.data.streammodule import TrainingData
from mentor.errors import UserError
from mentor.models import count_parameters
from mentor.models.checkpoint import read_config
from mentor.tokenizers import ImageTokenizerConfig
from mentor.training import planning
from mentor.training.blueprint import draw_blueprint
from mentor.training.build import build_module
from mentor.training.config import TrainConfig
from mentor.training.dry_run import dry_run, print_plan
from mentor.training.folder import RunFolder
from mentor.training.planning import Plan, make_plan, open_folder, plan_tasks, time_batch
from mentor.training.run import train

Settings = Callable[..., TrainConfig]


@pytest.fixture
def plan(settings: Settings) -> Callable[..., Plan]:
    """The plan of the miniature stage 1 with the given changes, for as many processes."""

    def make(*changes: str, world: int | None = None) -> Plan:
        config = settings(*changes)
        return make_plan(config, open_folder(config), world)

    return make


def message(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "override",
    [
        "image_tokenizer_from=nowhere",
        "init_from=nowhere",
        "data.root=nowhere",
        "data.image_size=60",
        "freeze=[backbon]",
        "data.batch_size=1000",
    ],
)
def test_what_a_run_would_refuse_is_refused_in_the_same_words(
    settings: Settings, tmp_path: Path, override: str
) -> None:
    assert message(dry_run, settings(override), None) == message(train, settings(override))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["data.batch_size", "data.validation_batch_size"])
def test_a_batch_that_the_processes_cannot_share_is_refused(plan: Callable[..., Plan], name: str) -> None:
    with pytest.raises(UserError, match=f"{name} 8 cannot be shared by 3 processes"):
        plan("data.batch_size=6" if name.endswith("validation_batch_size") else "data.batch_size=8", world=3)


def test_the_processes_of_the_settings_count_where_no_others_are_given(plan: Callable[..., Plan]) -> None:
    assert plan("trainer.devices=2", "trainer.nodes=2", "backbone.layers=1").world == 4
    with pytest.raises(UserError, match="shared by 3 processes"):
        plan("trainer.devices=3")


def test_a_machine_that_is_not_here_can_be_planned_for_but_not_used(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match=r"accelerator=gpu with 1 process\(es\) does not work here .* --world-size"):
        plan("trainer=gpu")
    there = plan("trainer=gpu", world=1)
    assert there.step_seconds is None
    assert there.unmeasured == "there is no accelerator here"
    assert there.memory == 0


def test_a_small_step_is_measured_where_one_process_does_it_all(
    plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = plan("trainer.accumulate=2", "data.workers=0")
    assert measured.step_seconds is not None
    assert 0 < measured.step_seconds < 20
    # Two batches belong to an update, and here they are made between updates.
    assert measured.update_seconds == measured.step_seconds + 2 * measured.batch_seconds
    by_workers = replace(measured, config=measured.config.model_copy(update={"data": measured.config.data.model_copy(
        update={"workers": 2})}))  # fmt: skip
    assert by_workers.update_seconds == max(measured.step_seconds, measured.batch_seconds)
    assert plan("trainer.devices=2").step_seconds is None
    monkeypatch.setattr(planning, "SMALL", 1e6)
    large = plan()
    assert (large.step_seconds, large.update_seconds) == (None, None)
    assert "TFLOP, and up to 1e-06 are tried out" in large.unmeasured
    assert list(tmp_path.iterdir()) == []


def test_a_batch_is_made_as_one_of_the_processes_would(settings: Settings) -> None:
    datamodule = opened(settings())
    assert 0 < time_batch(datamodule, 4) < 20
    assert datamodule.consumed == 2
    assert len(next(iter(datamodule.train_dataloader())).keys) == 1


def test_tasks_get_the_batches_that_training_would_give_them(settings: Settings) -> None:
    config = settings("trainer.max_steps=1500", "trainer.accumulate=2", "data.warmup_steps=100")
    datamodule = opened(config)
    counted = Counter(datamodule.epochs(number)[0] for number in range(3000))
    plans = {task.name: task for task in plan_tasks(config, datamodule)}
    assert {name: task.batches for name, task in plans.items()} == pytest.approx(counted, abs=2)
    for name, task in plans.items():
        assert task.examples == 4 * task.batches
        assert task.usable == cast(Any, datamodule).usable[name][0]
    short = plan_tasks(settings("trainer.max_steps=5", "data.warmup_steps=100"), datamodule)
    assert {task.name: task.batches for task in short} == {"reconstruct": 5, "segment": 0, "text_to_image": 0}


def test_the_disk_must_hold_what_is_kept_and_what_is_written(plan: Callable[..., Plan]) -> None:
    made = plan("trainer.keep=3", "trainer.keep_every=5", "trainer.max_steps=12", world=1)
    # Three kept, those of steps 5 and 10, one in the making.
    assert made.needed_disk == 6 * made.checkpoint + made.release
    assert made.disk > made.needed_disk


def test_a_run_goes_on_where_its_folder_is(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings("trainer.max_steps=2"))
    before = snapshot(tmp_path)
    capsys.readouterr()
    dry_run(settings("trainer.max_steps=2"), None)
    assert "finished already" in capsys.readouterr().out
    dry_run(settings("trainer.max_steps=6"), 1)
    assert "goes on from step 2" in capsys.readouterr().out
    config = settings("trainer.max_steps=6")
    assert make_plan(config, open_folder(config), 1).steps_left == 4
    assert message(dry_run, settings("optimizer.lr=0.5"), 1) == message(train, settings("optimizer.lr=0.5"))
    dry_run(settings("optimizer.lr=0.5", "resume=false"), 1)
    assert "the earlier run would be put aside" in capsys.readouterr().out
    assert snapshot(tmp_path) == before


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "r+") as handle:
    fcntl.lockf(handle, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_folder_in_use_is_refused_and_left_alone(settings: Settings, tmp_path: Path) -> None:
    config = settings()
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    lock.write_text("number 7 on there\n")
    assert open_folder(config) == RunFolder(tmp_path / "run")
    before = snapshot(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused = message(open_folder, config)
        other.communicate("")
    assert refused.startswith(f"another process (number 7 on there) is training in {tmp_path / 'run'}: wait for it")
    assert snapshot(tmp_path) == before


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "choice",
    ["data=coco", "experiment=mentor", "experiment=two_gpus", "experiment=captions", "backbone=xl trainer=gpu"],
)
@pytest.mark.parametrize("side", [256, 512])
def test_what_is_shipped_for_large_machines_has_room_for_its_pictures(
    settings: Settings, tmp_path: Path, choice: str, side: int
) -> None:
    release = save_tiny_releases(tmp_path) / "tokenizer"
    facts = json.loads((release / "config.json").read_text())
    facts["image_tokenizer"] = ImageTokenizerConfig().model_dump()  # of 16 px a code, without its weights
    (release / "config.json").write_text(json.dumps(facts))
    overrides = ["stage=1", *choice.split(), f"data.root={settings().data.root}", f"image_tokenizer_from={release}"]
    overrides += [f"run.dir={tmp_path / 'run'}", f"data.image_size={side}", "data.workers=0", "data.batch_size=16"]
    config = validate(TrainConfig, compose("train", overrides))
    made = make_plan(config, open_folder(config), 8)
    assert made.load.prefix == 2 * (side // 16) ** 2 + 256


def plan_shipped(settings: Settings, folder: Path, experiment: str, world: int) -> Plan:
    """What a shipped experiment needs in stage 1, over an image tokenizer of 16 px a code without its weights."""
    release = save_tiny_releases(folder) / "tokenizer"
    facts = json.loads((release / "config.json").read_text())
    facts["image_tokenizer"] = ImageTokenizerConfig().model_dump()
    (release / "config.json").write_text(json.dumps(facts))
    overrides = ["stage=1", f"experiment={experiment}", f"data.root={settings().data.root}", "data.workers=0"]
    overrides += [f"image_tokenizer_from={release}", f"run.dir={folder / 'run'}", "data.batch_size=8"]
    config = validate(TrainConfig, compose("train", overrides))
    return make_plan(config, open_folder(config), world)


def test_mentor_xl_is_as_large_as_the_paper_says_part_by_part(settings: Settings, tmp_path: Path) -> None:
    generator = plan_shipped(settings, tmp_path, "mentor_xl", 8).blueprint.generator
    assert generator is not None
    parts = count_parameters(generator)
    assert parts["total"] == pytest.approx(2.31e9, rel=0.005)
    conditioner = count_parameters(generator.conditioner)
    assert conditioner["vision_encoder"] == pytest.approx(303e6, rel=0.005)
    assert conditioner["text_encoder"] == pytest.approx(1224e6, rel=0.005)
    assert conditioner["projector"] == pytest.approx(6.3e6, rel=0.005)
    # What stands for nothing is a buffer there and trained here: 512 slots of 2,048 numbers.
    decoder = parts["backbone"] + parts["embedding"] + parts["head"]
    decoder += conditioner["project_in"] + conditioner["project_out"]
    assert decoder == pytest.approx(777.7e6, rel=0.001)


def test_mentor_l_256_fits_two_gpus_of_24_gb(settings: Settings, tmp_path: Path) -> None:
    plan = plan_shipped(settings, tmp_path, "mentor_l_256", 2)
    assert plan.config.trainer.devices == 2 and plan.load.rows == 4
    assert plan.states.total + plan.demand.most < 22e9
    assert plan.load.prefix == 512


def test_stage_2_is_planned_without_the_weights_of_stage_1(settings: Settings, tmp_path: Path) -> None:
    release = save_tiny_releases(tmp_path) / "model"
    for weights in release.rglob("*.safetensors"):
        weights.unlink()
    overrides = ["stage=2", "experiment=test", f"data.root={settings().data.root}", f"init_from={release}"]
    overrides += [f"run.dir={tmp_path / 'run'}", "data.batch_size=4", "trainer.precision=bf16-mixed"]
    config = validate(TrainConfig, compose("train", overrides))
    made = make_plan(config, RunFolder(tmp_path / "run"), 2)
    assert (made.load.rows, made.load.prefix, made.blueprint.spec.tokens) == (2, 256, 64)
    assert made.blueprint.generator is not None
    assert made.blueprint.generator.conditioner.text_tokenizer.vocab_size == vocabulary(release)
    wrong = config.model_copy(update={"data": config.data.model_copy(update={"image_size": 32})})
    assert "was made for 64: say data.image_size=64" in message(make_plan, wrong, RunFolder(tmp_path / "run"), 2)


def vocabulary(release: Path) -> int:
    return len(json.loads((release / "text_tokenizer.json").read_text())["model"]["vocab"])


def test_a_generator_of_other_parts_is_refused_in_the_same_words(settings: Settings, tmp_path: Path) -> None:
    release = save_tiny_releases(tmp_path / "there") / "model"
    config = settings(f"init_from={release}", f"image_tokenizer_from={release}")
    assert message(draw_blueprint, config, opened(config)) == message(build_module, config, opened(config))


def test_codes_that_do_not_fit_are_refused(settings: Settings, tokenizer_release: Path) -> None:
    config = settings()
    layout = CodeLayout(
        tokenizer=read_config(tokenizer_release)["fingerprint"],
        image_size=64,
        grid=(8, 8),
        vocabulary=32,
        feature_width=16,
        tasks=tuple(config.data.tasks),
        variants=1,
        seed=0,
        image_only=0.1,
        recover_min_scale=0.2,
        recover_distort=0.5,
        recover_distractors=True,
    )

    def holding(**changes: object) -> TrainingData:
        return cast(TrainingData, SimpleNamespace(codes=layout.model_copy(update=changes)))

    draw_blueprint(config, holding())
    for changes, told in (
        ({"tokenizer": "f" * 16}, "made by image tokenizer ffffffffffffffff, but this run has"),
        ({"grid": (4, 4)}, "are (4, 4) of 32, the generator takes (8, 8) of 32"),
        ({"vocabulary": 64}, "are (8, 8) of 64, the generator takes (8, 8) of 32"),
        ({"feature_width": 0}, "reads features of width 16, the codes in"),
    ):
        assert told in message(draw_blueprint, config, holding(**changes))
    draw_blueprint(settings("conditioner.image_features=[latents]"), holding(feature_width=0))
    tokenizer = stage_tokenizer(config)
    assert message(draw_blueprint, tokenizer, holding()) == message(build_module, tokenizer, holding())


def test_a_plan_is_printed_with_all_that_was_asked(
    settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dry_run(settings("trainer.max_steps=10", "freeze=[conditioner.*]"), 2)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0] == "test stage 1 on 2 processes (ddp): a run could start; nothing was written"
    assert all(line == line.rstrip() for line in lines)
    for told in (
        "10 of 4 examples: 40 examples, 2,560 target tokens, 15,360 prefix tokens at most",
        "a process makes its 2 examples of a batch in",
        "not measured: 2 processes are planned (",
        "logits are 2 x 64 x 32",
        "gradient buckets",
        "no validation",
    ):
        assert told in printed
    (conditioner,) = (line.split() for line in lines if line.startswith("conditioner "))
    assert conditioner[2] == "frozen"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_name_looks_like_markup_is_printed_as_it_is(plan: Callable[..., Plan]) -> None:
    console = Console(markup=False, width=200)
    with console.capture() as printed:
        print_plan(replace(plan("backbone.layers=1", world=1), data="[bold] of [/no]"), console)
    assert "[bold] of [/no]" in printed.get()


def test_what_may_not_end_well_is_remarked(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda accelerator: 2**20)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**20, 0, 2**20))
    dry_run(settings("guard.max_epochs=0.1", "trainer.max_steps=30", "data.mixture.segment=0"), None)
    printed = capsys.readouterr().out
    assert "guard.max_epochs=0.1 will stop the run: reconstruct comes to more epochs." in printed
    assert "may be too much memory" in printed
    assert "may be too much for the disk" in printed
    assert "not measured: it takes more memory than is free here" in printed


def test_edits_of_mentor_xl_are_a_small_share_of_its_parameters(settings: Settings, tmp_path: Path) -> None:
    generator = plan_shipped(settings, tmp_path, "mentor_xl", 8).blueprint.generator
    assert generator is not None
    whole = count_parameters(generator)["total"]
    assert all(parameter.is_meta for parameter in generator.parameters())
    shipped = AdapterConfig.model_validate(read_yaml(config_folder() / "adapter" / "mrt.yaml"))
    with torch.device("meta"):
        begin_adapter(generator, shipped)
    trained = sum(parameter.numel() for parameter in generator.parameters() if parameter.requires_grad)
    assert trained == count_adapter(shipped, generator.config.backbone)
    # Two edits behind each of 36 blocks: R and W of 4 x 1,280 numbers, and b of 4.
    assert trained == 36 * 2 * (2 * 4 * 1280 + 4)
    assert 0.0003 <= trained / whole <= 0.0005
