"""What is counted without weights, against torch's own accounting of real ones."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from planned import ADVERSARIAL, WHOLE, opened, stage_tokenizer, summed
from torch import nn

from mentor.config import read_yaml, validate
from mentor.models import count_parameters
from mentor.tokenizers import ImageTokenizerConfig
from mentor.training.averaging import Averaging
from mentor.training.blueprint import draw_blueprint
from mentor.training.build import build_module
from mentor.training.config import TrainConfig
from mentor.training.demand import estimate_demand, process_load
from mentor.training.memory import checkpoint_bytes, count_states, size_of
from mentor.training.rehearsal import bare_trainer
from mentor.training.run import train

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
Settings = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("1", ("optimizer.kind=adamw",)),
        ("1", ("optimizer.kind=muon", "trainer.precision=bf16-mixed")),
        ("1", ("optimizer.kind=muon", "ema=null", "freeze=[backbone.blocks.0.*]")),
        ("tokenizer", ("optimizer.kind=adamw",)),
        ("tokenizer", ("optimizer.kind=muon", *ADVERSARIAL)),
    ],
)
def test_states_are_what_a_real_step_leaves_to_the_byte(
    settings: Settings, stage: str, changes: tuple[str, ...]
) -> None:
    config = settings(*WHOLE, *changes) if stage == "1" else stage_tokenizer(settings(), *changes)
    datamodule = opened(config)
    counted = count_states(draw_blueprint(config, datamodule), config.ema is not None)
    module = build_module(config, datamodule)
    averages = [] if config.ema is None else [Averaging(config.ema.decay)]
    trainer = bare_trainer(config, 1, averages)
    trainer.fit(module, datamodule=datamodule)
    assert trainer.global_step == 3
    assert counted.weights == summed((*module.parameters(), *module.buffers()))
    assert counted.gradients == summed(parameter.grad for parameter in module.parameters())
    (optimizer,) = trainer.optimizers
    assert counted.optimizer == summed(value for state in optimizer.state.values() for value in state.values())
    assert counted.optimizer > counted.gradients
    if stage == "1":
        assert counted.image_tokenizer == summed(
            (*module.image_tokenizer.parameters(), *module.image_tokenizer.buffers())
        )
    assert counted.average == (0 if config.ema is None else counted.gradients)


def test_the_average_takes_as_much_as_is_counted(settings: Settings) -> None:
    config = settings(*WHOLE, "freeze=[backbone.blocks.0.*]")
    datamodule = opened(config)
    averaging = Averaging(0.9)
    seen: list[int] = []
    averaging.on_train_end = lambda trainer, module: seen.append(summed(averaging._averages.values()))  # type: ignore[method-assign]
    bare_trainer(config, 1, [averaging]).fit(build_module(config, datamodule), datamodule=datamodule)
    assert seen == [count_states(draw_blueprint(config, datamodule), True).average]


def test_a_checkpoint_takes_as_much_as_is_counted(settings: Settings, tmp_path: Path) -> None:
    config = settings(*WHOLE, "trainer.max_steps=1", "backbone.width=128")
    counted = checkpoint_bytes(draw_blueprint(config, opened(config)), averaged=True)
    train(config)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    files = [checkpoint] if checkpoint.is_file() else list(checkpoint.iterdir())
    written = sum(path.stat().st_size for path in files)
    assert counted < written < 1.05 * counted


def test_shares_of_sharded_states_are_the_largest_that_torch_would_cut(settings: Settings) -> None:
    config = settings(*WHOLE, "optimizer.kind=adamw")
    blueprint = draw_blueprint(config, opened(config))
    whole, shared = count_states(blueprint, True), count_states(blueprint, True, processes=3, sharded=True)
    parameters = list(blueprint.module.parameters())
    own = summed(parameter.chunk(3)[0] for parameter in parameters)
    assert whole.gradients / 3 < own < whole.gradients
    assert shared.gradients == shared.average == own
    assert shared.weights == own + summed(blueprint.module.buffers())
    # AdamW has two numbers for each, and counts the steps of each parameter.
    assert shared.optimizer == 2 * own + 4 * len(parameters)
    assert (shared.buckets, shared.image_tokenizer) == (0, whole.image_tokenizer)


def test_distributed_training_has_buckets_for_the_gradients(settings: Settings) -> None:
    blueprint = draw_blueprint(config := settings(), opened(config))
    alone, together = count_states(blueprint, False), count_states(blueprint, False, processes=2)
    assert alone.buckets == 0
    assert together.buckets == together.gradients == alone.gradients
    assert together.total == alone.total + alone.gradients


def test_a_tensor_with_two_names_is_counted_once() -> None:
    weight = nn.Parameter(torch.zeros(5, 3))
    assert size_of([weight, weight, torch.zeros(2, dtype=torch.bfloat16)]) == 64


@pytest.fixture
def large_tokenizer(tmp_path: Path) -> Path:
    """A release of LlamaGen's tokenizer without its weights, which planning does not read."""
    folder = tmp_path / "f16"
    folder.mkdir()
    shape = validate(ImageTokenizerConfig, read_yaml(ROOT / "configs" / "image_tokenizer" / "f16.yaml"))
    facts = {"format": "mentor", "version": 1, "kind": "image_tokenizer", "image_size": 512, "fingerprint": "0" * 16}
    (folder / "config.json").write_text(json.dumps(facts | {"image_tokenizer": shape.model_dump()}))
    return folder


@pytest.mark.parametrize("size", ["tiny", "b", "l", "xl", "xxl"])
def test_parameters_are_those_of_the_readme(settings: Settings, large_tokenizer: Path, size: str) -> None:
    config = settings(
        f"image_tokenizer_from={large_tokenizer}", "data.image_size=512", "conditioner.text_vocab_size=2048"
    )
    shape = read_yaml(ROOT / "configs" / "backbone" / f"{size}.yaml")
    config = config.model_copy(update={"backbone": type(config.backbone)(**shape)})
    blueprint = draw_blueprint(config, opened(config))
    parts = count_parameters(blueprint.module)
    parts["codes"] = parts["embedding"] + parts["head"]
    counts = " | ".join(f"{parts[name] / 1e6:.1f}" for name in ("conditioner", "backbone", "codes", "total"))
    assert f"| {counts} |" in README


def test_the_largest_model_is_planned_in_no_time_and_no_memory(settings: Settings, large_tokenizer: Path) -> None:
    changes = (f"image_tokenizer_from={large_tokenizer}", "data.image_size=512", "data.batch_size=64", "trainer=gpu")
    shape = read_yaml(ROOT / "configs" / "backbone" / "xxl.yaml")

    def plan(config: TrainConfig) -> tuple[int, int]:
        datamodule = opened(config)
        began = time.process_time()
        blueprint = draw_blueprint(config, datamodule)
        states = count_states(blueprint, True, 8)
        demand = estimate_demand(config, blueprint, process_load(config, blueprint, 8, codes=False), accelerator=True)
        spent.append(time.process_time() - began)
        return states.total, demand.most

    spent: list[float] = []
    small = settings(*changes, "conditioner.max_prefix=1280", "data.validation_batch_size=64")
    plan(small)  # what is imported on the way is no part of it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    states, most = plan(small.model_copy(update={"backbone": type(small.backbone)(**shape)}))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # Six times the weights of 1.4 billion parameters, and more than a process has here for a step.
    assert states > 6 * 1.4e9 * 4
    assert most > 40 * 2**30
    assert spent[-1] < 4
    assert grown * 1024 < 2**28
