"""The running average of the weights: its arithmetic, what checkpoints hold of it, validations that are cut short."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from mentor.training.averaging import Averaging

DECAY = 0.6
STEPS = 6


class Toy(lightning.LightningModule):
    """Two layers, the first of them frozen, and a buffer that counts passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.still = nn.Linear(3, 3).requires_grad_(False)
        self.layer = nn.Linear(3, 1)
        self.register_buffer("passes", torch.zeros(()))
        self.rows = torch.randn(STEPS, 4, 3, generator=torch.Generator().manual_seed(1))
        self.validated: list[dict[str, Tensor]] = []
        self.jump_at = -1
        self.restart_averaging = False

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.passes += 1
        self.restart_averaging = self.trainer.global_step == self.jump_at
        return self.layer(self.still(self.rows[self.trainer.global_step])).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(copied(self))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([one for one in self.parameters() if one.requires_grad], lr=0.05)


class Reference(Callback):
    """Torch's averaged model, beside ours."""

    def __init__(self) -> None:
        self.model: AveragedModel | None = None
        self.restarts = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        holder = nn.Module()
        holder.still, holder.layer = pl_module.still, pl_module.layer

        def average(averages: Any, weights: Any, updates: Any) -> None:
            decay = min(DECAY, (1 + int(updates)) / (10 + int(updates)))
            for one, other in zip(averages, weights, strict=True):
                one.lerp_(other, 1 - decay)

        self.model = AveragedModel(holder, multi_avg_fn=average)
        self.holder = holder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.model is not None
        if pl_module.restart_averaging:
            self.restarts += 1
            self.model.n_averaged.zero_()
        self.model.update_parameters(self.holder)

    @property
    def state(self) -> dict[str, Tensor]:
        assert self.model is not None
        return {name.removeprefix("module."): value for name, value in self.model.state_dict().items()}


class Saving(Callback):
    """Writes a checkpoint where it is told to."""

    def __init__(self, path: Path, step: int = -1, on_exception: bool = False) -> None:
        self.path, self.step, self.saves_on_exception = path, step, on_exception

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self.saves_on_exception:
            trainer.save_checkpoint(self.path)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def fit(
    module: Toy, folder: Path, *callbacks: Callback, validate_every: int | None = None, resume: Path | None = None
) -> lightning.Trainer:
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=STEPS,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=validate_every or STEPS,
        check_val_every_n_epoch=None,
        limit_val_batches=1 if validate_every else 0,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    loader = DataLoader(torch.zeros(100, 1), batch_size=None)
    trainer.fit(module, loader, loader, ckpt_path=resume)
    return trainer


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_the_average_is_that_of_torch_bit_for_bit(tmp_path: Path) -> None:
    module, reference = Toy(), Reference()
    module.jump_at = 3
    fit(module, tmp_path, reference, Averaging(DECAY), validate_every=2)
    expected = reference.state
    assert reference.restarts == 1
    for name in ("layer.weight", "layer.bias", "still.weight"):
        assert torch.equal(module.state_dict()[name], expected[name]), name


def test_validation_sees_the_average_and_training_goes_on_with_the_weights(tmp_path: Path) -> None:
    without = Toy()
    fit(without, tmp_path)
    module, averaging, path = Toy(), Averaging(DECAY), tmp_path / "last.ckpt"
    saving = Saving(path, STEPS)
    fit(module, tmp_path, averaging, saving, validate_every=2)
    checkpoint = read(path)
    assert same(checkpoint["current_model_state"], copied(without))
    assert len(module.validated) == 3
    for seen in module.validated[1:]:
        assert not torch.equal(seen["layer.weight"], without.state_dict()["layer.weight"])
    # The last validation came before the training's end, which leaves the average in the module.
    assert torch.equal(module.validated[-1]["layer.weight"], module.layer.weight)
    assert same(checkpoint["state_dict"], copied(module))


def test_a_checkpoint_has_average_weights_and_a_counter_and_frozen_weights_are_kept_once(tmp_path: Path) -> None:
    module, averaging, path = Toy(), Averaging(DECAY), tmp_path / "last.ckpt"
    kept: list[set[str]] = []

    class Looking(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            kept.append(set(averaging._averages))

    fit(module, tmp_path, averaging, Looking(), Saving(path, 4))
    checkpoint = read(path)
    assert checkpoint["averaging_state"] == {"updates": 4, "step": 4}
    names = {"still.weight", "still.bias", "layer.weight", "layer.bias", "passes"}
    assert checkpoint["state_dict"].keys() == checkpoint["current_model_state"].keys() == names
    differing = {
        name
        for name in names
        if not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])
    }
    assert differing == {"layer.weight", "layer.bias"}
    assert checkpoint["state_dict"]["passes"] == 4
    assert kept[-1] == {"layer.weight", "layer.bias"}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_a_resumed_average_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    path = tmp_path / "middle.ckpt"
    whole = Toy()
    fit(whole, tmp_path, Averaging(DECAY), Saving(path, 3), validate_every=2)
    ends = []
    for number, start in enumerate((None, path)):
        module, last = Toy(), tmp_path / f"{number}.ckpt"
        fit(module, tmp_path, Averaging(DECAY), Saving(last, STEPS), validate_every=2, resume=start)
        assert same(copied(module), copied(whole))
        ends.append(read(last))
    assert same(ends[0]["state_dict"], ends[1]["state_dict"])
    assert same(ends[0]["current_model_state"], ends[1]["current_model_state"])
    assert ends[0]["averaging_state"] == ends[1]["averaging_state"] == {"updates": STEPS, "step": STEPS}


@pytest.mark.parametrize("saved", ["before the average is taken out", "after it"])
@pytest.mark.fault(5)
def test_a_checkpoint_written_when_a_validation_was_cut_short_has_the_weights(tmp_path: Path, saved: str) -> None:
    regular, cut = tmp_path / "regular.ckpt", tmp_path / "cut.ckpt"
    module, averaging = Toy(), Averaging(DECAY)
    saving = Saving(cut, on_exception=True)

    def validation_step(batch: Tensor, batch_idx: int) -> None:
        raise SystemExit(143)

    module.validation_step = validation_step  # type: ignore[method-assign]
    order = [saving, averaging] if saved.startswith("before") else [averaging, saving]
    with pytest.raises(SystemExit):
        fit(module, tmp_path, *order, Saving(regular, 4), validate_every=4)
    expected, found = read(regular), read(cut)
    assert not same(expected["state_dict"], expected["current_model_state"])
    assert same(found["state_dict"], expected["state_dict"])
    assert same(found["current_model_state"], expected["current_model_state"])
    # And in the module are the weights again.
    assert same(copied(module), expected["current_model_state"])


def test_an_exchange_that_was_cut_short_is_undone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, averaging, path = Toy(), Averaging(DECAY), tmp_path / "last.ckpt"
    original, calls = Averaging._pairs, []

    class Cut(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            yield next(iter(super().items()))
            raise SystemExit(143)

    def pairs(self: Averaging, holder: nn.Module) -> Any:
        calls.append(1)
        found = original(self, holder)
        return Cut(found) if len(calls) == 5 else found

    monkeypatch.setattr(Averaging, "_pairs", pairs)
    with pytest.raises(SystemExit):
        fit(module, tmp_path, Saving(path, on_exception=True), averaging, Saving(tmp_path / "4.ckpt"), validate_every=4)
    monkeypatch.undo()
    without = Toy()
    without.validation_step = lambda *_: (_ for _ in ()).throw(SystemExit(143))  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        fit(without, tmp_path, validate_every=4)
    assert same(read(path)["current_model_state"], copied(without))
    assert same(copied(module), copied(without))


def test_a_run_without_a_step_left_puts_the_average_in(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    whole = Toy()
    fit(whole, tmp_path, Averaging(DECAY), Saving(path, STEPS))
    module, averaging = Toy(), Averaging(DECAY)
    trainer = fit(module, tmp_path, averaging, resume=path)
    assert trainer.global_step == STEPS
    assert same(copied(module), read(path)["current_model_state"])
    averaging.finish(module)
    assert same(copied(module), copied(whole))
    averaging.finish(module)
    assert same(copied(module), copied(whole))
    with pytest.raises(RuntimeError, match="after the end of training"):
        trainer.save_checkpoint(tmp_path / "after.ckpt")


def test_a_validation_before_the_first_step_leaves_the_average_fit_for_use() -> None:
    module, averaging = Toy(), Averaging(DECAY)
    before = copied(module)
    averaging.setup(None, module, "fit")
    with torch.inference_mode():
        averaging.on_validation_epoch_start(None, module)
        averaging.on_validation_epoch_end(None, module)
    assert same(copied(module), before)
    with torch.no_grad():
        module.layer.weight.add_(1)
    averaging.on_train_batch_end(_at(1), module, None, None, 0)
    averaging.finish(module)
    assert torch.equal(module.layer.weight, before["layer.weight"] + 1)


def test_sharded_weights_are_averaged_in_their_shards(alone: None) -> None:
    results = []
    for sharded in (False, True):
        module, averaging = Toy(), Averaging(DECAY)
        averaging.setup(None, module, "fit")
        if sharded:
            fully_shard(module)
        optimizer = module.configure_optimizers()
        for step in range(1, 4):
            module.layer(torch.ones(2, 3)).sum().backward() if not sharded else _forward(module).backward()
            optimizer.step()
            optimizer.zero_grad()
            averaging.on_train_batch_end(_at(step), module, None, None, 0)
        averaging.on_validation_epoch_start(None, module)
        if sharded:
            # What a validation gathers is gone before the weights come back.
            with torch.no_grad():
                _forward(module)
            averaging.on_validation_epoch_end(None, module)
            assert all(isinstance(one, DTensor) for one in module.parameters())
            averaging.on_validation_epoch_start(None, module)
        state = {name: _whole(value) for name, value in module.state_dict().items()}
        checkpoint = {"state_dict": module.state_dict()}
        averaging.on_save_checkpoint(None, module, checkpoint)
        weights = {name: _whole(value) for name, value in checkpoint["current_model_state"].items()}
        assert isinstance(checkpoint["state_dict"]["layer.weight"], DTensor) == sharded
        results.append((state, weights))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])
    assert not same(*results[0])


def _forward(module: Toy) -> Tensor:
    # The hooks of a sharded module hang on its call.
    module.forward = lambda rows: module.layer(rows).sum()  # type: ignore[method-assign]
    return module(torch.ones(2, 3))


def _whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def _at(step: int) -> Any:
    class Trainer:
        global_step = step

    return Trainer()
