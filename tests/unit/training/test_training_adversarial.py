"""A discriminator beside the image tokenizer: one backward pass and one step, by however many processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mentor.config import compose, validate
from mentor.errors import UserError
from mentor.tokenizers import (
    AdversarialLossConfig,
    DiscriminatorConfig,
    ImageTokenizerConfig,
    TokenizerOutput,
    VQConfig,
    build_image_tokenizer,
    generator_loss,
)
from mentor.training.averaging import Averaging
from mentor.training.config import ImageTokenizerTraining
from mentor.training.image_tokenizer_module import ImageTokenizerModule, LossConfig
from mentor.training.optim import OptimizerConfig
from mentor.types import Batch, ImageSegment, TextSegment

BATCH = 6
UPDATES = 12
SMALL = DiscriminatorConfig(channels=8, layers=2, groups=4)


def pictures(count: int, seed: int) -> Tensor:
    """Pictures of coloured patches, smooth from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return F.interpolate(colours, size=(16, 16), mode="bilinear")


def rows_of(step: int, rank: int, world: int) -> Batch:
    """The rows r, r + w, ... of a global batch; every second example has a reference of its own."""
    targets, others = pictures(BATCH, step), pictures(BATCH, step + 1000)
    rows = range(rank, BATCH, world)
    return Batch(
        tasks=["reconstruct"] * len(rows),
        prompts=[(TextSegment(""), ImageSegment((others if row % 2 else targets)[row])) for row in rows],
        targets=targets[list(rows)],
        focus=torch.zeros(len(rows), 16, 16),
        keys=[str(row) for row in rows],
        valid=torch.ones(len(rows), dtype=torch.bool),
        facts=[{}] * len(rows),
    )


class Loader:
    """Endless, and from where a resumed run left off, as the real one."""

    def __init__(self, trainer: lightning.Trainer) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[Batch]:
        first = self.trainer.global_step * self.trainer.accumulate_grad_batches
        for step in count(first):
            yield rows_of(step, self.trainer.global_rank, self.trainer.world_size)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class Data(lightning.LightningDataModule):
    def train_dataloader(self) -> Loader:
        assert self.trainer is not None
        return Loader(self.trainer)

    def val_dataloader(self) -> list[Any]:
        return []

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch


class Watched(ImageTokenizerModule):
    """Calls a function after every batch, when the logs are written."""

    def watch(self, look: Callable[[], None]) -> "Watched":
        self.look = look
        return self

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.write_row(outputs)
        self.look()


def build(adversarial: AdversarialLossConfig | None, **loss: Any) -> Watched:
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        channels=8,
        multipliers=(1, 2),
        stem=2,
        patches=True,
        encoder_blocks=1,
        decoder_blocks=1,
        attention=False,
        middle=False,
        latent_width=16,
        groups=4,
        # Codes die and restart within the few steps of a test.
        quantizer=VQConfig(codes=48, width=4, usage_decay=0.5),
    )
    settings = LossConfig(**{"delay": 0.25, "images": 7, "adversarial": adversarial} | loss)
    optimizer = OptimizerConfig(lr=2e-3)
    module = Watched(build_image_tokenizer(config), settings, optimizer, UPDATES, seed=3)
    return module.watch(lambda: None)


def build_adversarial(**settings: Any) -> Watched:
    return build(AdversarialLossConfig(**{"start": 0.5, "lr": 5e-4, "discriminator": SMALL} | settings))


class Clip(lightning.Callback):
    """Limits the gradient of each model by itself, as the guard of a run does."""

    def __init__(self, largest: float = 1.0) -> None:
        self.largest = largest

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for group in optimizer.groups_to_clip:
            torch.nn.utils.clip_grad_norm_(group, self.largest)


def build_trainer(steps: int = UPDATES, **settings: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    quiet |= {"enable_model_summary": False, "use_distributed_sampler": False, "callbacks": [Clip()]}
    return lightning.Trainer(accelerator="cpu", **{"devices": 1, "max_steps": steps} | quiet | settings)


def train(module: ImageTokenizerModule, steps: int = UPDATES, **settings: Any) -> dict[str, Tensor]:
    """The module's weights after training."""
    checkpoint = settings.pop("ckpt_path", None)
    build_trainer(steps, **settings).fit(module, datamodule=Data(), ckpt_path=checkpoint, weights_only=True)
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def of_tokenizer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("tokenizer.")}


def test_the_adversarial_part_begins_at_its_update_and_trains_the_discriminator_from_there() -> None:
    module = build_adversarial()
    assert module.discriminator is not None
    first = {name: value.clone() for name, value in module.discriminator.state_dict().items()}
    moved, logged, gradients = [], [], []

    def look() -> None:
        assert module.discriminator is not None
        state = module.discriminator.state_dict()
        moved.append(not all(torch.equal(first[name], value) for name, value in state.items()))
        logged.append(sorted(set(module.metrics) & {"train/d_loss", "train/g_loss", "train/d_real", "train/d_fake"}))
        gradients.append([parameter.grad is not None for parameter in module.discriminator.parameters()])

    train(module.watch(look))
    assert moved == [False] * 6 + [True] * 6
    assert [len(names) for names in logged] == [0] * 6 + [4] * 6
    assert not any(map(any, gradients[:6])) and all(map(all, gradients[6:]))


def test_without_weight_the_image_tokenizer_learns_what_it_learns_alone() -> None:
    """The discriminator touches neither its chance nor its gradients, nor the limit of their norm."""
    alone = train(build(None), callbacks=[Clip(0.01)])
    beside = train(build_adversarial(weight=0.0, start=0.0), callbacks=[Clip(0.01)])
    assert all(torch.equal(value, beside[name]) for name, value in of_tokenizer(alone).items())
    with_weight = train(build_adversarial(weight=0.5, start=0.0), callbacks=[Clip(0.01)])
    assert not any(torch.equal(alone[name], with_weight[name]) for name in ("tokenizer.decoder.conv_out.weight",))


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_pictures_are_moved_as_much_as_the_weight_says(adaptive: bool) -> None:
    module = build_adversarial(weight=0.3, adaptive=adaptive, start=0.0)
    seen: list[tuple[Tensor, Tensor]] = []
    moves: list[Tensor] = []

    def note(tokenizer: torch.nn.Module, arguments: tuple[Tensor, ...], output: TokenizerOutput) -> None:
        seen.append((arguments[0], output.images.detach().clone().requires_grad_()))
        output.images.register_hook(moves.append)

    module.tokenizer.register_forward_hook(note)
    # What the discriminator was when it judged.
    discriminator = deepcopy(module.discriminator)
    assert discriminator is not None
    outputs: dict[str, float] = {}
    train(module.watch(lambda: outputs.update(module.metrics)), steps=1)
    ((real, fake),) = seen
    loss = module.pixel_loss(fake, real)
    (pull,) = torch.autograd.grad(loss, fake)
    (push,) = torch.autograd.grad(generator_loss(discriminator(fake), "hinge"), fake)
    weight = 0.3 * pull.norm() / push.norm() if adaptive else torch.tensor(0.3)
    torch.testing.assert_close(moves[-1], pull + weight * push)
    errors = (fake.detach().clamp(-1, 1) - real).square().mean(dim=(1, 2, 3))
    assert outputs["train/psnr"] == pytest.approx(10 * torch.log10(4 / errors).mean().item(), rel=1e-5)
    assert outputs["train/g_weight"] == pytest.approx(weight.item(), rel=1e-4)
    assert outputs["train/loss"] == pytest.approx(loss.item(), rel=1e-5), "before there are codes it is the pixels'"


def test_the_discriminator_learns_to_tell_drawn_pictures_from_real_ones() -> None:
    module = build_adversarial(weight=0.0, start=0.0, lr=3e-3)
    losses = []
    train(module.watch(lambda: losses.append(module.metrics["train/d_loss"])))
    assert losses[0] == pytest.approx(1, abs=0.1), "the hinge loss of indifference"
    assert losses[-1] < 0.5
    assert module.metrics["train/d_real"] > 0.3 and module.metrics["train/d_fake"] < -0.3


@pytest.mark.fault(1)
@pytest.mark.parametrize("steps", [2, 5, 9])
def test_a_resumed_run_ends_with_the_same_bits_in_both_models_and_optimizers(steps: int, tmp_path: Path) -> None:
    """Stopped before there are codes, before there is a discriminator, and after."""

    def learn(module: Watched, until: int = UPDATES, **settings: Any) -> dict[str, Tensor]:
        return train(module, until, accumulate_grad_batches=2, callbacks=[Clip(), Averaging(0.9)], **settings)

    module, stopped, again = build_adversarial(), build_adversarial(), build_adversarial()
    whole = learn(module)

    def save() -> None:
        if stopped.trainer.global_step == steps:
            stopped.trainer.save_checkpoint(tmp_path / "last.ckpt")

    learn(stopped.watch(save), steps)
    resumed = learn(again, ckpt_path=str(tmp_path / "last.ckpt"))
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    expected, found = (one.trainer.optimizers[0].state_dict()["state"] for one in (module, again))
    assert len(found) == len(list(again.parameters())), "both models have a state"
    for number, values in expected.items():
        assert all(torch.equal(value, found[number][name]) for name, value in values.items())


def test_small_pictures_are_refused_at_the_first_step_and_not_when_the_discriminator_begins() -> None:
    module = build_adversarial(discriminator=DiscriminatorConfig(channels=8, layers=3, groups=4))
    with pytest.raises(UserError, match="pictures of 16 x 16 px: a discriminator of 3 layers takes 24 px and more"):
        train(module, steps=1)


def composed(*overrides: str) -> AdversarialLossConfig | None:
    settings = compose("train", ["stage=tokenizer", "experiment=demo", *overrides])
    return validate(ImageTokenizerTraining, settings).loss.adversarial


def test_one_setting_on_the_command_line_turns_it_on() -> None:
    assert composed() is None
    assert composed("loss.adversarial={}") == AdversarialLossConfig()
    assert composed("loss.adversarial.weight=0.25") == AdversarialLossConfig(weight=0.25)
    both = composed("loss.adversarial.kind=non_saturating", "loss.adversarial.discriminator.layers=2")
    assert both == AdversarialLossConfig(kind="non_saturating", discriminator=DiscriminatorConfig(layers=2))
    assert composed("loss.adversarial.weight=0.25", "loss.adversarial=null") is None


def test_wrong_settings_are_named_in_full() -> None:
    with pytest.raises(UserError, match=r"^loss\.adversarial\.wieght: unknown key \(did you mean weight\?\)$"):
        composed("loss.adversarial.wieght=0.5")
    with pytest.raises(UserError, match=r"^loss\.adversarial\.kind: 'lsgan' is wrong, it should be 'hinge'"):
        composed("loss.adversarial.kind=lsgan")
    with pytest.raises(UserError, match=r"^loss\.adversarial\.start: 1\.5 is wrong, it should be less than 1$"):
        composed("loss.adversarial.start=1.5")


def train_together(folder: Path, devices: int) -> None:
    """Train with so many processes; the first one leaves weights, the rows of the logs and a checkpoint half way."""
    torch.set_num_threads(1)
    module = build_adversarial()
    rows: list[dict[str, float]] = [{}]
    restarts: list[int] = []
    codebook = [module.tokenizer.codebook.detach()]

    def look() -> None:
        rows.append(dict(module.metrics))
        codebook.append(module.tokenizer.codebook.detach().clone())
        jumps = int(((codebook[-1] * codebook[-2]).sum(dim=1) < 0.9).sum())
        restarts.append(jumps if "train/usage" in rows[-2] else 0)  # before, the codes were chosen
        if module.trainer.global_step == UPDATES // 2:
            module.trainer.save_checkpoint(folder / f"half{devices}.ckpt")

    strategy = "auto"
    if devices > 1:
        strategy = lightning.pytorch.strategies.DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    state = train(module.watch(look), devices=devices, strategy=strategy, callbacks=[Clip(), Averaging(0.9)])
    if module.trainer.is_global_zero:
        torch.save({"state": state, "rows": rows, "restarts": restarts}, folder / f"{devices}.pt")


@pytest.mark.slow
@pytest.mark.fault(7)
def test_two_processes_learn_what_one_does_and_one_goes_on_where_two_stopped(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path), "2"]
    together = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        train_together(tmp_path, 1)
        output, _ = together.communicate(timeout=300)
    finally:
        together.kill()
    assert together.returncode == 0, output
    assert "strides" not in output, output
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    assert sum(one["restarts"]) > 0, "some code restarts"
    assert one["restarts"] == two["restarts"]
    assert "train/d_loss" in one["rows"][-1]
    for ours, theirs in zip(one["rows"], two["rows"], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-4)
    resumed = train(build_adversarial(), callbacks=[Clip(), Averaging(0.9)], ckpt_path=str(tmp_path / "half2.ckpt"))
    for other in (two["state"], resumed):
        assert one["state"].keys() == other.keys()
        for name, value in one["state"].items():
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=0, msg=name)


if __name__ == "__main__":
    train_together(Path(sys.argv[1]), int(sys.argv[2]))
