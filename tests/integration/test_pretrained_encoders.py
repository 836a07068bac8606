"""Training over encoders that others trained: they stay as they are, and go where the model goes."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import check_refusal, run_here
from minilm import find_minilm
from PIL import Image
from safetensors.torch import load_file
from tiny import save_tiny_releases, tiny_text_encoder, tiny_vision_encoder

from mentor.models.checkpoint import load_generator
from mentor.types import TextSegment

Command = Callable[..., subprocess.CompletedProcess[str]]
# Settings that the test experiment has for its native conditioner.
BASE = ("stage=1", "experiment=test", "~conditioner.text_vocab_size", "trainer.validate_every=2", "data.workers=0")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the encoders `t5` and `clip`, and an image tokenizer."""
    place = tmp_path_factory.mktemp("encoders")
    tiny_text_encoder().save(place / "t5")
    tiny_vision_encoder().save(place / "clip")
    save_tiny_releases(place / "releases")
    return place


def same(one: Path, other: Path) -> bool:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_frozen_encoders_are_the_same_bits_after_training_and_travel_with_the_release(
    place: Path, shapes: Path, command: Command
) -> None:
    given = (f"data.root={shapes}", "image_tokenizer_from=releases/tokenizer", "run.dir=run")
    encoders = ("conditioner=clip_t5", "conditioner.text_encoder=t5", "conditioner.vision_encoder=clip")
    planned = command("-m", "mentor.train", *BASE, *given, *encoders, "--dry-run", cwd=place)
    assert planned.returncode == 0 and "a run could start" in planned.stdout, planned.stderr
    trained = command("-m", "mentor.train", *BASE, *given, *encoders, "trainer.max_steps=3", cwd=place)
    assert trained.returncode == 0 and "warn" not in trained.stderr.lower(), trained.stderr
    release = place / "run" / "release"
    assert same(place / "t5", release / "text_encoder") and same(place / "clip", release / "vision_encoder")
    frozen = [
        weight for weight in load_generator(release).generator.conditioner.parameters() if not weight.requires_grad
    ]
    assert len(frozen) == len(tiny_text_encoder().model.state_dict()) - 1 + len(
        tiny_vision_encoder().model.state_dict()
    )

    # The next stage and drawing need the release alone.
    for encoder in ("t5", "clip"):
        (place / encoder).rename(place / f"{encoder}.away")
    tuned = command(
        "-m",
        "mentor.train",
        *(
            "stage=2",
            "experiment=test",
            "init_from=run/release",
            f"data.root={shapes}",
            "run.dir=run2",
            "data.workers=0",
        ),
        *("trainer.max_steps=3", "trainer.validate_every=0"),
        cwd=place,
    )
    assert tuned.returncode == 0, tuned.stderr
    assert same(place / "t5.away", place / "run2" / "release" / "text_encoder")
    Image.new("RGB", (50, 50), "red").save(place / "red.png")
    prompt = ("The circle in <image>. a large red circle", "--image", "red.png", "--guidance", "2")
    drawn = command("-m", "mentor.generate", *prompt, "--model", "run2/release", cwd=place)
    assert drawn.returncode == 0, drawn.stderr
    assert Image.open(place / "outputs" / "000000.png").size == (64, 64)
    for encoder in ("t5", "clip"):
        (place / f"{encoder}.away").rename(place / encoder)


@pytest.mark.slow
def test_a_pretrained_encoder_of_words_is_frozen_and_travels_with_the_release(
    place: Path, shapes: Path, command: Command
) -> None:
    minilm = find_minilm()
    given = (f"data.root={shapes}", "image_tokenizer_from=releases/tokenizer", "run.dir=words")
    settings = ("stage=1", "experiment=test", f"conditioner.text_encoder={minilm}", "trainer.validate_every=2", *given)
    planned = command("-m", "mentor.train", *settings, "--dry-run", cwd=place)
    assert planned.returncode == 0 and "a run could start" in planned.stdout, planned.stderr
    trained = command("-m", "mentor.train", *settings, "trainer.max_steps=2", cwd=place)
    assert trained.returncode == 0 and "warn" not in trained.stderr.lower(), trained.stderr
    release = place / "words" / "release"
    kept, own = load_file(release / "text_encoder" / "model.safetensors"), load_file(release / "model.safetensors")
    known = load_file(minilm / "model.safetensors")
    # A number that counts positions was kept as a weight by the library of the time.
    assert known.keys() - kept.keys() <= {"embeddings.position_ids"} and kept.keys() <= known.keys()
    assert all(torch.equal(tensor, known[name]) for name, tensor in kept.items())
    assert not any(name.startswith("conditioner.text.encoder.") for name in own)
    assert own["conditioner.text.project.weight"].shape == (64, 384)
    frozen = json.loads((place / "words" / "summary.json").read_text())["frozen"]
    assert frozen["parameters"] > sum(tensor.numel() for tensor in kept.values())
    assert not (release / "text_tokenizer.json").exists()
    conditioner = load_generator(release).generator.conditioner
    assert conditioner.count((TextSegment("a Scarlet circle"),)) == 4, "a token for each word, and the start"
    drawn = command(
        "-m", "mentor.generate", "a scarlet circle", "--model", "words/release", "--output", "drawn", cwd=place
    )
    assert drawn.returncode == 0, drawn.stderr


def test_clips_text_alone_is_planned_without_network(place: Path, shapes: Path, command: Command) -> None:
    given = (f"data.root={shapes}", "image_tokenizer_from=releases/tokenizer", "run.dir=planned")
    mixture = ("data.mixture.reconstruct=0", "data.mixture.segment=0", "data.warmup_steps=0")
    # Two processes, so that no step is tried out, which needs the weights.
    chosen = ("conditioner=clip_text", "--dry-run", "--world-size", "2")
    planned = command("-m", "mentor.train", *BASE, *given, *mixture, *chosen, cwd=place)
    assert planned.returncode == 0 and "a run could start" in planned.stdout, planned.stderr


@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("conditioner=caption", "conditioner.encoder=t5"), "say data.mixture.reconstruct=0 data.mixture.segment=0"),
        (
            ("conditioner=caption", "conditioner.encoder=none"),
            "no text encoder of transformers can be loaded",
        ),
        (("conditioner=clip_t5", "conditioner.text_encoder=clip"), "no text encoder of transformers"),
        (("conditioner=native", "conditioner.text_encoder=nowhere"), "no text encoder of transformers"),
        (
            (
                "conditioner=clip_t5",
                "conditioner.text_encoder=t5",
                "conditioner.vision_encoder=clip",
                "conditioner.slots=4",
            ),
            "a prompt with a picture does not fit",
        ),
    ],
    ids=[
        "images for a reader of text",
        "no encoder",
        "images for a text encoder",
        "no encoder of words",
        "no room for an image",
    ],
)
def test_encoders_that_do_not_fit_are_refused_before_training(
    place: Path,
    shapes: Path,
    settings: tuple[str, ...],
    said: str,
    dry: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    given = (f"data.root={shapes}", "image_tokenizer_from=releases/tokenizer", "run.dir=refused")
    arguments = ["-m", "mentor.train", *BASE, *given, *settings, *(["--dry-run"] if dry else [])]
    code = run_here(arguments, monkeypatch)
    check_refusal(code, capsys.readouterr().err, (said,))
