"""Release folders of adapters: what is in them, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from adapting import BASE, KINDS, generator, made, release, weights
from safetensors.torch import load_file, save_file
from tiny import save_tiny_releases

from mentor.adapters import AdapterConfig, Base, count_adapter, load_adapter, load_adapters, parse_place, save_adapter
from mentor.errors import UserError
from mentor.models.checkpoint import Card


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read(kind: str, tmp_path: Path) -> None:
    found = made(tmp_path / "adapter", KINDS[kind])
    written = weights(KINDS[kind], generator())
    assert found.config == KINDS[kind] and found.base == BASE
    assert found.weights.keys() == written.keys()
    assert all(torch.equal(found.weights[name], written[name]) for name in written)
    assert found.parameters == count_adapter(KINDS[kind], generator().config.backbone)
    assert {path.name for path in found.folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def load(folder: Path) -> None:
    load_adapter(folder, release(generator()), "there")


def change(folder: Path, **facts: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_an_adapter_of_another_model_is_refused_with_both_names(tmp_path: Path) -> None:
    other = Base("runs/other", "fedcba9876543210")
    save_adapter(tmp_path / "a", KINDS["attn"], weights(KINDS["attn"], generator()), other, 64, Card("test"))
    with pytest.raises(UserError, match=r"trained on runs/other \(fedcba9876543210\), and there is 0123456789abcdef"):
        load(tmp_path / "a")


def test_folders_that_hold_no_adapter_are_refused(tmp_path: Path) -> None:
    releases = save_tiny_releases(tmp_path)
    for name, said in (("model", "a generator, not an adapter"), ("tokenizer", "an image tokenizer, not an adapter")):
        with pytest.raises(UserError, match=said):
            load(releases / name)
    with pytest.raises(UserError, match="not a release folder"):
        load(tmp_path / "nowhere")


def test_damaged_adapters_are_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", KINDS["edits"]).folder
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(UserError, match="cannot read the weights"):
        load(folder)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    file.write_bytes(bytes(flipped))
    with pytest.raises(UserError, match=r"is not what config\.json says it is"):
        load(folder)
    tensors = load_file(made(tmp_path / "a", KINDS["edits"]).folder / "model.safetensors")
    first = sorted(tensors)[0]
    for changed in (
        {name: tensor for name, tensor in tensors.items() if name != first},
        tensors | {"more": torch.zeros(1)},
        tensors | {first: torch.zeros(99)},
    ):
        save_file(changed, file)
        with pytest.raises(UserError, match=r"does not fit its config\.json.*1 in all"):
            load(folder)


@pytest.mark.parametrize("adapter", [None, {}, {"lora": {"preset": "all"}}, {"lora": {"rank": 0}}, {"edits": 3}])
def test_settings_that_describe_no_adapter_are_refused(adapter: object, tmp_path: Path) -> None:
    folder = made(tmp_path / "a", KINDS["attn"]).folder
    change(folder, adapter=adapter)
    with pytest.raises(UserError, match="describes no adapter"):
        load(folder)


def test_places_may_have_a_strength(tmp_path: Path) -> None:
    assert parse_place("runs/a") == ("runs/a", 1.0)
    assert parse_place("runs/a=0.5") == ("runs/a", 0.5)
    assert parse_place("runs/a=-2") == ("runs/a", -2.0)
    assert parse_place(("runs/a", 0.25)) == ("runs/a", 0.25)
    odd = tmp_path / "x=1"
    odd.mkdir()
    assert parse_place(str(odd)) == (str(odd), 1.0)
    assert parse_place(f"{odd}=3") == (str(odd), 3.0)
    for wrong in ("runs/a=much", "runs/a=", "runs/a=nan", "runs/a=inf"):
        with pytest.raises(UserError, match=r"adapter runs/a: its strength is no finite number: write runs/a=0\.5"):
            parse_place(wrong)


def test_an_adapter_is_named_once(tmp_path: Path) -> None:
    one = made(tmp_path / "a", KINDS["attn"]).folder
    other = made(tmp_path / "b", KINDS["attn"], seed=1).folder
    assert [each.strength for each in load_adapters([one, f"{other}=2"], release(generator()), "m")] == [1, 2]
    with pytest.raises(UserError, match="is named twice"):
        load_adapters([one, f"{one}=2"], release(generator()), "m")


def test_an_adapter_has_some_part() -> None:
    with pytest.raises(ValueError, match="lora, edits or both"):
        AdapterConfig()
