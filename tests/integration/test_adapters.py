"""Adapters by the commands: trained, drawn with, measured, merged; and every mistake with them in one line."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapting import KINDS, weights
from commandline import check_refusal, run_here
from PIL import Image
from safetensors.torch import load_file
from tiny import save_tiny_releases

from mentor.adapters import Base, count_adapter, save_adapter
from mentor.generate import generate, load, read_metadata
from mentor.models.checkpoint import Card, load_generator, read_config

Command = Callable[..., subprocess.CompletedProcess[str]]
TRAIN = ("-m", "mentor.train", "stage=2", "experiment=test", "init_from=model", "trainer.max_steps=4")
BOTH = ("adapter=lora_mrt", "adapter.lora.rank=2", "adapter.edits.rank=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the release `model` and the adapters `merging` and `editing` of it."""
    place = save_tiny_releases(tmp_path_factory.mktemp("adapters"))
    release = load_generator(place / "model")
    for name, kind in (("merging", "all_linear"), ("editing", "prefix lora and edits")):
        made = weights(KINDS[kind], release.generator)
        save_adapter(place / name, KINDS[kind], made, Base("model", release.fingerprint), 64, Card(name))
    return place


@pytest.mark.slow
def test_an_adapter_is_trained_on_a_frozen_model_and_drawn_with(place: Path, shapes: Path, command: Command) -> None:
    before = (place / "model" / "model.safetensors").read_bytes()
    settings = (*TRAIN, *BOTH, f"data.root={shapes}", "run.dir=run", "trainer.validate_every=2")
    planned = command(*settings, "--dry-run", cwd=place)
    assert planned.returncode == 0 and not (place / "run").exists(), planned.stderr
    trained = command(*settings, cwd=place)
    assert trained.returncode == 0 and "warn" not in trained.stderr.lower(), trained.stderr
    assert (place / "model" / "model.safetensors").read_bytes() == before
    facts = read_config(place / "run" / "release")
    assert facts["kind"] == "adapter" and facts["base"] == {
        "name": "model",
        "fingerprint": read_config(place / "model")["fingerprint"],
    }
    size = sum(tensor.numel() for tensor in load_file(place / "run" / "release" / "model.safetensors").values())
    rows = [line.split() for line in planned.stdout.splitlines()]
    (total,) = [int(row[2].replace(",", "")) for row in rows if row[:1] == ["total"]]
    assert total == size
    summary = json.loads((place / "run" / "summary.json").read_text())
    generator = load_generator(place / "model").generator
    assert summary["frozen"]["parameters"] >= sum(parameter.numel() for parameter in generator.parameters())

    drawing = ("-m", "mentor.generate", "a large red circle", "--model", "model", "--output", "drawn")
    drawn = command(*drawing, "--adapter", "run/release", "--adapter", "merging=-0.5", cwd=place)
    assert drawn.returncode == 0, drawn.stderr
    picture = place / "drawn" / "000000.png"
    assert read_metadata(picture)["adapters"] == [["run/release", 1.0], ["merging", -0.5]]
    again = command("-m", "mentor.generate", "--from-png", str(picture), "--output", "again", cwd=place)
    assert again.returncode == 0, again.stderr
    assert (place / "again" / "000000.png").read_bytes() == picture.read_bytes()


@pytest.mark.slow
def test_sharded_training_of_an_adapter_comes_to_the_same(place: Path, shapes: Path, command: Command) -> None:
    found = {}
    settings = ("optimizer.kind=adamw", "trainer.devices=2", "trainer.validate_every=2", "trainer.timeout=60")
    for strategy in ("ddp", "fsdp"):
        run = f"run_{strategy}"
        given = (*TRAIN, *BOTH, *settings, f"data.root={shapes}", f"run.dir={run}", f"trainer.strategy={strategy}")
        trained = command(*given, cwd=place)
        assert trained.returncode == 0, trained.stderr
        found[strategy] = load_file(place / run / "release" / "model.safetensors")
    assert found["ddp"].keys() == found["fsdp"].keys()
    for name, tensor in found["ddp"].items():
        assert torch.allclose(tensor, found["fsdp"][name], atol=1e-4), name


def test_merged_adapters_draw_the_same_without_being_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert run_here(["tools/merge_adapters.py", "model", "merged", "--adapter", "merging=0.5"], monkeypatch) == 0
    assert capsys.readouterr().out == "merged: model with merging=0.5\n"
    prompt = "a blue square at the left"
    merged = generate(load("merged", precision="fp32"), prompt, temperature=0)
    beside = generate(load("model", precision="fp32", adapters=[("merging", 0.5)]), prompt, temperature=0)
    assert merged[0].tobytes() == beside[0].tobytes()
    alone = generate(load("model", precision="fp32"), prompt, temperature=0)
    assert merged[0].tobytes() != alone[0].tobytes()
    assert read_config(Path("merged"))["training"]["merged_adapter_1"] == "merging=0.5"


def test_many_prompts_are_drawn_with_adapters(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("prompts.jsonl").write_text('{"prompt": "a red circle", "name": "one"}\n')
    drawing = ["-m", "mentor.generate", "--prompts", "prompts.jsonl", "--model", "model", "--output", "job"]
    assert run_here([*drawing, "--adapter", "editing"], monkeypatch) == 0
    with Image.open("job/one_000000.png") as picture:
        picture.load()
        drawn = picture.tobytes()
    model = load("model", adapters=["editing"])
    assert generate(model, "a red circle")[0].tobytes() == drawn
    assert generate(load("model"), "a red circle")[0].tobytes() != drawn
    (line,) = [json.loads(line) for line in Path("job/pictures.jsonl").read_text().splitlines()]
    assert line["fingerprint"] == model.fingerprint != model.release.fingerprint


def test_measures_are_of_the_model_with_its_adapters(
    place: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    few = [f"counts.{task}=0" for task in ("tokenizer", "segment", "text_to_image", "recover", "subject")]
    found = []
    for number, adapters in enumerate(([], ["adapter=editing=2", "adapter=merging"])):
        given = ["model=model", f"data={shapes}", f"output=measured{number}", "counts.reconstruct=4", *few, *adapters]
        assert run_here(["-m", "mentor.evaluate", *given], monkeypatch) == 0
        found.append(json.loads(Path(f"measured{number}/metrics.json").read_text())["reconstruct/psnr"])
        assert ("adapter 1" in Path(f"measured{number}/report.html").read_text()) == bool(number)
    assert found[0] != found[1]


DRAW = ("-m", "mentor.generate", "a red circle", "--model")
MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "another model's": ((*DRAW, "other", "--adapter", "merging"), ("was trained on model", "and other is")),
    "an adapter for a model": ((*DRAW, "merging"), ("merging holds an adapter", "--adapter")),
    "a model for an adapter": ((*DRAW, "model", "--adapter", "model"), ("a generator, not an adapter",)),
    "nothing there": ((*DRAW, "model", "--adapter", "nowhere"), ("nowhere is not a release folder",)),
    "no strength": ((*DRAW, "model", "--adapter", "merging=much"), ("no finite number", "merging=0.5")),
    "twice": ((*DRAW, "model", "--adapter", "merging", "--adapter", "merging=2"), ("is named twice",)),
    "half a file": ((*DRAW, "model", "--adapter", "half"), ("cannot read the weights",)),
    "pickled": ((*DRAW, "model", "--adapter", "pickled"), ("cannot read the weights",)),
    "merging what weights cannot": (
        ("tools/merge_adapters.py", "model", "out", "--adapter", "editing"),
        ("editing acts while prompts are read", "--adapter"),
    ),
    "merging over a folder": (
        ("tools/merge_adapters.py", "model", "merging", "--adapter", "merging"),
        ("merging is there already",),
    ),
    "training one that is nothing": ((*TRAIN, "adapter.lora=null"), ("adapter", "lora, edits or both")),
    "a preset that is none": ((*TRAIN, "adapter=lora", "adapter.lora.preset=attention"), ("adapter.lora.preset",)),
    "a layer that is none": ((*TRAIN, "adapter=mrt", "adapter.edits.layers=[4]"), ("layers are 0 to 0",)),
    "no token": ((*TRAIN, "adapter=mrt", "adapter.edits.first=0", "adapter.edits.last=0"), ("no token",)),
    "in stage 1": (("-m", "mentor.train", "stage=1", "experiment=test", "adapter=lora"), ("adapter",)),
    "training on an adapter": ((*TRAIN[:-1], "init_from=merging"), ("merging holds an adapter",)),
    "measuring an image tokenizer": (
        ("-m", "mentor.evaluate", "model=tokenizer", "data=DATA", "output=x", "adapter=merging"),
        ("tokenizer holds an image tokenizer, which has no adapters",),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line_with_nothing_written(
    mistake: str, place: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if not Path("other").exists():
        save_tiny_releases(Path("others"), codes=16)
        Path("others/model").rename("other")
        for name in ("half", "pickled"):
            Path(name).mkdir()
            Path(name, "config.json").write_bytes(Path("merging/config.json").read_bytes())
        Path("half/model.safetensors").write_bytes(Path("merging/model.safetensors").read_bytes()[:-100])
        torch.save({"run": "me"}, "pickled/model.safetensors")
    before = sorted(Path().iterdir())
    arguments, said = MISTAKES[mistake]
    given = [argument.replace("DATA", str(shapes)) for argument in arguments]
    if "mentor.train" in given:
        given += [f"data.root={shapes}", "run.dir=refused"]
    code = run_here(given, monkeypatch)
    check_refusal(code, capsys.readouterr().err, said)
    assert sorted(Path().iterdir()) == before


def test_adapters_are_counted_before_they_are_made(place: Path) -> None:
    backbone = load_generator(place / "model").generator.config.backbone
    for kind in ("all_linear", "prefix lora and edits"):
        name = "merging" if kind == "all_linear" else "editing"
        written = load_file(place / name / "model.safetensors").values()
        assert count_adapter(KINDS[kind], backbone) == sum(tensor.numel() for tensor in written)
