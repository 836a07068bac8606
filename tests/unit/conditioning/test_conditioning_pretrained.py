"""Conditioners over pretrained encoders: what they keep, what depends on what, and how much an encoder can read."""

from pathlib import Path

import pytest
import torch
from conditions import SPEC, encode
from tiny import tiny_clip_text_encoder, tiny_text_encoder, tiny_vision_encoder
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from mentor.conditioning import (
    CaptionConfig,
    Condition,
    FusedConditioner,
    FusedConfig,
    NativeConditioner,
    NativeConfig,
    PretrainedPair,
    PretrainedText,
    build_conditioner,
    encode_condition,
    load_pretrained_text,
    words,
)
from mentor.conditioning.qformer import QFormerConfig
from mentor.conditioning.words import PretrainedWords
from mentor.errors import UserError
from mentor.types import TextSegment, parse_prompt

SHAPE = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
QFORMER = QFormerConfig(tokens=3, layers=3, heads=2, width=12)


def picture(value: float = 0.5) -> torch.Tensor:
    return torch.full((3, 28, 28), value) + torch.linspace(-0.3, 0.3, 28 * 28).view(28, 28)


@pytest.fixture
def fused() -> FusedConditioner:
    pair = PretrainedPair(tiny_text_encoder(), tiny_vision_encoder())
    torch.manual_seed(0)
    conditioner = build_conditioner(FusedConfig(slots=24, projector=QFORMER), pair, SPEC, 8).eval()
    assert isinstance(conditioner, FusedConditioner)
    # What is about to be told apart should not be too quiet for it.
    for module in conditioner.projector.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return conditioner


@pytest.fixture
def native() -> NativeConditioner:
    torch.manual_seed(0)
    config = NativeConfig(max_prefix=32, text_encoder="given")
    conditioner = build_conditioner(config, tiny_text_encoder(), SPEC, 8).eval()
    assert isinstance(conditioner, NativeConditioner)
    return conditioner


def projected(conditioner: FusedConditioner, *prompts: str, image: torch.Tensor | None = None) -> list[torch.Tensor]:
    shown = picture() if image is None else image
    tokens = conditioner._project([parse_prompt(prompt, [shown] * prompt.count("<image>")) for prompt in prompts])
    return list(tokens.values())


def test_tokens_of_the_q_former_depend_on_the_text_beside_the_image(fused: FusedConditioner) -> None:
    red, blue = projected(fused, "a red <image>", "a blue <image>")
    assert red.shape == (3, 24)
    assert (red - blue).abs().max() > 1e-3
    (again,) = projected(fused, "a red <image>")
    assert torch.allclose(red, again, atol=1e-6)
    # Where in the text the image stands is for the text encoder to tell.
    (moved,) = projected(fused, "a <image> red")
    assert torch.allclose(red, moved, atol=1e-6)
    (other,) = projected(fused, "a red <image>", image=picture(-0.5))
    assert (red - other).abs().max() > 1e-3


def test_a_text_is_not_read_with_the_padding_that_longer_ones_bring(fused: FusedConditioner) -> None:
    short, _ = projected(fused, "red <image>", "a large red circle at the left on stripes <image>")
    assert torch.allclose(short, projected(fused, "red <image>")[0], atol=1e-6)


def test_an_image_is_encoded_once_and_made_into_tokens_once_for_each_text(
    fused: FusedConditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, made = [], []
    read, project = type(fused.pair.vision).encode, fused.projector.read
    monkeypatch.setattr(
        type(fused.pair.vision),
        "encode",
        lambda self, images, layer: encoded.append(len(images)) or read(self, images, layer),
    )
    monkeypatch.setattr(
        fused.projector, "read", lambda patches, texts: made.append(len(patches)) or project(patches, texts)
    )
    shown = picture()
    prompts = [parse_prompt(text, [shown] * text.count("<image>")) for text in ("a red <image>", "a blue <image>")]
    fused(Condition([*prompts, prompts[0], parse_prompt("<image> a red <image>", [shown, shown])], None))
    assert encoded == [1] and made == [2]


def test_pretrained_words_are_read_each_segment_on_its_own_without_beginning_and_end(native: NativeConditioner) -> None:
    text = native.text
    assert isinstance(text, PretrainedWords)
    whole = text.text.encode(["a red circle", "at the left"])
    prompt = (TextSegment("a red circle"), TextSegment("at the left"))
    prefix = native(Condition([prompt], None))
    expected = text.project(text.norm(torch.cat([vectors[:-1] for vectors in whole])))
    found = prefix.embeddings[0, :-1] - native.places.weight[: len(expected)]
    assert torch.allclose(found, expected, atol=1e-6)
    assert [(span.kind, span.start, span.end) for span in prefix.spans[0]] == [
        ("text", 0, 3),
        ("text", 3, 6),
        ("start", 6, 7),
    ]


def test_pretrained_words_are_as_loud_as_learned_ones() -> None:
    torch.manual_seed(0)
    text = PretrainedWords(tiny_text_encoder(), 256, std=0.5)
    assert 0.4 < text(["a large red circle at the left on stripes"]).std() < 0.6


def test_a_prompt_of_no_tokens_is_the_start_alone(native: NativeConditioner) -> None:
    prompt = (TextSegment("  "),)
    assert native(Condition([prompt], None)).embeddings.shape[1] == native.count(prompt) == 1


def count_reads(text: PretrainedText, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = type(text).encode

    def encode(self: PretrainedText, texts) -> list[torch.Tensor]:
        read.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(type(text), "encode", encode)
    return read


def test_what_was_read_is_kept_until_the_encoder_changes(
    native: NativeConditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_reads(native.text.text, monkeypatch)
    prompts = [parse_prompt("a red <image> circle", [picture()]), parse_prompt("a red ", [])]
    with torch.inference_mode():
        native(encode_condition(prompts, encode))
    assert sorted(read) == [" circle", "a red "]
    # What was first read in inference mode can be trained with.
    native.train()(encode_condition(prompts, encode)).embeddings.sum().backward()
    assert len(read) == 2 and native.text.project.weight.grad is not None
    before = native(Condition([(TextSegment("blue"),)], None)).embeddings
    weights = {name: tensor + 0.5 for name, tensor in native.state_dict().items() if name.startswith("text.encoder.")}
    native.load_state_dict(weights, strict=False)
    assert not torch.equal(native(Condition([(TextSegment("blue"),)], None)).embeddings, before)
    read.clear()
    native.to(torch.device("cpu"))
    native(Condition([(TextSegment("blue"),)], None))
    assert read == ["blue"]


def test_no_more_is_kept_than_there_is_room_for(native: NativeConditioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_KEPT", 24 * 3)
    read = count_reads(native.text.text, monkeypatch)
    for text in ("red circle", "red", "blue square", "red", "red circle", "red"):
        native(Condition([(TextSegment(text),)], None))
    # Of two and one and two words only three fit; the one that was used last stays.
    assert read == ["red circle", "red", "blue square", "red circle"]


def test_the_encoder_computes_in_its_own_precision_and_never_drops_anything(native: NativeConditioner) -> None:
    text = native.text
    plain = text._read(["a red circle"])["a red circle"]
    text.forget()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(text._read(["a red circle"])["a red circle"], plain)
    assert not native.train().text.encoder.training


@pytest.mark.parametrize(
    ("text", "most"),
    [
        (lambda: tiny_clip_text_encoder(9), 9),
        (lambda: PretrainedText(BertModel(BertConfig(**SHAPE, max_position_embeddings=9)), None), 9),
        (lambda: PretrainedText(RobertaModel(RobertaConfig(**SHAPE, max_position_embeddings=9)), None), 7),
        (tiny_text_encoder, None),
    ],
    ids=["clip", "bert", "roberta", "t5"],
)
def test_an_encoder_reads_as_many_tokens_as_it_has_positions(text, most: int | None) -> None:
    made = text()
    made = PretrainedText(made.model.eval(), tiny_text_encoder().tokenizer)
    assert made.positions == most
    fits = 9 if most is None else most
    assert len(made.encode(["red " * (fits - 1)])[0]) == fits
    if most is not None:
        with pytest.raises(
            UserError, match=rf"takes {fits + 1} tokens and its encoder has room for {fits}: shorten it"
        ):
            made.encode(["red " * fits])


@pytest.mark.parametrize(
    "config", [CaptionConfig(slots=99), NativeConfig(max_prefix=99, text_encoder="clip")], ids=["caption", "native"]
)
def test_longer_texts_are_refused_by_every_conditioner_that_reads_with_such_an_encoder(config) -> None:
    long = (TextSegment("red " * 40),)
    conditioner = build_conditioner(config, tiny_clip_text_encoder(9), SPEC, 8)
    for call in (conditioner.count, lambda prompt: conditioner(Condition([prompt], None))):
        with pytest.raises(UserError, match="its encoder has room for 9"):
            call(long)


def test_a_plan_for_clips_text_needs_no_network() -> None:
    text = load_pretrained_text("openai/clip-vit-large-patch14", blank=True)
    assert (text.width, text.positions) == (768, 77)
    assert {parameter.device.type for parameter in text.model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in text.model.parameters()) == 123_060_480
    with pytest.raises(UserError, match="no text encoder"):
        load_pretrained_text("google/siglip-so400m-patch14-224", blank=True)


def test_settings_before_there_were_encoders_of_words_still_mean_the_same(tmp_path: Path) -> None:
    config = NativeConfig.model_validate({"kind": "native", "text_vocab_size": 300})
    assert config.text_encoder == "" and config == NativeConfig(text_vocab_size=300)
