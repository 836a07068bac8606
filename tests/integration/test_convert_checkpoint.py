"""tools/convert_checkpoint.py: there and back, what it reports, and what it refuses without writing anything."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import check_refusal, run_here
from goldenvectors import read_golden
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import save_tiny_releases, tiny_text_encoder, tiny_vision_encoder

from mentor.conditioning import FusedConditioner, PretrainedText, PretrainedVision
from mentor.conversion.image_tokenizers import convert_llamagen_vq
from mentor.models.checkpoint import Card, load_generator, load_image_tokenizer, read_config, save_image_tokenizer

TOOL = "tools/convert_checkpoint.py"
VQ = ("llamagen_vq", "vq.pt", "release")
GPT = ("llamagen_gpt", "gpt.pt", "release", "--image-tokenizer", "vq")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a checkpoint as LlamaGen writes it."""
    weights = read_golden("llamagen_vq_small").weights | {"quantize.codebook_used": torch.zeros(65536)}
    torch.save({"ema": weights, "model": {name: 0 * tensor for name, tensor in weights.items()}}, tmp_path / "vq.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_here([TOOL, *arguments], monkeypatch)


def test_a_release_and_the_very_bits_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = read_golden("llamagen_vq_small")
    assert convert(monkeypatch, "llamagen_vq", "vq.pt", "release", "--image-size", "64") == 0
    told = capsys.readouterr().out
    assert f"{len(golden.weights)}" in told and "1,960,619" in told
    assert "left out 1, a log of the codes that were used in training (quantize.codebook_used)" in told
    assert torch.equal(load_image_tokenizer(place / "release").encode(golden.given["images"]).ids, golden.made["ids"])
    for name in ("back.pt", "back.safetensors"):
        assert convert(monkeypatch, "llamagen_vq", "release", name, "--to", "llamagen") == 0
    backs = [torch.load(place / "back.pt", weights_only=True)["model"], load_file(place / "back.safetensors")]
    for back in backs:
        assert back.keys() == golden.weights.keys()
        for name, tensor in back.items():
            assert tensor.dtype == golden.weights[name].dtype and torch.equal(tensor, golden.weights[name])


def test_a_generator_is_converted_drawn_with_and_given_back(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = read_golden("llamagen_gpt_c2i_small")
    torch.save({"model": golden.weights, "steps": 3}, place / "gpt.pt")
    assert convert(monkeypatch, "llamagen_vq", "vq.pt", "vq", "--image-size", "128") == 0
    assert convert(monkeypatch, *GPT, "--heads", "2") == 0
    assert "release: 25 tensors, 193,664 parameters" in capsys.readouterr().out
    draw = ["-m", "mentor.generate", "--model", "release", "--output", "out", "--num-images", "2"]
    assert run_here([*draw, "7"], monkeypatch) == 0
    capsys.readouterr()
    assert Image.open(place / "out" / "000001.png").size == (128, 128)
    check_refusal(run_here([*draw, "a cat"], monkeypatch), capsys.readouterr().err, ("'a cat'", "number from 0 to 9"))
    assert convert(monkeypatch, "llamagen_gpt", "release", "back.pt", "--to", "llamagen") == 0
    back = torch.load(place / "back.pt", weights_only=True)["model"]
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[name], golden.weights[name]) for name in back)
    assert convert(monkeypatch, "llamagen_vq", "release", "vq_back.safetensors", "--to", "llamagen") == 0
    back = load_file(place / "vq_back.safetensors")
    assert all(
        torch.equal(back[name], tensor.float()) for name, tensor in read_golden("llamagen_vq_small").weights.items()
    )


def test_a_generator_of_captions_takes_its_text_encoder_along(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = read_golden("llamagen_gpt_t2i_small")
    a_generator(place)
    torch.save({"model": golden.weights}, place / "gpt.pt")
    tiny_text_encoder(width=24).save(place / "t5")
    assert convert(monkeypatch, *GPT, "--heads", "2", "--text-encoder", "t5") == 0
    shutil.rmtree(place / "t5")
    draw = ["-m", "mentor.generate", "--model", "release", "--output", "out", "--guidance", "3"]
    capsys.readouterr()
    assert run_here([*draw, "a large red circle at the left"], monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "out/000000.png"
    assert not any("encoder." in name for name in load_file(place / "release" / "model.safetensors"))
    Image.new("RGB", (9, 9)).save(place / "x.png")
    refused = run_here([*draw, "a <image>", "--image", "x.png"], monkeypatch)
    check_refusal(refused, capsys.readouterr().err, ("reads text alone",))
    assert convert(monkeypatch, "llamagen_gpt", "release", "back.safetensors", "--to", "llamagen") == 0
    back = load_file(place / "back.safetensors")
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[name], golden.weights[name]) for name in back)


def test_mentors_checkpoint_brings_its_encoders_and_goes_back_to_the_very_bits(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_generator(place)
    text, vision = tiny_text_encoder(width=24), tiny_vision_encoder()
    text.save(place / "t5")
    vision.save(place / "clip")
    golden = read_golden("repaired_gpt_t2i_small")
    weights = mentor_checkpoint(golden.weights, text, vision)
    torch.save({"model": weights, "epoch": 1}, place / "gpt.pt")
    arguments = ("mentor", *GPT[1:], "--heads", "2", "--text-encoder", "t5", "--vision-encoder", "clip")
    assert convert(monkeypatch, *arguments) == 0
    told = capsys.readouterr().out
    assert "text_encoder: 0 of its length away from the one given beside" in told
    assert "vision_encoder: 0.5 of its length away from the one given beside" in told
    assert "left out 1, numbers from 0 on" in told
    release = load_generator(place / "release")
    conditioner = release.generator.conditioner
    assert isinstance(conditioner, FusedConditioner)
    trained = vision.model.state_dict()["pre_layrnorm.weight"] * 1.5
    assert torch.equal(conditioner.vision_encoder.state_dict()["pre_layrnorm.weight"], trained)
    Image.new("RGB", (40, 40), "red").save(place / "x.png")
    draw = ["-m", "mentor.generate", "--model", "release", "--output", "out", "--guidance", "3", "--image", "x.png"]
    assert run_here([*draw, "The circle in <image>.\n a large red circle at the left"], monkeypatch) == 0
    capsys.readouterr()
    check_refusal(run_here([*draw, "<image> " + "red " * 120], monkeypatch), capsys.readouterr().err, ("room for 120",))
    assert convert(monkeypatch, "mentor", "release", "back.pt", "--to", "llamagen") == 0
    back = torch.load(place / "back.pt", weights_only=True)["model"]
    assert back.keys() | {POSITIONS} == weights.keys()
    for name, tensor in weights.items():
        assert name == POSITIONS or (tensor.dtype == back[name].dtype and torch.equal(tensor, back[name])), name


def test_mentors_decoder_alone_reads_captions(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_generator(place)
    torch.save(read_golden("repaired_gpt_t2i_small").weights, place / "gpt.pt")
    assert convert(monkeypatch, "mentor", *GPT[1:], "--heads", "2", "--text-encoder", "t5") == 0
    settings = load_generator(place / "release").generator.config
    assert settings.conditioner.kind == "caption" and not settings.backbone.legacy_prefix


def test_the_part_that_is_named_is_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert convert(monkeypatch, "llamagen_vq", "vq.pt", "release", "--part", "model") == 0
    assert not load_file(place / "release" / "model.safetensors")["encoder.conv_in.weight"].any()
    assert read_config(place / "release")["training"]["converted_from"]["kind"] == "llamagen_vq"


def nothing(place: Path) -> None:
    """No further damage."""


def half(place: Path) -> None:
    whole = (place / "vq.pt").read_bytes()
    (place / "vq.pt").write_bytes(whole[: len(whole) // 2])


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(place: Path) -> None:
        weights = read_golden("llamagen_vq_small").weights
        change(weights)
        torch.save(weights, place / "vq.pt")

    return damage


def another_kind(place: Path) -> None:
    torch.save(read_golden("llamagen_gpt_c2i_small").weights, place / "vq.pt")


POSITIONS = "multimodal_encoder.vision_model.vision_tower.vision_model.embeddings.position_ids"


def mentor_checkpoint(
    decoder: dict[str, torch.Tensor], text: PretrainedText, vision: PretrainedVision
) -> dict[str, torch.Tensor]:
    """As MENTOR's stages write it: encoders under the names of an older transformers, the image encoder's changed."""
    t5 = text.model.state_dict()
    clip = {name: 1.5 * value for name, value in vision.model.state_dict().items()}
    weights = decoder | {f"multimodal_encoder.language_model.{name}": value for name, value in t5.items()}
    weights |= {f"{POSITIONS.removesuffix('embeddings.position_ids')}{name}": value for name, value in clip.items()}
    weights[POSITIONS] = torch.arange(5).unsqueeze(0)
    for layer, shape in ((0, (24, 20)), (2, (24, 24))):
        weights[f"multimodal_encoder.language_projection.{layer}.weight"] = torch.randn(shape).bfloat16()
        weights[f"multimodal_encoder.language_projection.{layer}.bias"] = torch.randn(shape[0])
    return weights


def mentors(*dropped: str) -> Callable[[Path], None]:
    """A checkpoint of MENTOR without the tensors that begin so."""

    def damage(place: Path) -> None:
        a_generator(place)
        text, vision = tiny_text_encoder(width=24), tiny_vision_encoder()
        vision.save(place / "clip")
        weights = mentor_checkpoint(read_golden("repaired_gpt_t2i_small").weights, text, vision)
        kept = {name: value for name, value in weights.items() if not name.startswith(dropped)}
        torch.save(kept, place / "gpt.pt")

    return damage


MENTOR = ("mentor", *GPT[1:], "--heads", "2", "--text-encoder", "t5")


def a_generator(place: Path) -> None:
    torch.save(read_golden("llamagen_gpt_c2i_small").weights, place / "gpt.pt")
    tiny_text_encoder(width=24).save(place / "t5")
    tokenizer, _ = convert_llamagen_vq(read_golden("llamagen_vq_small").weights, "golden")
    save_image_tokenizer(place / "vq", tokenizer, 128, Card("vq"))


def captions(place: Path) -> None:
    a_generator(place)
    torch.save(read_golden("llamagen_gpt_t2i_small").weights, place / "gpt.pt")
    tiny_text_encoder(width=16).save(place / "t5")


def another_vocabulary(place: Path) -> None:
    a_generator(place)
    weights = read_golden("llamagen_gpt_c2i_small").weights
    for name in ("tok_embeddings.weight", "output.weight"):
        weights[name] = weights[name][1:]
    torch.save(weights, place / "gpt.pt")


def a_tokenizer(place: Path) -> None:
    a_generator(place)
    torch.save(read_golden("llamagen_vq_small").weights, place / "gpt.pt")


def in_the_way(place: Path) -> None:
    (place / "release").mkdir()


def no_tokenizer_of_llamagen(place: Path) -> None:
    save_tiny_releases(place / "releases")


MISTAKES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "unknown kind": (nothing, ("llamagen", *VQ[1:]), ("llamagen", "llamagen_vq", "taming_vqgan")),
    "missing file": (nothing, ("llamagen_vq", "none.pt", "release"), ("none.pt is not there",)),
    "half a download": (half, VQ, ("vq.pt is damaged, cut off",)),
    "another kind": (another_kind, VQ, ("vq.pt holds no image tokenizer of this kind", "encoder.conv_in.weight")),
    "taming's names expected": (nothing, ("taming_vqgan", *VQ[1:]), ("vq.pt does not fit", "codebook_used")),
    "a missing tensor": (
        changed(lambda weights: weights.pop("decoder.norm_out.bias")),
        VQ,
        ("1 missing (decoder.norm_out.bias)",),
    ),
    "a tensor too many": (
        changed(lambda weights: weights.update({"encoder.more": torch.zeros(1)})),
        VQ,
        ("1 unknown (encoder.more)",),
    ),
    "another shape": (
        changed(lambda weights: weights.update({"quant_conv.bias": torch.zeros(9)})),
        VQ,
        ("1 of another shape (quant_conv.bias (9,) against (8,))",),
    ),
    "no such part": (nothing, (*VQ, "--part", "best"), ("vq.pt holds no weights", "best", "ema")),
    "a size that does not fit": (nothing, (*VQ, "--image-size", "100"), ("image_size 100", "factor 16")),
    "a release in the way": (in_the_way, VQ, ("release is there already",)),
    "a generator without image tokenizer": (nothing, ("llamagen_gpt", *VQ[1:]), ("--image-tokenizer DIR",)),
    "a generator of the wrong heads": (a_generator, (*GPT, "--heads", "3"), ("width 64", "3 heads", "--heads")),
    "a generator of no published size": (a_generator, GPT, ("width 64", "no shape tells", "--heads")),
    "a generator of another image tokenizer": (
        another_vocabulary,
        (*GPT, "--heads", "2"),
        ("gpt.pt draws 255 codes", "has 256"),
    ),
    "a text encoder for classes": (
        a_generator,
        (*GPT, "--heads", "2", "--text-encoder", "t5"),
        ("gpt.pt has no use for an encoder", "leave --text-encoder out"),
    ),
    "captions without their encoder": (
        captions,
        (*GPT, "--heads", "2"),
        ("gpt.pt needs the encoder", "--text-encoder"),
    ),
    "captions and the wrong encoder": (
        captions,
        (*GPT, "--heads", "2", "--text-encoder", "t5"),
        ("width 24", "encoder gives 16"),
    ),
    "a text encoder that is not there": (
        captions,
        (*GPT, "--heads", "2", "--text-encoder", "./none"),
        ("no text encoder of transformers can be loaded from ./none",),
    ),
    "MENTOR without its image encoder": (mentors(), MENTOR, ("gpt.pt needs the encoder", "--vision-encoder")),
    "MENTOR's file without an encoder": (
        mentors("multimodal_encoder.vision_model"),
        (*MENTOR, "--vision-encoder", "clip"),
        ("gpt.pt has 0 tensors", "vision_encoder"),
    ),
    "half of MENTOR's projector": (
        mentors("multimodal_encoder.language_projection.2"),
        (*MENTOR, "--vision-encoder", "clip"),
        ("2 missing (multimodal_encoder.language_projection.2.bias",),
    ),
    "another image encoder than MENTOR's": (
        mentors(),
        (*MENTOR, "--vision-encoder", "t5"),
        ("no image encoder", "t5"),
    ),
    "an image tokenizer as a generator": (a_tokenizer, GPT, ("gpt.pt holds no generator of this kind", "tok_embed")),
    "back from a generator of ours": (
        no_tokenizer_of_llamagen,
        ("llamagen_gpt", "releases/model", "b.pt", "--to", "llamagen"),
        ("releases/model has conditioner.kind=native", "class_label, caption"),
    ),
    "back from no release": (nothing, ("llamagen_vq", "vq", "b.pt", "--to", "llamagen"), ("vq is not a release",)),
    "back to another file type": (
        nothing,
        ("llamagen_vq", "x", "b.bin", "--to", "llamagen"),
        ("b.bin", ".safetensors"),
    ),
    "back from a tokenizer of ours": (
        no_tokenizer_of_llamagen,
        ("llamagen_vq", "releases/tokenizer", "b.pt", "--to", "llamagen"),
        ("releases/tokenizer has parts that LlamaGen's image tokenizers have not",),
    ),
    "back to taming": (nothing, ("taming_vqgan", "x", "b.pt", "--to", "llamagen"), ("one way alone",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line_and_nothing_is_written(
    mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, arguments, said = MISTAKES[mistake]
    damage(place)
    before = sorted(place.rglob("*"))
    check_refusal(convert(monkeypatch, *arguments), capsys.readouterr().err, said)
    assert sorted(place.rglob("*")) == before


def test_a_safetensors_file_is_taken_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(read_golden("llamagen_vq_small").weights, place / "vq.safetensors")
    assert convert(monkeypatch, "llamagen_vq", "vq.safetensors", "release") == 0
