"""The image tokenizer's training: when quantisation begins, what is learnt from, what is measured."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchmetrics.image import PeakSignalNoiseRatio

from mentor.data.collate import to_device
from mentor.errors import UserError
from mentor.tokenizers import (
    EMAVQConfig,
    FSQConfig,
    ImageTokenizer,
    ImageTokenizerConfig,
    QuantizerConfig,
    VQConfig,
    build_image_tokenizer,
)
from mentor.training.averaging import Averaging
from mentor.training.image_tokenizer_module import ImageTokenizerModule, LossConfig, training_pictures
from mentor.training.optim import OptimizerConfig
from mentor.types import Batch, ImageSegment, TextSegment

SMALL = {"channels": 8, "multipliers": (1, 2), "stem": 2, "patches": True, "latent_width": 16, "groups": 4}
SMALL |= {"encoder_blocks": 1, "decoder_blocks": 1, "attention": False, "middle": False}


def small(quantizer: QuantizerConfig | None = None) -> ImageTokenizer:
    torch.manual_seed(0)
    return build_image_tokenizer(ImageTokenizerConfig(**SMALL, quantizer=quantizer or VQConfig(codes=32, width=4)))


def pictures(count: int, seed: int) -> torch.Tensor:
    """Pictures of two coloured halves."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 3, 1, 2, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(colours, size=(16, 16), mode="nearest")


def make_batch(seed: int, count: int = 4, valid: Sequence[bool] | None = None) -> Batch:
    targets, others = pictures(count, seed), pictures(count, seed + 1000)
    # Every second prompt shows the target itself, the others another picture.
    shown = [target if row % 2 == 0 else other for row, (target, other) in enumerate(zip(targets, others, strict=True))]
    return Batch(
        tasks=["reconstruct"] * count,
        prompts=[(TextSegment("The image is "), ImageSegment(image)) for image in shown],
        targets=targets,
        focus=torch.zeros(count, 16, 16),
        keys=[f"{seed}-{row}" for row in range(count)],
        valid=torch.tensor([True] * count if valid is None else list(valid)),
        facts=[{}] * count,
    )


class Batches(Dataset[Batch]):
    def __init__(self, first: int, count: int, valid: Sequence[bool] | None = None) -> None:
        self.first, self.count, self.valid = first, count, valid

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return make_batch(self.first + index, valid=self.valid)


class Data(lightning.LightningDataModule):
    """Training and validation batches; the batch is a frozen dataclass, which Lightning cannot move by itself."""

    def __init__(self, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().__init__()
        self.train, self.validation = train, validation

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=None)

    def val_dataloader(self) -> DataLoader | list:
        return DataLoader(self.validation, batch_size=None) if self.validation else []

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return to_device(batch, device)


def make_trainer(steps: int, **settings) -> lightning.Trainer:
    settings = {"logger": False, "enable_checkpointing": False, **settings}
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def make_module(tokenizer: ImageTokenizer, updates: int, **loss) -> ImageTokenizerModule:
    return ImageTokenizerModule(tokenizer, LossConfig(**loss), OptimizerConfig(lr=2e-3), updates)


class Watch(lightning.Callback):
    """Notes at every step whether the codes are chosen, and how many pictures were seen."""

    def __init__(self) -> None:
        self.started: list[bool] = []
        self.seen: list[int] = []

    def on_train_start(self, trainer, pl_module) -> None:
        pl_module.tokenizer.register_forward_pre_hook(lambda module, args: self.seen.append(len(args[0])))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        pl_module.write_row(outputs)
        self.started.append(bool(pl_module.tokenizer.quantize.started))


@pytest.mark.parametrize(
    "quantizer", [VQConfig(codes=32, width=4), EMAVQConfig(codes=32, width=4), FSQConfig(levels=(4, 3))]
)
def test_quantisation_begins_after_the_delay(quantizer: QuantizerConfig) -> None:
    watch = Watch()
    module = make_module(small(quantizer), updates=8, delay=0.5)
    make_trainer(8, callbacks=[watch]).fit(module, datamodule=Data(Batches(0, 8)))
    assert watch.started == [False] * 4 + [True] * 4
    assert {"train/loss", "train/psnr", "train/usage", "train/perplexity"} <= module.metrics.keys()


def test_codes_that_are_chosen_are_used_at_once() -> None:
    tokenizer = small()
    tokenizer.start_codes(pictures(8, 0))
    before = tokenizer.codebook.detach().clone()
    watch = Watch()
    make_trainer(1, callbacks=[watch]).fit(make_module(tokenizer, 8, delay=0.5), datamodule=Data(Batches(0, 1)))
    assert watch.started == [True]
    torch.testing.assert_close(tokenizer.codebook, before, atol=0.05, rtol=0)


def test_targets_and_other_references_are_learnt_from() -> None:
    batch = make_batch(0)
    chosen = training_pictures(batch, 0, "seed")
    assert torch.equal(chosen.images[:4], batch.targets)
    assert torch.equal(chosen.images[4:], pictures(4, 1000)[1::2])
    assert chosen.places == [0, 1, 2, 3, 5, 7]


def share_of(batch: Batch, rank: int, world: int) -> Batch:
    """The rows that a process has of a global batch."""
    return Batch(
        batch.tasks[rank::world],
        batch.prompts[rank::world],
        batch.targets[rank::world],
        batch.focus[rank::world],
        batch.keys[rank::world],
        batch.valid[rank::world],
        batch.facts[rank::world],
    )


@pytest.mark.parametrize("most", [0, 3, 5, 8, 11, 16, 40])
def test_the_choice_of_pictures_does_not_depend_on_the_number_of_processes(most: int) -> None:
    batch = make_batch(0, count=8)
    for seed in "abcd":
        alone = training_pictures(batch, most, seed)
        expected = dict(zip(alone.places, alone.images, strict=True))
        for world in (2, 4, 8):
            found: dict[int, torch.Tensor] = {}
            for rank in range(min(world, most) if most else world):
                if world > most > 0:
                    continue  # some processes would have none
                part = training_pictures(share_of(batch, rank, world), most, seed, rank, world)
                assert not found.keys() & set(part.places)
                found |= dict(zip(part.places, part.images, strict=True))
            if not world > most > 0:
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[place], expected[place]) for place in found)


def test_every_example_gives_a_picture_before_any_gives_two() -> None:
    batch = make_batch(0, count=8)  # every second one has two pictures
    for seed in map(str, range(50)):
        assert len(training_pictures(batch, 3, seed).places) == 3
        few = [place % 8 for place in training_pictures(batch, 8, seed).places]
        assert sorted(few) == list(range(8))
        more = [place % 8 for place in training_pictures(batch, 12, seed).places]
        assert set(more) == set(range(8)) and len(more) == 10  # the stretch of four has two with a second picture
        assert len(training_pictures(batch, 16, seed).places) == 12


def test_each_picture_is_chosen_as_often_as_its_like() -> None:
    batch = make_batch(0, count=8)
    counts = torch.zeros(16)
    for seed in map(str, range(2000)):
        counts[training_pictures(batch, 4, seed).places] += 1 / 2000
    only, either = counts[0:8:2], torch.cat((counts[1:8:2], counts[9:16:2]))
    torch.testing.assert_close(only, torch.full((4,), 0.5), atol=0.05, rtol=0)
    torch.testing.assert_close(either, torch.full((8,), 0.25), atol=0.05, rtol=0)
    assert not counts[8:16:2].any()


def test_processes_have_equally_many_pictures_where_all_examples_have_them() -> None:
    batch = make_batch(1, count=12)
    other = Batch(**(vars(batch) | {"prompts": [(ImageSegment(image),) for image in pictures(12, 77)]}))
    for most in (4, 13, 16, 20):
        for seed in map(str, range(20)):
            parts = [len(training_pictures(share_of(other, rank, 4), most, seed, rank, 4).places) for rank in range(4)]
            assert sum(parts) == most and max(parts) - min(parts) <= 1


def test_the_number_of_pictures_is_limited() -> None:
    watch = Watch()
    make_trainer(3, callbacks=[watch]).fit(make_module(small(), 3, images=3), datamodule=Data(Batches(0, 3)))
    assert watch.seen == [3, 3, 3]


def test_fewer_pictures_than_processes_are_refused() -> None:
    module = make_module(small(), 3, images=1)
    module.trainer = make_trainer(3)
    module.on_train_start()
    module.trainer = SimpleNamespace(global_step=0, world_size=2)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"loss\.images 1 leaves some of 2 processes without a picture: say 2 or more"):
        module.on_train_start()


def test_the_seed_decides_on_pictures_and_noise() -> None:
    def train(seed: int) -> torch.Tensor:
        module = ImageTokenizerModule(small(), LossConfig(images=3, delay=0.9), OptimizerConfig(lr=2e-3), 4, seed=seed)
        make_trainer(4).fit(module, datamodule=Data(Batches(0, 4)))
        return torch.cat([weights.detach().flatten() for weights in module.tokenizer.parameters()])

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


def test_training_makes_the_pictures_better() -> None:
    module = make_module(small(), 160, delay=0.2)
    trainer = make_trainer(160, val_check_interval=40, check_val_every_n_epoch=None)
    psnrs: list[float] = []

    class Note(lightning.Callback):
        def on_validation_end(self, trainer, pl_module) -> None:
            psnrs.append(pl_module.metrics["val/psnr"])

    trainer.callbacks.append(Note())  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=Data(Batches(0, 160), Batches(5000, 4)))
    assert len(psnrs) == 4 and psnrs[-1] > psnrs[0] + 0.3 and psnrs[-1] > 12.5


def test_validation_counts_valid_rows_only_and_agrees_with_torchmetrics() -> None:
    tokenizer = small()
    tokenizer.start_codes(pictures(64, 7))
    module = make_module(tokenizer, 10)
    batches = Batches(100, 3, valid=[True, True, True, False])
    make_trainer(1).validate(module, datamodule=Data(validation=batches), verbose=False)
    tokenizer.eval()
    metric = PeakSignalNoiseRatio(data_range=2.0, dim=(1, 2, 3), reduction="elementwise_mean")
    ids = []
    for index in range(3):
        targets = batches[index].targets[:3]
        codes = tokenizer.encode(targets)
        metric.update(tokenizer.decode_ids(codes.ids), targets)
        ids.append(codes.ids.flatten())
    assert module.metrics["val/psnr"] == pytest.approx(float(metric.compute()), abs=1e-4)
    assert module.metrics["val/usage"] == pytest.approx(len(torch.cat(ids).unique()) / 32)
    shares = torch.cat(ids).bincount().double() / len(torch.cat(ids))
    entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum()
    assert module.metrics["val/perplexity"] == pytest.approx(float(entropy.exp()), rel=1e-4)


def test_validation_counts_what_averaged_weights_do() -> None:
    tokenizer = small()
    tokenizer.start_codes(pictures(64, 7))
    module = make_module(tokenizer, 4)
    trainer = make_trainer(4, callbacks=[Averaging(0.9)], val_check_interval=4, check_val_every_n_epoch=None)
    trainer.fit(module, datamodule=Data(Batches(0, 4), Batches(100, 3)))
    assert module.metrics["val/psnr"] > 5
    assert module.metrics["val/usage"] > 0


def test_a_batch_of_padding_alone_is_no_trouble() -> None:
    module = make_module(small(), 10)
    make_trainer(1).validate(module, datamodule=Data(validation=Batches(0, 1, valid=[False] * 4)), verbose=False)
    assert module.metrics["val/psnr"] == 0


def test_before_the_codes_are_chosen_validation_does_not_quantise() -> None:
    tokenizer = small()
    module = make_module(tokenizer, 10)
    make_trainer(1).validate(module, datamodule=Data(validation=Batches(0, 1)), verbose=False)
    images = Batches(0, 1)[0].targets
    drawn = tokenizer.eval()(images, quantize=False).images.clamp(-1, 1)
    expected = 10 * torch.log10(4 / (drawn - images).square().mean(dim=(1, 2, 3))).mean()
    assert module.metrics["val/psnr"] == pytest.approx(expected.item(), abs=1e-4)
    assert "val/usage" not in module.metrics


def test_a_resumed_run_keeps_its_codes(tmp_path) -> None:
    module = make_module(small(), 8, delay=0.25)
    trainer = make_trainer(4)
    trainer.fit(module, datamodule=Data(Batches(0, 8)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = make_module(small(), 8, delay=0.25)
    starts: Iterator[int] = iter(range(99))
    again.tokenizer.quantize.choose_codes = lambda placed, draws: next(starts)  # type: ignore[method-assign]
    make_trainer(8).fit(
        again, datamodule=Data(Batches(0, 8)), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=False
    )
    assert next(starts) == 0
    assert again.tokenizer.quantize.started


def test_examples_show_target_and_round_trip() -> None:
    tokenizer = small().eval()
    tokenizer.start_codes(pictures(16, 3))
    batch = make_batch(0)
    rows = make_module(tokenizer, 10).eval().illustrate(batch)
    assert [caption for caption, _ in rows] == list(batch.keys)
    assert torch.equal(rows[2][1][0], batch.targets[2])
    torch.testing.assert_close(rows[2][1][1], tokenizer.decode_ids(tokenizer.encode(batch.targets).ids)[2])


def test_matrices_decay_and_the_codebook_does_not() -> None:
    optimizer = make_module(small(), 10).configure_optimizers()["optimizer"]  # type: ignore[index]
    codebook_decay = [
        group["weight_decay"] for group in optimizer.param_groups if any(p.shape == (32, 4) for p in group["params"])
    ]
    assert codebook_decay == [0.0]
