from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import summary

from mentor.errors import UserError
from mentor.models import Generator
from mentor.training.config import TrainConfig
from mentor.training.freeze import freeze, frozen_digest
from mentor.training.generator_module import GeneratorModule
from mentor.training.run import train

Settings = Callable[..., TrainConfig]
FREEZE = ("freeze=[backbone.blocks.0.*,rows]", "trainer.max_steps=3")


def test_the_named_parts_are_frozen_and_no_others(generator: Generator) -> None:
    frozen = freeze(generator, ["conditioner.*", "rows"])
    assert frozen
    for name, parameter in generator.named_parameters():
        assert parameter.requires_grad != (name.startswith("conditioner.") or name == "rows"), name
        assert (name in frozen) == (not parameter.requires_grad)


def test_no_pattern_freezes_nothing(generator: Generator) -> None:
    assert freeze(generator, []) == []
    assert all(parameter.requires_grad for parameter in generator.parameters())


def test_a_pattern_that_fits_nothing_is_refused_with_near_names(generator: Generator) -> None:
    with pytest.raises(UserError, match=r"'backbon' fits no parameter \(did you mean backbone\?\)") as caught:
        freeze(generator, ["rows", "backbon"])
    assert "\n" not in str(caught.value)
    assert all(parameter.requires_grad for parameter in generator.parameters())


def test_freezing_all_is_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match="nothing to train"):
        freeze(generator, ["*"])


def flip_last_bit(parameter: torch.Tensor) -> None:
    parameter.data.view(-1).view(torch.int32)[-1] ^= 1


def test_the_digest_is_of_what_is_frozen_to_the_last_bit_and_of_nothing_else(generator: Generator) -> None:
    assert frozen_digest(generator) == ""
    freeze(generator, ["conditioner.*", "rows"])
    digest = frozen_digest(generator)
    assert len(digest) == 64 and frozen_digest(generator) == digest
    generator.columns.data += 1
    assert frozen_digest(generator) == digest
    for name, parameter in generator.named_parameters():
        if not parameter.requires_grad:
            flip_last_bit(parameter)
            assert frozen_digest(generator) != digest, name
            flip_last_bit(parameter)
    assert frozen_digest(generator) == digest
    generator.columns.requires_grad_(False)
    assert frozen_digest(generator) != digest


def change_in_training(part: Callable[[GeneratorModule], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    original = GeneratorModule.training_step

    def training_step(self: GeneratorModule, batch, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 1:
            flip_last_bit(part(self))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(GeneratorModule, "training_step", training_step)


def test_a_run_says_what_was_frozen(settings: Settings, tmp_path: Path) -> None:
    config = settings(*FREEZE)
    train(config)
    found = summary(tmp_path / "run")["frozen"]
    train(settings(*FREEZE, "resume=false"))
    assert summary(tmp_path / "run")["frozen"] == found
    train(settings("trainer.max_steps=3", "resume=false"))
    less = summary(tmp_path / "run")["frozen"]
    assert found["parameters"] > less["parameters"] > 0, "the image tokenizer is frozen in any case"
    assert len(found["sha256"]) == 64 and found["sha256"] != less["sha256"]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (lambda module: module.generator.backbone.blocks[0].attention.qkv.weight, "generator.backbone.blocks.0."),
        (lambda module: next(module.image_tokenizer.parameters()), "image_tokenizer."),
    ],
    ids=["generator", "image tokenizer"],
)
def test_a_frozen_part_that_has_changed_is_named_and_never_released(
    settings: Settings, tmp_path: Path, part, name: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        change_in_training(part, patch)
        with pytest.raises(RuntimeError, match=rf"frozen parameters have changed while training: {name}\S+ \(1 in all"):
            train(settings(*FREEZE))
    assert summary(tmp_path / "run")["status"] == "failed"
    assert not (tmp_path / "run" / "release").exists()


def test_a_run_that_goes_on_compares_with_its_first_start(settings: Settings, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        change_in_training(lambda module: module.generator.rows, patch)
        with pytest.raises(RuntimeError, match=r"generator\.rows"):
            train(settings(*FREEZE))
    # No step is left; what is in the checkpoint is not what there was in the beginning.
    with pytest.raises(RuntimeError, match=r"generator\.rows"):
        train(settings(*FREEZE))
    assert not (tmp_path / "run" / "release").exists()
