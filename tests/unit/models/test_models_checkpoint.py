"""Release folders: the round trip, and clear refusals of what is no release."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_generator, tiny_image_tokenizer

from mentor.errors import UserError
from mentor.models import Generator
from mentor.models.checkpoint import (
    Card,
    code_spec,
    load_generator,
    load_image_tokenizer,
    save_generator,
    save_image_tokenizer,
)
from mentor.tokenizers import ImageTokenizer


@pytest.fixture
def parts() -> tuple[Generator, ImageTokenizer]:
    tokenizer = tiny_image_tokenizer(stem=2, codes=16, width=4)
    return tiny_generator(tokenizer, 16, max_prefix=32).eval(), tokenizer


def save(folder: Path, parts: tuple[Generator, ImageTokenizer]) -> Path:
    card = Card("a | test", {"steps": 3}, {"psnr": 21.5}, {"recipe": "shapes"}, Image.new("RGB", (8, 8)))
    save_generator(folder, *parts, 16, card)
    return folder


def test_round_trip_keeps_every_weight_and_word(tmp_path: Path, parts: tuple[Generator, ImageTokenizer]) -> None:
    release = load_generator(save(tmp_path / "release", parts))
    for before, after in zip(parts, (release.generator, release.image_tokenizer), strict=True):
        states = before.state_dict(), after.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert release.generator.config == parts[0].config
    words = release.generator.conditioner.text_tokenizer
    assert words.encode("a red circle") == parts[0].conditioner.text_tokenizer.encode("a red circle")
    assert not release.generator.training and release.image_size == 16


def test_folder_holds_plain_files_only(tmp_path: Path, parts: tuple[Generator, ImageTokenizer]) -> None:
    folder = save(tmp_path / "release", parts)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    inner = ["image_tokenizer/README.md", "image_tokenizer/config.json", "image_tokenizer/model.safetensors"]
    assert names == sorted(
        ["README.md", "config.json", "model.safetensors", "samples.png", "text_tokenizer.json", *inner]
    )
    assert list(tmp_path.iterdir()) == [folder], "nothing temporary is left"
    card = (folder / "README.md").read_text()
    assert "a | test" in card and "| psnr | 21.5 |" in card and "samples.png" in card


def test_whoever_may_read_a_new_file_may_read_the_folder(
    tmp_path: Path, parts: tuple[Generator, ImageTokenizer]
) -> None:
    folder = save(tmp_path / "release", parts)
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_a_failed_save_leaves_the_old_release(
    tmp_path: Path, parts: tuple[Generator, ImageTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "release", parts)
    before = (folder / "model.safetensors").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("mentor.models.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(folder, parts)
    assert (folder / "model.safetensors").read_bytes() == before
    assert list(tmp_path.iterdir()) == [folder]


def test_image_tokenizer_loads_from_its_own_and_from_a_generators_release(
    tmp_path: Path, parts: tuple[Generator, ImageTokenizer]
) -> None:
    save_image_tokenizer(tmp_path / "tokenizer", parts[1], 16, Card("tokenizer"))
    own, inner = load_image_tokenizer(tmp_path / "tokenizer"), load_image_tokenizer(save(tmp_path / "r", parts))
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(own.encode(picture).ids, inner.encode(picture).ids)


def test_what_is_no_release_is_refused(tmp_path: Path, parts: tuple[Generator, ImageTokenizer]) -> None:
    with pytest.raises(UserError, match="not a release folder"):
        load_generator(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_generator(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="does not describe a mentor model"):
        load_generator(tmp_path)
    save_image_tokenizer(tmp_path / "tokenizer", parts[1], 16, Card("tokenizer"))
    with pytest.raises(UserError, match="holds an image tokenizer, not a generator"):
        load_generator(tmp_path / "tokenizer")


def test_damage_is_named(tmp_path: Path, parts: tuple[Generator, ImageTokenizer]) -> None:
    folder = save(tmp_path / "release", parts)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot read the weights"):
        load_generator(folder)
    weights.write_bytes((folder / "image_tokenizer" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"does not fit the model: missing .* unknown"):
        load_generator(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        load_generator(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "text_tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a text tokenizer"):
        load_generator(folder)


def test_a_size_that_does_not_divide_is_refused(parts: tuple[Generator, ImageTokenizer]) -> None:
    with pytest.raises(UserError, match="image_size 18 is no multiple of the image tokenizer's factor 4: take 16"):
        code_spec(parts[1], 18)
