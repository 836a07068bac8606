"""Codes made beforehand: the same numbers as from pictures, the same bytes whatever happens, no other tokenizer's."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_generator, tiny_image_tokenizer

from mentor.conditioning import NativeConfig, TextTokenizer
from mentor.config import compose, validate
from mentor.data.codes import CodeSet
from mentor.data.collate import collate
from mentor.data.datamodule import DataModule
from mentor.data.examples import ExampleMaker
from mentor.data.making.building import write_dataset
from mentor.data.order import Sample
from mentor.data.records import Record, RecordObject
from mentor.data.settings import DataConfig
from mentor.data.storage.manifest import read_manifest
from mentor.data.storage.shards import ShardSet
from mentor.data.tasks import TASKS
from mentor.errors import UserError
from mentor.models import ARHeadConfig, BackboneConfig, Generator, GeneratorConfig, build_generator
from mentor.models.checkpoint import Card, code_spec, save_generator, save_image_tokenizer, weights_fingerprint
from mentor.tokenizers import ImageTokenizer
from mentor.training.code_packs import Tally
from mentor.training.config import ObjectiveConfig, TrainConfig
from mentor.training.generator_module import GeneratorModule, shown_references
from mentor.training.optim import OptimizerConfig
from mentor.training.precompute import CodesConfig, main, make_codes, parse
from mentor.training.run import train
from mentor.types import Batch, ImageSegment, TextSegment, prompt_text

Settings = Callable[..., TrainConfig]
MIXTURE = dict.fromkeys(TASKS, 1.0)


def config_for(data: Path, tokenizer: Path, output: Path, *options: str) -> CodesConfig:
    return parse([str(data), "--tokenizer", str(tokenizer), "--output", str(output), "--device", "cpu", *options])


@pytest.fixture(scope="session")
def codes(shapes: Path, tokenizer_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("codes") / "codes"
    make_codes(config_for(shapes, tokenizer_release, output))
    return output


@pytest.fixture
def module(image_tokenizer: ImageTokenizer) -> Callable[..., GeneratorModule]:
    def make(*features: str) -> GeneratorModule:
        torch.manual_seed(1)
        config = GeneratorConfig(
            conditioner=NativeConfig(max_prefix=256, image_features=features),
            backbone=BackboneConfig(layers=2, width=32, heads=2, rope_base=100),
            head=ARHeadConfig(),
        )
        text_tokenizer = TextTokenizer.train(["a large red circle at the left on stripes"], 300)
        spec = code_spec(image_tokenizer, 64)
        generator = build_generator(config, text_tokenizer, spec, image_tokenizer.codebook).eval()
        objective = ObjectiveConfig(focus_weight=2.0)
        return GeneratorModule(generator, image_tokenizer, objective, OptimizerConfig(lr=1e-3), 10, list(TASKS), 0)

    return make


def data_module(root: Path, **changes) -> DataModule:
    settings = {"root": str(root), "mixture": MIXTURE, "batch_size": 8, "image_size": 64, "workers": 0}
    made = DataModule(DataConfig(**{**settings, "validation_batch_size": 6, **changes}), 0)
    made.trainer = SimpleNamespace(global_rank=0, world_size=1)  # type: ignore[assignment]
    return made


def with_pictures(batch: Batch, shapes: Path, seed: int = 0, split: str = "train") -> Batch:
    """The same examples, made of the pictures as in a run's first epoch."""
    shards = ShardSet(shapes, split)
    maker = ExampleMaker(shards, seed, 64)
    places = {shards.key(shard, i): (shard, i) for shard, count in enumerate(shards.counts) for i in range(count)}
    examples = [maker.example(batch.tasks[0], Sample(0, *places[key])) for key in batch.keys]
    return collate(examples, batch.valid.tolist())


def batches(data: DataModule, steps: int) -> list[Batch]:
    return [batch for _, batch in zip(range(steps), data.train_dataloader(), strict=False)]


def test_losses_from_codes_are_those_from_pictures(codes: Path, shapes: Path, module) -> None:
    made = module("latents")
    tasks = set()
    for batch in batches(data_module(codes), 10):
        tasks.add(batch.tasks[0])
        pictures = with_pictures(batch, shapes)
        assert [prompt_text(prompt) for prompt in batch.prompts] == [prompt_text(prompt) for prompt in pictures.prompts]
        target, condition = made.encode_batch(pictures.prompts, pictures.targets)
        assert torch.equal(batch.codes.target_ids, target.ids)
        if condition.codes is not None:
            assert torch.equal(batch.codes.reference_ids, condition.codes.ids)
        for prompts in (lambda one: one.prompts, lambda one: made.drop(one, 3)):
            theirs, ours = (made.example_scores(prompts(one), one, 0) for one in (pictures, batch))
            torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=1e-6, atol=1e-6)
            assert torch.equal(ours["accuracy"], theirs["accuracy"])
    assert tasks == set(TASKS)


def test_stored_features_are_the_encoders_to_sixteen_bits(codes: Path, shapes: Path, module) -> None:
    made = module("latents", "features")
    for batch in batches(data_module(codes), 5):
        pictures = with_pictures(batch, shapes)
        condition = made.encode_batch(pictures.prompts, pictures.targets)[1]
        if condition.codes is not None:
            features = batch.codes.reference_features
            assert features.dtype == torch.float16
            torch.testing.assert_close(features.float(), condition.codes.features, rtol=1e-3, atol=1e-3)
        theirs, ours = (made.example_scores(one.prompts, one, 0)["loss"] for one in (pictures, batch))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_validation_on_codes_is_validation_on_pictures(codes: Path, shapes: Path, module) -> None:
    made = module("latents")
    seen = 0
    limit = {"validation_limit": 7}
    for ours, theirs in zip(
        data_module(codes, **limit).val_dataloader(), data_module(shapes, **limit).val_dataloader(), strict=True
    ):
        assert (list(ours.keys), list(ours.tasks)) == (list(theirs.keys), list(theirs.tasks))
        assert torch.equal(ours.valid, theirs.valid)
        losses = (made.example_scores(one.prompts, one, 0)["loss"] for one in (ours, theirs))
        torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
        seen += 1
    assert seen == 10


def test_variants_draw_anew(shapes: Path, tokenizer_release: Path, tmp_path: Path) -> None:
    options = ("--tasks", "recover", "--variants", "2", "--features", "no")
    made = make_codes(config_for(shapes, tokenizer_release, tmp_path / "codes", *options))
    records = len(ShardSet(shapes, "train"))
    assert made.examples == {"train": 2 * records, "heldout": len(ShardSet(shapes, "heldout"))}
    pack = CodeSet(tmp_path / "codes", "train").pack(0)
    assert pack.keys[:records] == pack.keys[records:]
    shown = [pack.references[rows[0]] for rows in pack.images]
    assert sum(not np.array_equal(*pair) for pair in zip(shown[:records], shown[records:], strict=True)) > records // 2
    assert np.array_equal(pack.targets[:records], pack.targets[records:])


def test_captions_are_those_of_the_pictures(codes: Path, shapes: Path) -> None:
    assert CodeSet(codes, "train").captions(10_000) == ShardSet(shapes, "train").captions(10_000)
    assert CodeSet(codes, "train").captions(7) == ShardSet(shapes, "train").captions(7)


def test_what_is_kept_of_a_prompt_keeps_its_own_references() -> None:
    one, two, three = (ImageSegment(torch.empty(3, 0, 0), name) for name in "abc")
    text = TextSegment("x")
    whole = [(one, text, two), (text,), (one,), (three, one, two)]
    assert shown_references(whole, whole) == [0, 1, 2, 3, 4, 5]
    assert shown_references(whole, [(text,), (), (one,), (two, three)]) == [2, 3, 5]
    assert shown_references(whole, [(), (text,), (), ()]) == []


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Stop(Exception):
    pass


def test_interruptions_and_workers_change_no_byte(shapes: Path, tokenizer_release: Path, tmp_path: Path) -> None:
    options = ("--tasks", "recover,text_to_image", "--batch-size", "16")

    def config(name: str, workers: int = 0) -> CodesConfig:
        made = config_for(shapes, tokenizer_release, tmp_path / name, *options)
        return made.model_copy(update={"records": 40, "workers": workers})

    whole = make_codes(config("whole"))
    assert len(whole.manifest["files"]) == 4
    make_codes(config("workers", workers=2))
    rounds = 0
    while not (tmp_path / "parts/manifest.json").exists():
        rounds += 1

        def report(done: int, total: int, limit: int = 60 * rounds) -> None:
            assert total == sum(whole.examples.values())
            if limit < done < total:
                raise Stop

        try:
            make_codes(config("parts"), report)
        except Stop:
            assert not list((tmp_path / "parts").rglob("*.partial"))
    assert rounds > 2
    assert snapshot(tmp_path / "whole") == snapshot(tmp_path / "parts") == snapshot(tmp_path / "workers")
    assert make_codes(config("whole")).found


def test_finished_shards_are_not_made_again(
    shapes: Path, tokenizer_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(shapes, tokenizer_release, tmp_path / "codes", "--tasks", "text_to_image")
    config = config.model_copy(update={"records": 40})
    make_codes(config)
    (tmp_path / "codes/train/000001.tar").unlink()
    encoded: list[int] = []
    original = ImageTokenizer.encode
    monkeypatch.setattr(ImageTokenizer, "encode", lambda self, x: (encoded.append(len(x)), original(self, x))[1])
    before = read_manifest(tmp_path / "codes")
    assert make_codes(config).manifest == before
    assert sum(encoded) <= 40


def test_a_picture_is_encoded_once_whatever_it_is_asked_for(
    shapes: Path, tokenizer_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    original = ImageTokenizer.encode
    monkeypatch.setattr(ImageTokenizer, "encode", lambda self, x: (encoded.append(len(x)), original(self, x))[1])
    options = ("--tasks", "reconstruct,text_to_image", "--variants", "3", "--features", "no")
    made = make_codes(config_for(shapes, tokenizer_release, tmp_path / "codes", *options))
    assert sum(encoded) <= len(ShardSet(shapes, "train")) + len(ShardSet(shapes, "heldout"))
    assert made.examples["train"] == 6 * len(ShardSet(shapes, "train"))


def test_a_run_from_codes_never_encodes_and_resumes_exactly(
    settings: Settings, codes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: ImageTokenizer, images: torch.Tensor) -> None:
        raise AssertionError("a picture was encoded")

    monkeypatch.setattr(ImageTokenizer, "encode", refuse)
    changes = (f"data.root={codes}", "trainer.max_steps=6", "trainer.validate_every=3", "data.validation_limit=4")
    train(settings(*changes, f"run.dir={tmp_path / 'whole'}"))
    assert Image.open(next((tmp_path / "whole/samples").glob("*6.png"))).size[0] > 64
    with pytest.MonkeyPatch.context() as patch:
        original = GeneratorModule.training_step

        def stop(self: GeneratorModule, batch: Batch, batch_idx: int) -> torch.Tensor:
            if self.trainer.global_step == 4:
                raise Stop
            return original(self, batch, batch_idx)

        patch.setattr(GeneratorModule, "training_step", stop)
        with pytest.raises(Stop):
            train(settings(*changes, f"run.dir={tmp_path / 'parts'}", "trainer.checkpoint_every=2"))
    train(settings(*changes, f"run.dir={tmp_path / 'parts'}", "trainer.checkpoint_every=2"))
    whole, parts = (snapshot(tmp_path / name / "release")["model.safetensors"] for name in ("whole", "parts"))
    assert whole == parts


def test_codes_of_another_tokenizer_are_refused_with_both_fingerprints(
    settings: Settings, codes: Path, tmp_path: Path
) -> None:
    ours, other = tiny_image_tokenizer(), tiny_image_tokenizer()
    with torch.no_grad():
        next(iter(other.parameters())).add_(1e-3)
    save_image_tokenizer(tmp_path / "other", other, 64, Card("other"))
    with pytest.raises(UserError, match=r"make_shards\.py codes") as caught:
        train(settings(f"data.root={codes}", f"image_tokenizer_from={tmp_path / 'other'}"))
    assert weights_fingerprint(ours) in str(caught.value)
    assert weights_fingerprint(other) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_codes_lack_is_said_before_anything_is_written(
    settings: Settings, shapes: Path, tokenizer_release: Path, tmp_path: Path
) -> None:
    make_codes(config_for(shapes, tokenizer_release, tmp_path / "codes", "--features", "no"))
    with pytest.raises(UserError, match=r"reads features of width 16, the codes in .* have none.*--features yes"):
        train(settings(f"data.root={tmp_path / 'codes'}"))
    assert not (tmp_path / "run").exists()
    changes = ("conditioner.image_features=[latents]", "trainer.max_steps=1")
    train(settings(f"data.root={tmp_path / 'codes'}", *changes))


def test_an_image_tokenizer_does_not_learn_from_codes(settings: Settings, codes: Path, tmp_path: Path) -> None:
    overrides = ["stage=tokenizer", "experiment=test", f"data.root={codes}", f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match="an image tokenizer cannot learn from"):
        train(validate(TrainConfig, compose("train", [*overrides, "data.mixture={text_to_image: 1.0}"])))
    assert not (tmp_path / "run").exists()


def test_features_are_stored_where_the_release_reads_them(
    shapes: Path, tokenizer_release: Path, tmp_path: Path, image_tokenizer: ImageTokenizer
) -> None:
    generator: Generator = tiny_generator(image_tokenizer)
    save_generator(tmp_path / "reads", generator, image_tokenizer, 64, Card("test"))
    assert config_for(shapes, tmp_path / "reads", tmp_path / "x").features
    assert config_for(shapes, tokenizer_release, tmp_path / "x").features
    assert not config_for(shapes, tokenizer_release, tmp_path / "x", "--features", "no").features


def photograph(number: int, hidden: bool = False) -> Record:
    """A wide picture; its object lies outside the centred square where `hidden`."""
    draw = np.random.default_rng(number)
    mask = np.zeros((64, 128), bool)
    mask[10:20, slice(0, 8) if hidden else slice(50, 70)] = True
    pixels = draw.integers(0, 255, (64, 128, 3), np.uint8)
    return Record(f"{number:06d}", pixels, (f"caption {number}",), (RecordObject("thing", mask),))


def test_what_cannot_be_made_stops_the_work_or_is_counted(tokenizer_release: Path, tmp_path: Path) -> None:
    records = [("heldout" if i % 5 == 0 else "train", photograph(i, hidden=i == 7)) for i in range(30)]
    write_dataset({"name": "test"}, records, tmp_path / "data", 10)
    with pytest.raises(UserError, match=r"1 of \d+ examples cannot be made \(1 object not in the picture\).*000007"):
        make_codes(config_for(tmp_path / "data", tokenizer_release, tmp_path / "codes", "--tasks", "segment"))
    options = ("--tasks", "segment", "--max-bad", "0.01")
    made = make_codes(config_for(tmp_path / "data", tokenizer_release, tmp_path / "codes", *options))
    assert made.manifest["dropped"] == {"object not in the picture": 1}
    assert made.examples == {"train": 23, "heldout": 6}
    code_set = CodeSet(tmp_path / "codes", "train")
    assert "000007" not in list(chain.from_iterable(code_set.pack(i).keys for i in range(len(code_set.sizes))))


def test_the_share_of_what_cannot_be_made_is_taken_of_all() -> None:
    lines: list[tuple[int, int]] = []
    tally = Tally(0.01, 5000, lambda done, total: lines.append((done, total)))
    tally.add(100, {"a": 10})
    assert lines == [(110, 5000)]
    with pytest.raises(UserError, match=r"11 of 121 .*10 a, 1 b"):
        tally.add(10, {"b": 1})


def test_a_shard_does_not_depend_on_the_shards_before_it(
    tokenizer_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = [replace(photograph(0), key=f"{i:06d}") for i in range(12)]
    write_dataset({"name": "test"}, [("train", record) for record in alike], tmp_path / "data", 4)
    encoded: list[int] = []
    original = ImageTokenizer.encode
    monkeypatch.setattr(ImageTokenizer, "encode", lambda self, x: (encoded.append(len(x)), original(self, x))[1])
    options = ("--tasks", "text_to_image", "--features", "no")
    config = config_for(tmp_path / "data", tokenizer_release, tmp_path / "codes", *options)
    make_codes(config.model_copy(update={"records": 4}))
    assert encoded == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "draw"), "unknown task 'draw': known are reconstruct"),
        (("--variants", "0"), "variants: '0' is wrong"),
        (("--variants", "many"), "variants: 'many' is wrong"),
        (("--image-size", "60"), "no multiple of the image tokenizer's factor 8"),
        (("image_only=2",), "image_only: '2' is wrong"),
        (("colour=red",), "cannot read 'colour=red': settings are key=value with image_only"),
        (("--features", "perhaps"), "invalid choice: 'perhaps'"),
        (("--device", "abacus"), "device"),
        (("--unknown",), "unrecognized arguments: --unknown"),
    ],
)
def test_mistakes_of_the_command_line_are_named(
    shapes: Path, tokenizer_release: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        main([str(shapes), "--tokenizer", str(tokenizer_release), "--output", str(tmp_path / "codes"), *options])
    assert not (tmp_path / "codes").exists()


def test_what_is_no_data_set_or_no_release_is_named(
    shapes: Path, codes: Path, tokenizer_release: Path, tmp_path: Path
) -> None:
    out = ["--output", str(tmp_path / "codes")]
    with pytest.raises(UserError, match="holds image codes, not pictures"):
        main([str(codes), "--tokenizer", str(tokenizer_release), *out])
    with pytest.raises(UserError, match="no shards in"):
        main([str(tmp_path), "--tokenizer", str(tokenizer_release), *out])
    with pytest.raises(UserError, match="is not a release folder"):
        main([str(shapes), "--tokenizer", str(shapes), *out])
    with pytest.raises(UserError, match="already holds another data set"):
        main([str(shapes), "--tokenizer", str(tokenizer_release), "--output", str(codes), "--seed", "3"])


def test_the_command_says_what_it_made(
    shapes: Path, tokenizer_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(shapes), "--tokenizer", str(tokenizer_release), "--output", str(tmp_path / "codes")]
    arguments += ["--tasks", "text_to_image, reconstruct", "image_only=0.3", "--features", "no"]
    main(arguments)
    said = capsys.readouterr().out
    train_size, heldout_size = (2 * len(ShardSet(shapes, split)) for split in ("train", "heldout"))
    assert f"now holds {train_size} train and {heldout_size} heldout examples of reconstruct, text_to_image" in said
    assert f"data.root={tmp_path / 'codes'}" in said
    main(arguments)
    assert "already holds" in capsys.readouterr().out
    assert CodeSet(tmp_path / "codes", "train").layout.image_only == 0.3
    shutil.rmtree(tmp_path / "codes")
