"""Prompts to prefixes: order, positions, spans, limits and the dropping of conditions."""

import random

import pytest
import torch
from conditions import CAPTIONS, SPEC, encode

from mentor.conditioning import (
    Condition,
    NativeConditioner,
    NativeConfig,
    TextTokenizer,
    drop_condition,
    encode_condition,
)
from mentor.conditioning.native import ImageProjector
from mentor.errors import UserError
from mentor.types import Codes, CodeSpec, ImageSegment, TextSegment, parse_prompt, prompt_text


@pytest.fixture
def conditioner() -> NativeConditioner:
    torch.manual_seed(0)
    return NativeConditioner(NativeConfig(max_prefix=32), TextTokenizer.train(CAPTIONS, 300), SPEC, width=8)


def image(value: float) -> torch.Tensor:
    return torch.full((3, 4, 6), value)


def test_segments_keep_their_order_and_are_listed(conditioner: NativeConditioner) -> None:
    prompt = (TextSegment("a red"), ImageSegment(image(0.5), "ref#1"), TextSegment("circle"), ImageSegment(image(0.1)))
    prefix = conditioner(encode_condition([prompt], encode))
    spans = prefix.spans[0]
    assert [span.kind for span in spans] == ["text", "image", "text", "image", "start"]
    assert [spans[index].end == spans[index + 1].start for index in range(4)] == [True] * 4
    assert spans[1].name == "ref#1" and spans[1].grid == (2, 3)
    assert prefix.embeddings.shape[1] == spans[-1].end
    cells = prefix.cells[0, spans[1].start : spans[1].end].tolist()
    assert cells == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert prefix.cells[0, 0].tolist() == [-1, -1]
    assert prefix.cells[0, -1].tolist() == [0, 0], "the start token predicts cell 0"


def test_padding_is_on_the_left_and_a_row_does_not_depend_on_its_neighbours(conditioner: NativeConditioner) -> None:
    short, long = (TextSegment("red"),), (TextSegment("a blue square on"), ImageSegment(image(0.3)))
    alone = conditioner(encode_condition([short], encode))
    both = conditioner(encode_condition([long, short], encode))
    length = alone.embeddings.shape[1]
    assert both.mask[1].tolist() == [False] * (both.mask.shape[1] - length) + [True] * length
    assert torch.equal(both.embeddings[1, -length:], alone.embeddings[0])


def test_each_image_lands_in_the_prompt_that_named_it(conditioner: NativeConditioner) -> None:
    prompts = [(ImageSegment(image(0.2)),), (TextSegment("red"),), (ImageSegment(image(0.7)), TextSegment("circle"))]
    together = conditioner(encode_condition(prompts, encode))
    for row, prompt in enumerate(prompts):
        alone = conditioner(encode_condition([prompt], encode))
        length = alone.embeddings.shape[1]
        assert torch.allclose(together.embeddings[row, -length:], alone.embeddings[0], atol=1e-6)


def test_a_shared_image_is_encoded_once() -> None:
    calls = []
    shared = image(0.4)

    def counting(images: torch.Tensor) -> Codes:
        calls.append(len(images))
        return encode(images)

    condition = encode_condition([(ImageSegment(shared),), (ImageSegment(image(0.9)), ImageSegment(shared))], counting)
    assert calls == [2]
    assert condition.codes is not None
    assert torch.equal(condition.codes.latents[0], condition.codes.latents[2])
    assert not torch.equal(condition.codes.latents[0], condition.codes.latents[1])


def test_two_images_in_a_prompt_are_told_apart(conditioner: NativeConditioner) -> None:
    same = image(0.4)
    prefix = conditioner(encode_condition([(ImageSegment(same), ImageSegment(same))], encode))
    first, second, _ = prefix.spans[0]
    assert not torch.allclose(
        prefix.embeddings[0, first.start : first.end], prefix.embeddings[0, second.start : second.end]
    )


def test_empty_prompt_is_the_trained_null_condition(conditioner: NativeConditioner) -> None:
    prefix = conditioner(Condition([()], None))
    assert [span.kind for span in prefix.spans[0]] == ["null", "start"]
    prefix.embeddings[0, 0].sum().backward()
    assert conditioner.special.grad is not None and conditioner.special.grad[0].abs().sum() > 0


def test_a_prompt_that_does_not_fit_names_its_length_and_the_limit(conditioner: NativeConditioner) -> None:
    prompt = tuple(ImageSegment(image(0.1)) for _ in range(6))
    with pytest.raises(UserError, match=r"takes 37 prefix tokens .* room for 32"):
        conditioner(encode_condition([prompt], encode))


@pytest.mark.parametrize("features", [("latents",), ("features",), ("latents", "features")])
def test_image_features_are_what_the_config_names(features: tuple) -> None:
    config = NativeConfig(max_prefix=16, image_features=features)
    conditioner = NativeConditioner(config, TextTokenizer.train(CAPTIONS, 300), SPEC, width=8)
    condition = encode_condition([(ImageSegment(image(0.3)),)], encode)
    assert condition.codes is not None
    condition.codes.latents.requires_grad_()
    condition.codes.features.requires_grad_()
    conditioner(condition).embeddings.square().sum().backward()
    assert (condition.codes.latents.grad is not None) == ("latents" in features)
    assert (condition.codes.features.grad is not None) == ("features" in features)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_reference_cells_look_at_their_neighbours_alone(blocks: int) -> None:
    spec = CodeSpec(grid=(2, 5), vocab_size=16, code_width=4, feature_width=5)
    torch.manual_seed(0)
    projector = ImageProjector(NativeConfig(neighbour_blocks=blocks), spec, 8)
    latents, features = torch.randn(1, 4, 2, 5), torch.randn(1, 5, 2, 5, requires_grad=True)
    out = projector(latents, features)
    assert out.shape == (1, 10, 8)
    out[0, 0].square().sum().backward()  # the cell at row 0, column 0
    assert features.grad is not None
    seen = features.grad.abs().sum(dim=1).flatten().nonzero().flatten().tolist()
    columns = range(blocks + 1)
    assert seen == [row * 5 + column for row in range(min(blocks, 1) + 1) for column in columns]


def test_own_cells_leave_the_grid_to_the_target() -> None:
    config = NativeConfig(max_prefix=16, shared_cells=False)
    conditioner = NativeConditioner(config, TextTokenizer.train(CAPTIONS, 300), SPEC, width=8)
    prefix = conditioner(encode_condition([(ImageSegment(image(0.3)),)], encode))
    assert prefix.cells[0].tolist() == [[-1, -1]] * 6 + [[0, 0]]


def test_conditions_are_dropped_with_their_shares() -> None:
    prompt = (TextSegment("red"), ImageSegment(image(0.1)))
    dropped = drop_condition([prompt] * 4000, random.Random(0), everything=0.1, text=0.2, images=0.3)
    shares = [
        sum(len(p) == 0 for p in dropped) / 4000,
        sum(len(p) == 1 and isinstance(p[0], ImageSegment) for p in dropped) / 4000,
        sum(len(p) == 1 and isinstance(p[0], TextSegment) for p in dropped) / 4000,
    ]
    assert shares == pytest.approx([0.1, 0.2, 0.3], abs=0.03)


def test_dropping_text_never_empties_a_prompt_that_has_text_only() -> None:
    prompt = (TextSegment("red"),)
    assert drop_condition([prompt] * 50, random.Random(0), 0.0, 1.0, 0.0) == [prompt] * 50


@pytest.mark.parametrize(("text", "count"), [("<image> and <image>", 1), ("no mark", 1), ("<image>", 0)])
def test_marks_and_images_must_match(text: str, count: int) -> None:
    with pytest.raises(UserError, match="once for each image"):
        parse_prompt(text, [image(0.0)] * count)


def test_a_parsed_prompt_reads_as_typed() -> None:
    text = "The mug in <image>.\n a mug <image>"
    assert prompt_text(parse_prompt(text, [image(0.0), image(0.1)])) == text


def test_text_tokenizer_keeps_any_text_and_survives_saving() -> None:
    tokenizer = TextTokenizer.train(CAPTIONS, 300)
    again = TextTokenizer.from_json(tokenizer.to_json())
    for text in ("a red circle", "zürich 東京", "never seen words"):
        assert again.encode(text) == tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("A RED Circle") == tokenizer.encode("a red circle")
    assert len(tokenizer.encode("a red circle")) < 5
