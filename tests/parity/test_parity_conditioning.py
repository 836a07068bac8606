"""Conditioners over pretrained encoders against the same steps written out with transformers' own parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from minilm import find_minilm
from PIL import Image
from tiny import tiny_clip_text_encoder, tiny_text_encoder, tiny_vision_encoder
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipTextConfig,
    SiglipTextModel,
)

from mentor.conditioning import (
    CaptionConfig,
    Condition,
    FusedConfig,
    NativeConfig,
    PretrainedPair,
    PretrainedText,
    build_conditioner,
    load_pretrained_text,
)
from mentor.conditioning.fused import FusedConditioner
from mentor.types import CodeSpec, ImageSegment, TextSegment

SPEC = CodeSpec(grid=(2, 2), vocab_size=16, code_width=4, feature_width=5)
NUMBERS = np.random.default_rng(0)


def picture(side: int) -> tuple[Image.Image, torch.Tensor]:
    """A picture, and the same as pixels in [-1, 1]."""
    whole = NUMBERS.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(whole), torch.from_numpy(whole.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)


@pytest.mark.parametrize("side", [28, 64])
def test_pixels_reach_clip_as_its_own_processor_prepares_them(side: int) -> None:
    vision = tiny_vision_encoder()
    shown, pixels = picture(side)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_mean=vision.mean, image_std=vision.std
    )
    prepared = processor(shown, return_tensors="pt")["pixel_values"]
    # Where the picture is made smaller, the processor rounds to whole numbers after each of its two directions.
    tolerance = 1e-5 if side == 28 else 1.5 / 255 / min(vision.std)
    assert (vision.prepare(pixels.unsqueeze(0)) - prepared).abs().max() < tolerance


def test_mentors_own_steps_give_the_same_prefix() -> None:
    """MENTOR repeats the mark for every patch, puts features over the marks, and moves what T5 gives to the right."""
    pair = PretrainedPair(tiny_text_encoder(), tiny_vision_encoder())
    torch.manual_seed(0)
    conditioner = build_conditioner(FusedConfig(slots=20), pair, SPEC, 12).eval()
    assert isinstance(conditioner, FusedConditioner)
    (shown, pixels), (other, others) = picture(28), picture(28)
    prompt = (TextSegment("a large "), ImageSegment(pixels), TextSegment("\n a red circle "), ImageSegment(others))
    short = (TextSegment("a blue square"),)
    prefix = conditioner(Condition([prompt, short], None))

    tokenizer, t5 = pair.text.tokenizer, pair.text.model
    mark = tokenizer.convert_tokens_to_ids("<image>")
    strings = ["a large " + "<image>" * 4 + "\n a red circle " + "<image>" * 4, "a blue square"]
    batch = tokenizer(strings, padding="max_length", max_length=20, padding_side="right", return_tensors="pt")
    processor = CLIPImageProcessor(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_mean=pair.vision.mean,
        image_std=pair.vision.std,
    )
    with torch.no_grad():
        seen = pair.vision.model(
            **processor([shown, other], return_tensors="pt"), output_hidden_states=True
        ).hidden_states[-2]
        projected = conditioner.projector(seen[:, 1:])
        vectors = t5.get_input_embeddings()(batch["input_ids"].clamp(max=t5.config.vocab_size - 1))
        vectors[batch["input_ids"] == mark] = projected.flatten(0, 1)
        read = t5(inputs_embeds=vectors, attention_mask=batch["attention_mask"]).last_hidden_state
        for row in range(2):
            valid = read[row, batch["attention_mask"][row].bool()]
            weights = (conditioner.project_in.weight, conditioner.project_out.weight)
            expected = F.gelu(valid @ weights[0].T, approximate="tanh") @ weights[1].T
            assert int(prefix.mask[row].sum()) == len(expected)
            assert (prefix.embeddings[row, -len(expected) :] - expected).abs().max() < 1e-4
    assert [span.kind for span in prefix.spans[0]] == ["text", "image", "text", "image", "text"]
    assert prefix.spans[0][1].grid == (2, 2)


SHAPE = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "make",
    [
        lambda words: CLIPTextModel(CLIPTextConfig(**SHAPE, vocab_size=words, eos_token_id=1, bos_token_id=0)),
        lambda words: SiglipTextModel(SiglipTextConfig(**SHAPE, vocab_size=words)),
        lambda words: tiny_text_encoder().model,
    ],
    ids=["clip", "siglip", "t5"],
)
def test_captions_have_the_vectors_that_transformers_gives_for_padded_batches(make) -> None:
    tokenizer = tiny_text_encoder().tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    torch.manual_seed(0)
    text = PretrainedText(make(len(tokenizer)).eval(), tokenizer)
    conditioner = build_conditioner(CaptionConfig(slots=12), text, SPEC, 12).eval()
    captions = ["a large red circle", "a blue square at the left on stripes"]
    prefix = conditioner(Condition([(TextSegment(caption),) for caption in captions], None))
    batch = tokenizer(captions, padding=True, padding_side="right", return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        hidden = text.model(**batch).last_hidden_state
        for row in range(2):
            valid = hidden[row, batch["attention_mask"][row].bool()]
            inner = F.gelu(valid @ conditioner.project_in.weight.T, approximate="tanh")
            expected = inner @ conditioner.project_out.weight.T
            assert (prefix.embeddings[row, -len(expected) :] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("whole", [False, True], ids=["text model", "whole CLIP"])
def test_clips_text_part_is_taken_of_whatever_was_saved(whole: bool, tmp_path: Path) -> None:
    text = tiny_clip_text_encoder()
    model = text.model
    if whole:
        shape = {"hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision = shape | {"image_size": 28, "patch_size": 14}
        clip = CLIPModel(CLIPConfig(text_config=text.model.config.to_dict(), vision_config=vision)).eval()
        clip.text_model.load_state_dict(
            {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
        )
        model = clip
    model.save_pretrained(tmp_path)
    text.tokenizer.save_pretrained(tmp_path)
    conditioner = build_conditioner(CaptionConfig(slots=77), load_pretrained_text(tmp_path), SPEC, 12).eval()
    caption = "a large red circle at the left"
    prefix = conditioner(Condition([(TextSegment(caption),)], None))
    ids = text.tokenizer(caption, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = (model.text_model if whole else model)(input_ids=ids).last_hidden_state[0]
        expected = (
            F.gelu(hidden @ conditioner.project_in.weight.T, approximate="tanh") @ conditioner.project_out.weight.T
        )
    assert (prefix.embeddings[0] - expected).abs().max() < 1e-5
    blank = load_pretrained_text(tmp_path, blank=True).model.state_dict()
    assert {name: tensor.shape for name, tensor in blank.items()} == {
        name: tensor.shape for name, tensor in conditioner.encoder.state_dict().items()
    }


def test_siglips_patches_are_those_of_transformers() -> None:
    vision = tiny_vision_encoder("siglip")
    shown, pixels = picture(28)
    processor = SiglipImageProcessor(size={"height": 28, "width": 28}, image_mean=vision.mean, image_std=vision.std)
    with torch.no_grad():
        output = vision.model(**processor(shown, return_tensors="pt"), output_hidden_states=True)
    patches = vision.encode(pixels.unsqueeze(0), -2)
    assert patches.shape == (1, 4, 20)
    assert (patches - output.hidden_states[-2]).abs().max() < 1e-4


@torch.no_grad()
def test_minilms_words_have_the_vectors_that_transformers_gives_for_padded_batches() -> None:
    folder = find_minilm()
    text = load_pretrained_text(folder)
    torch.manual_seed(0)
    conditioner = build_conditioner(NativeConfig(max_prefix=40, text_encoder=str(folder)), text, SPEC, 12).eval()
    captions = ["A large SCARLET circle", "an unbelievably azure square at the left, on chequered cloth"]
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(captions, padding=True, return_tensors="pt")
    hidden = model(**batch).last_hidden_state
    for row, caption in enumerate(captions):
        # Without [CLS] and [SEP].
        expected = hidden[row, 1 : int(batch["attention_mask"][row].sum()) - 1]
        (found,) = text.encode_own([caption])
        assert (found - expected).abs().max() < 1e-5
        tokens = conditioner.text.project(F.layer_norm(expected, (384,)))
        prefix = conditioner(Condition([(TextSegment(caption),)], None))
        placed = prefix.embeddings[0, :-1] - conditioner.places.weight[: len(tokens)]
        assert (placed - tokens).abs().max() < 1e-4
