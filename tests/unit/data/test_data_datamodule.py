"""Batches as training and validation get them: ranks, workers, resume, refusals, and Lightning's own loop."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch

from mentor.config import validate
from mentor.data.collate import collate, pack, to_device, unpack
from mentor.data.datamodule import DataModule
from mentor.data.making.building import write_dataset
from mentor.data.records import Record, RecordObject, View
from mentor.data.settings import DataConfig
from mentor.data.tensors import to_tensor
from mentor.errors import UserError
from mentor.types import Batch, Example, parse_prompt, prompt_images, prompt_text

SIZE = 16
MIXTURE = {"reconstruct": 1.0, "segment": 1.0, "text_to_image": 1.0, "recover": 1.0, "subject": 1.0}


def record(number: int) -> Record:
    """Every third is a photograph without objects."""
    draw = np.random.default_rng(number)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[2:10, 3:12] = True
    photo = number % 3 == 2
    return Record(
        key=f"{number:06d}",
        image=draw.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8),
        captions=(f"caption {number}", f"other caption {number}"),
        objects=() if photo else (RecordObject(f"thing {number}", mask, attributes={"place": "at the left"}),),
        views=() if photo else (View(draw.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8), mask),),
        subject="" if photo else f"thing {number}",
        attributes={"kind": "photo" if photo else "scene"},
    )


def write(folder: Path, train: int = 60, heldout: int = 17, per_shard: int = 10, make=record) -> Path:
    records = [("train", make(number)) for number in range(train)]
    records += [("heldout", make(1000 + number)) for number in range(heldout)]
    write_dataset({"name": "test"}, records, folder, per_shard)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "shards")


def module(root: Path, seed: int = 0, rank: int = 0, world: int = 1, **changes) -> DataModule:
    settings = {"root": str(root), "mixture": MIXTURE, "batch_size": 8, "image_size": SIZE, "workers": 0}
    made = DataModule(DataConfig(**{**settings, "validation_batch_size": 8, **changes}), seed)
    made.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
    return made


def batches(data: DataModule, count: int) -> list[Batch]:
    return list(islice(data.train_dataloader(), count))


def same(one: Batch, two: Batch) -> bool:
    images = [[image for prompt in batch.prompts for image in prompt_images(prompt)] for batch in (one, two)]
    return (
        list(one.keys) == list(two.keys)
        and list(one.tasks) == list(two.tasks)
        and [prompt_text(prompt) for prompt in one.prompts] == [prompt_text(prompt) for prompt in two.prompts]
        and torch.equal(one.targets, two.targets)
        and torch.equal(one.focus, two.focus)
        and all(map(torch.equal, *images))
    )


def test_training_batches_have_one_task_each_and_the_promised_form(root):
    for batch in batches(module(root), 10):
        assert len(set(batch.tasks)) == 1
        assert batch.targets.shape == (8, 3, SIZE, SIZE)
        assert batch.focus.shape == (8, SIZE, SIZE)
        assert batch.valid.all()
        assert len(batch.prompts) == len(batch.keys) == len(batch.facts) == 8
        assert not any(isinstance(fact, np.ndarray) for facts in batch.facts for fact in facts.values())


def test_two_ranks_see_the_global_batches_of_one(root):
    alone = batches(module(root), 20)
    first, second = (batches(module(root, rank=rank, world=2), 20) for rank in range(2))
    for whole, left, right in zip(alone, first, second, strict=True):
        assert [key for pair in zip(left.keys, right.keys, strict=True) for key in pair] == list(whole.keys)
        assert torch.equal(torch.stack([left.targets, right.targets], dim=1).flatten(end_dim=1), whole.targets)


def test_a_worker_process_changes_nothing(root):
    assert all(map(same, batches(module(root), 12), batches(module(root, workers=1), 12)))
    assert all(map(same, batches(module(root), 12), batches(module(root, workers=2), 12)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_goes_on_with_the_next_batch(root, workers):
    whole = batches(module(root), 15)
    interrupted = module(root, workers=workers)
    assert all(map(same, batches(interrupted, 6), whole))
    resumed = module(root, workers=workers)
    resumed.load_state_dict(interrupted.state_dict())
    assert interrupted.state_dict()["consumed"] == 6, "batches that wait in a worker are not counted"
    assert all(map(same, batches(resumed, 9), whole[6:]))


def test_a_run_resumes_on_another_number_of_processes(root):
    whole = batches(module(root), 8)
    half = module(root, rank=0, world=2)
    batches(half, 5)
    resumed = module(root)
    resumed.load_state_dict(half.state_dict())
    assert all(map(same, batches(resumed, 3), whole[5:]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, "seed 0, this run has 5"),
        ({"mixture": {"reconstruct": 1.0}}, r"mixture \{.*'segment'.*this run has \{'reconstruct': 1.0\}"),
        ({"batch_size": 4}, "batch_size 8, this run has 4"),
        ({"image_only": 0.3}, "image_only 0.1, this run has 0.3"),
    ],
)
def test_a_state_of_other_settings_is_refused_with_both_values(root, changes, message):
    with pytest.raises(UserError, match=message):
        module(root, **changes).load_state_dict(module(root).state_dict())


def test_a_state_of_other_data_is_refused(root, tmp_path):
    other = write(tmp_path / "other", train=61)
    with pytest.raises(UserError, match="fingerprint"):
        module(other).load_state_dict(module(root).state_dict())


def test_settings_that_do_not_touch_the_order_may_change(root):
    module(root, workers=1, validation_limit=3).load_state_dict(module(root).state_dict())


def test_an_example_depends_on_seed_epoch_key_and_task_alone(root):
    def references(steps: int, **changes) -> dict[str, torch.Tensor]:
        # So few steps that no lane has come to its second epoch.
        data = module(root, **changes)
        recovered = [batch for batch in batches(data, steps) if batch.tasks[0] == "recover"]
        return {
            key: prompt_images(prompt)[0]
            for batch in recovered
            for key, prompt in zip(batch.keys, batch.prompts, strict=True)
        }

    one = references(3, mixture={"recover": 1.0})
    two = references(5, mixture={"recover": 1.0, "subject": 1.0}, lanes=4)
    other_seed = references(3, mixture={"recover": 1.0}, seed=1)
    shared = one.keys() & two.keys()
    assert len(shared) > 5
    assert all(torch.equal(one[key], two[key]) for key in shared)
    assert not any(torch.equal(one[key], other_seed[key]) for key in one.keys() & other_seed.keys())


def test_recovery_never_pastes_a_record_on_itself(root):
    for batch in batches(module(root, mixture={"recover": 1.0}, recover_min_scale=0.2), 10):
        for row, prompt in enumerate(batch.prompts):
            agrees = (prompt_images(prompt)[0] == batch.targets[row]).all(dim=0).float().mean()
            assert agrees < 0.5


def test_loading_leaves_the_global_random_state_alone(root):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(module(root, workers=1), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world", [1, 2])
def test_validation_sees_every_held_out_record_once_with_padding_marked(root, world):
    seen: dict[str, list[str]] = {}
    lengths = set()
    for rank in range(world):
        loader = module(root, rank=rank, world=world).val_dataloader()
        lengths.add(len(loader))
        assert len(list(loader)) == len(loader)
        for batch in loader:
            assert len(batch.keys) == 8 // world
            assert "mask" in batch.facts[0]
            for task, key, valid in zip(batch.tasks, batch.keys, batch.valid, strict=True):
                if valid:
                    seen.setdefault(task, []).append(key)
    assert len(lengths) == 1
    everything = {f"{1000 + number:06d}" for number in range(17)}
    assert set(seen) == set(MIXTURE)
    for task, keys in seen.items():
        assert len(keys) == len(set(keys))
        assert set(keys) == (everything if task in ("reconstruct", "text_to_image") else set(keys) & everything)


def test_validation_is_the_same_for_every_seed(root):
    assert all(map(same, module(root, seed=1).val_dataloader(), module(root, seed=2).val_dataloader()))


def test_validation_limit_holds_per_task(root):
    counts = dict.fromkeys(MIXTURE, 0)
    for batch in module(root, validation_limit=5).val_dataloader():
        counts[batch.tasks[0]] += int(batch.valid.sum())
    assert set(counts.values()) == {5}


def test_usable_counts_and_captions(root):
    data = module(root)
    assert data.usable["segment"] == (40, 60)
    assert data.usable["reconstruct"] == (60, 60)
    assert len(data.captions(10)) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mixture": {"draw": 1.0}},
            r"mixture.*'draw'.*known are reconstruct, segment, text_to_image, recover, subject",
        ),
        ({"mixture": {"segment": 0.0}}, "mixture.*'segment' is 0"),
        ({"mixture": {"segment": -1.0}}, "mixture.*'segment' is -1"),
        ({"mixture": {}}, "mixture.*empty"),
        ({"root": None}, "one of root, datasets and stream, found none"),
        ({"datasets": [{"root": "y"}]}, "found root and datasets"),
        ({"root": None, "datasets": [{"root": "y", "weight": 0}]}, r"datasets\.0\.weight"),
        ({"root": None, "datasets": [{"root": "y", "tasks": ["draw"]}]}, "unknown task 'draw'"),
        ({"warmup_steps": 5, "warmup_task": "draw"}, "warmup_task 'draw'"),
    ],
)
def test_wrong_settings_are_refused_on_one_line(changes, message):
    settings = {"root": "x", "mixture": MIXTURE, "batch_size": 8, **changes}
    with pytest.raises(UserError, match=message) as caught:
        validate(DataConfig, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 62}, "fewer than the batch size of 62"),
    ],
)
@pytest.mark.fault(18)
def test_data_too_small_for_the_settings_is_refused(root, changes, message):
    with pytest.raises(UserError, match=message):
        module(root, **changes)


@pytest.mark.fault(18)
def test_processes_that_cannot_share_a_batch_are_refused(root):
    with pytest.raises(UserError, match=r"batch_size 8 .*3 processes"):
        module(root, world=3).train_dataloader()


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.fault(18)
def test_fewer_shards_than_processes_and_workers_are_no_obstacle(tmp_path, world):
    one = write(tmp_path / "one", train=16, per_shard=16)
    whole = batches(module(one), 6)
    ranks = [batches(module(one, rank=rank, world=world, workers=2 if rank == 0 else 0), 6) for rank in range(world)]
    for step, batch in enumerate(whole):
        rows = zip(*(ranks[rank][step].keys for rank in range(world)), strict=True)
        assert [key for row in rows for key in row] == list(batch.keys)


@pytest.mark.fault(18)
def test_a_task_without_any_record_is_refused_and_says_what_it_needs(tmp_path):
    photos = write(tmp_path / "photos", make=lambda number: record(number * 3 + 2))
    with pytest.raises(UserError, match=r"'train'.*'segment'.*an object with its mask"):
        module(photos)
    assert len(batches(module(photos, mixture={"reconstruct": 1.0}), 2)) == 2


def test_recovery_from_a_shard_of_one_sample_borrows_a_picture_from_the_next(tmp_path):
    single = write(tmp_path / "single", train=22, heldout=2, per_shard=3)
    data = module(single, mixture={"recover": 1.0}, batch_size=4)
    assert data.train_shards[0].counts[-1] == 1
    keys = set()
    for batch in batches(data, 8):
        keys.update(batch.keys)
        for row, prompt in enumerate(batch.prompts):
            assert (prompt_images(prompt)[0] == batch.targets[row]).float().mean() < 0.5
    assert "000021" in keys


def test_recovery_can_be_kept_to_pictures_without_objects(root, tmp_path):
    data = module(root, mixture={"recover": 1.0}, recover_distractors=False, recover_min_scale=0.2)
    photographs = torch.stack([to_tensor(record(number).image) for number in range(2, 60, 3)])
    for batch in batches(data, 6):
        for prompt in batch.prompts:
            agrees = (photographs == prompt_images(prompt)[0]).all(dim=1).float().mean(dim=(1, 2))
            assert agrees.max() > 0.25
    everywhere = write(tmp_path / "objects", train=20, make=lambda number: record(number * 3))
    with pytest.raises(UserError, match="recover_distractors=true"):
        batches(module(everywhere, mixture={"recover": 1.0}, recover_distractors=False), 1)


def test_a_split_of_one_record_is_refused_for_recovery(tmp_path):
    single = write(tmp_path / "single", heldout=1)
    with pytest.raises(UserError, match=r"'heldout' has one record.*recover"):
        module(single, mixture={"recover": 1.0})


def test_packing_and_moving_keep_everything(root):
    for batch in batches(module(root), 5):
        assert same(unpack(pack(batch)), batch)
        assert to_device(batch, torch.device("cpu")) is batch
        moved = module(root).transfer_batch_to_device(batch, torch.device("meta"), 0)
        tensors = [moved.targets, moved.focus, moved.valid, *(i for p in moved.prompts for i in prompt_images(p))]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert [prompt_text(prompt) for prompt in moved.prompts] == [prompt_text(prompt) for prompt in batch.prompts]


def test_references_of_different_sizes_survive_packing():
    examples = [
        Example("t", parse_prompt("<image> and <image>", [torch.rand(3, size, size), torch.rand(3, size, size)]),
                torch.rand(3, 8, 8), torch.zeros(8, 8), "k")
        for size in (4, 6, 8)
    ]  # fmt: skip
    batch = collate(examples, valid=[True, False, True])
    assert same(unpack(pack(batch)), batch)
    assert batch.valid.tolist() == [True, False, True]


class Recorder(lightning.LightningModule):
    """A model of one weight that writes down what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[list[str]] = []
        self.validated: list[str] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.trained.append([*batch.tasks[:1], *batch.keys])
        return (self.weight - batch.targets.mean()).square().sum()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.validated += [key for key, valid in zip(batch.keys, batch.valid, strict=True) if valid]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches < 100
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(root: Path, folder: Path, steps: int, checkpoint: Path | None = None) -> Recorder:
    model, data = Recorder(), module(root, workers=1)
    data.trainer = None
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, val_check_interval=3, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        callbacks=[lightning.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1)],
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    return model


@pytest.mark.filterwarnings("error:.*not resumable.*")
def test_lightning_trains_validates_and_resumes_exactly(root, tmp_path):
    whole = fit(root, tmp_path, 9)
    assert len(whole.trained) == 9
    with_objects = sum(number % 3 != 2 for number in range(1000, 1017))
    assert len(whole.validated) == 3 * (2 * 17 + 3 * with_objects), "three rounds over every task's usable records"
    [checkpoint] = [path for path in tmp_path.iterdir() if "step=4" in path.name]
    resumed = fit(root, tmp_path, 9, checkpoint)
    assert resumed.trained == whole.trained[4:]
    assert resumed.weight.item() == pytest.approx(whole.weight.item(), abs=0)
