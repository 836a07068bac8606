"""Generators of latents in training: exact resume, the second stage, and what does not go together."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import differing, rows, weights
from tiny import tiny_generator, tiny_image_tokenizer, waken

from mentor.conditioning import Condition
from mentor.config import compose, validate
from mentor.diffusion import Draws
from mentor.errors import UserError
from mentor.generate import generate, load
from mentor.models import DiffusionHeadConfig, DiffusionTransformer
from mentor.models.checkpoint import load_generator, read_config
from mentor.training.config import TrainConfig
from mentor.training.generator_module import GeneratorModule
from mentor.training.objectives import Target, example_seeds, score
from mentor.training.run import train
from mentor.types import TextSegment

Settings = Callable[..., TrainConfig]
FEW = ("trainer.max_steps=3",)
KINDS = [
    ("diffusion", "dit"),
    ("diffusion", "dit_epsilon"),
    ("diffusion", "dit_v"),
    ("1", "diffusion"),
    ("1", "diffusion_masked"),
]


def second(release: Path, stage: str, run: Path, *changes: str) -> TrainConfig:
    """Settings of the stage that goes on from a release."""
    saved = read_config(release)["data"]["root"]
    settings = (f"stage={stage}", "experiment=test", f"data.root={saved}", f"init_from={release}", f"run.dir={run}")
    return validate(
        TrainConfig, compose("train", [*settings, "data.batch_size=4", "trainer.validate_every=0", *changes])
    )


@pytest.mark.fault(9)
@pytest.mark.parametrize(("stage", "head"), KINDS)
def test_a_run_stopped_within_an_accumulation_goes_on_bit_by_bit(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, head: str
) -> None:
    changes = (f"stage={stage}", f"head={head}", "trainer.max_steps=5", "trainer.accumulate=2", "trainer.log_every=2")
    train(settings(*changes, f"run.dir={tmp_path / 'whole'}"))
    original, seen = GeneratorModule.training_step, []

    def training_step(self: GeneratorModule, *arguments) -> torch.Tensor:
        number = self.trainer.datamodule.consumed - 1
        if number == 5 and number not in seen:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(number)
        return original(self, *arguments)

    monkeypatch.setattr(GeneratorModule, "training_step", training_step)
    with pytest.raises(SystemExit):
        train(settings(*changes))
    assert seen[-1] == 5
    train(settings(*changes))
    assert differing(tmp_path / "run", tmp_path / "whole") == []
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert all("accuracy" not in name for name in rows(tmp_path / "run")[0])


def test_the_noise_of_an_example_is_its_own_at_every_update() -> None:
    seeds = example_seeds(0, 7, ["a", "b"])
    assert seeds == [example_seeds(0, 7, [key])[0] for key in ("a", "b")] and len(set(seeds)) == 2
    others = [example_seeds(1, 7, ["a"]), example_seeds(0, 8, ["a"]), example_seeds(0, "validation", ["a"])]
    assert all(other[0] not in seeds for other in others)


@torch.no_grad()
def test_only_tokens_that_were_hidden_count_and_cells_of_the_object_count_more() -> None:
    tokenizer = tiny_image_tokenizer()
    generator = waken(tiny_generator(tokenizer, head=DiffusionHeadConfig(order="random"))).eval()
    condition = Condition([(TextSegment("a circle"),), ()], None)
    latents = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    focus = torch.zeros(2, 8, 8)
    focus[0, :4] = 1
    losses, hidden = generator.losses(condition, latents, Draws([1, 2]))
    assert not bool(hidden.all())
    found = score(generator, condition, Target(torch.zeros(2, 8, 8).long(), latents, focus, [1, 2]), 3.0)["loss"]
    weights = (1 + 3 * focus.flatten(1)) * hidden
    torch.testing.assert_close(found, (losses * weights).sum(dim=1) / weights.sum(dim=1))
    torch.testing.assert_close(found[1], losses[1][hidden[1]].mean())


@pytest.mark.parametrize(("stage", "head", "after"), [("diffusion", "dit", "diffusion_2"), ("1", "diffusion", "2")])
def test_the_second_stage_goes_on_from_the_first_and_pictures_can_be_drawn(
    settings: Settings, tmp_path: Path, stage: str, head: str, after: str
) -> None:
    train(settings(f"stage={stage}", f"head={head}", *FEW))
    train(second(tmp_path / "run" / "release", after, tmp_path / "then", *FEW))
    before, then = weights(tmp_path / "run"), weights(tmp_path / "then")
    assert before.keys() == then.keys()
    assert not torch.equal(
        before["backbone.blocks.0.attention.qkv.weight"], then["backbone.blocks.0.attention.qkv.weight"]
    )
    release = tmp_path / "then" / "release"
    assert load_generator(release).generator.config.head.kind == ("dit" if after == "diffusion_2" else "diffusion")
    model = load(release)
    one, two = generate(model, "a red circle", num_images=2, seed=3, steps=2)
    (again,) = generate(model, "a red circle", seed=4, steps=2)
    assert one.size == (64, 64) and two.tobytes() == again.tobytes()


def test_a_model_begins_as_one_of_the_same_settings_again(settings: Settings, tmp_path: Path) -> None:
    train(settings("stage=diffusion", *FEW))
    release = tmp_path / "run" / "release"
    train(settings("stage=diffusion", f"init_from={release}", f"run.dir={tmp_path / 'again'}", *FEW))
    with pytest.raises(UserError, match=r"is another model \(backbone.hidden: .*: make the settings agree"):
        train(
            settings("stage=diffusion", "backbone.hidden=32", f"init_from={release}", f"run.dir={tmp_path / 'x'}", *FEW)
        )


@pytest.mark.parametrize("adapter", ["lora", "mrt"])
def test_adapters_are_trained_on_a_diffusion_transformer(settings: Settings, tmp_path: Path, adapter: str) -> None:
    train(settings("stage=diffusion", *FEW))
    release = tmp_path / "run" / "release"
    train(second(release, "diffusion_2", tmp_path / "adapter", f"adapter={adapter}", "trainer.max_steps=8"))
    plain, adapted = load(release), load(release, adapters=[tmp_path / "adapter" / "release"])
    assert isinstance(adapted.release.generator, DiffusionTransformer)
    pictures = [generate(model, "a red circle", steps=2)[0].tobytes() for model in (plain, adapted, load(release))]
    assert pictures[0] == pictures[2]
    assert adapted.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("stage=1", "head=dit"),
            "stage=1 does not train a diffusion transformer: say stage=diffusion, or choose another",
        ),
        (
            ("stage=diffusion", "head=ar"),
            "stage=diffusion does not train an autoregressive model: say stage=1, or choose",
        ),
        (
            ("stage=diffusion", "objective.label_smoothing=0.1"),
            "objective.label_smoothing=0.1 spreads the probability of a code, and this model draws none: leave it out",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: Settings, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        train(settings(*changes))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("head.sampler=ddim", "sampler ddim does not fit a flow model: choose euler, heun or dpm++"),
        ("head.steps=0", "head.steps: 0 is wrong, it should be greater than 0"),
        ("head.process.time_std=0", "head.process.time_std: 0 is wrong, it should be greater than 0"),
    ],
)
def test_settings_of_the_noise_that_cannot_be_are_refused(settings: Settings, changes: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        settings("stage=diffusion", changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_stage_for_another_kind_of_model_says_so(settings: Settings, tmp_path: Path) -> None:
    train(settings("stage=diffusion", *FEW))
    with pytest.raises(UserError, match="stage=2 does not train a diffusion transformer: say stage=diffusion_2"):
        train(second(tmp_path / "run" / "release", "2", tmp_path / "then"))
