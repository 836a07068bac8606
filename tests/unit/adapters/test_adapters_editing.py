"""Edits: where they are, and what they leave alone."""

import pytest
import torch
from adapting import generator
from tiny import tiny_image_tokenizer

from mentor.adapters import EditsConfig
from mentor.adapters.editing import Editor, Editors, orthonormal, places
from mentor.conditioning import Condition, Prefix, Span, encode_condition
from mentor.errors import UserError
from mentor.types import parse_prompt


def prefix(*rows: list[Span]) -> Prefix:
    """A prefix of width 8 whose rows have these segments, padded on the left."""
    lengths = [row[-1].end for row in rows]
    most = max(lengths)
    mask = torch.tensor([[place >= most - length for place in range(most)] for length in lengths])
    return Prefix(torch.zeros(*mask.shape, 8), mask, torch.full((*mask.shape, 2), -1), list(rows))


LONG = [Span("text", "", 0, 4), Span("image", "", 4, 8), Span("text", "", 8, 9), Span("start", "", 9, 10)]
SHORT = [Span("text", "", 0, 3), Span("start", "", 3, 4)]
NULL = [Span("null", "", 0, 1), Span("start", "", 1, 2)]


def where(mask: torch.Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in mask]


def test_the_first_and_the_last_tokens_of_each_prompt_are_edited_whatever_the_padding() -> None:
    found = places(prefix(LONG, SHORT, NULL), EditsConfig(first=2, last=3))
    assert where(found["first"]) == [[0, 1], [6, 7], []]
    assert where(found["last"]) == [[7, 8, 9], [8, 9], []]


def test_only_the_kinds_of_segments_that_are_named_count() -> None:
    found = places(prefix(LONG, SHORT), EditsConfig(first=1, last=2, segments=("image",)))
    assert where(found["first"]) == [[4], []] and where(found["last"]) == [[6, 7], []]
    found = places(prefix(LONG, SHORT), EditsConfig(first=3, last=0, segments=("text",)))
    assert where(found["first"]) == [[0, 1, 2], [6, 7, 8]] and where(found["last"]) == [[], []]


def test_a_token_is_edited_once() -> None:
    found = places(prefix(SHORT), EditsConfig(first=3, last=4))
    assert where(found["first"]) == [[0, 1, 2]] and where(found["last"]) == [[3]]


@pytest.mark.parametrize("tail", [13, 5, 4, 1])
def test_edits_touch_their_tokens_alone_also_where_only_the_last_tokens_are_given(tail: int) -> None:
    torch.manual_seed(0)
    editors = Editors(EditsConfig(rank=2, first=2, last=3), 2, 8)
    for parameter in editors.parameters():
        torch.nn.init.normal_(parameter)
    rows = prefix(LONG, SHORT, NULL)
    x = torch.randn(3, 13, 8)
    whole = editors.edit(rows, 3)(0, x)
    touched = {0: [0, 1, 7, 8, 9], 1: [6, 7, 8, 9], 2: []}
    assert where((whole != x).any(dim=-1)) == list(touched.values())
    assert torch.allclose(editors.edit(rows, 3)(0, x[:, -tail:]), whole[:, -tail:], atol=1e-5)


def test_layers_that_are_not_named_are_left_alone() -> None:
    editors = Editors(EditsConfig(layers=(1,)), 3, 8)
    assert list(editors.layers) == ["1"]
    x = torch.randn(1, 10, 8)
    assert editors.edit(prefix(LONG), 0)(0, x) is x


def test_a_new_edit_is_as_good_as_nothing_and_can_be_learned() -> None:
    torch.manual_seed(0)
    editor = Editor(16, 4)
    h = torch.randn(2, 3, 16)
    assert torch.allclose(editor(h), h, atol=1e-6)
    editor(h).pow(2).sum().backward()
    assert editor.weight.grad is not None and editor.weight.grad.abs().sum() > 0


def test_the_rotation_stays_orthonormal_whatever_is_trained() -> None:
    torch.manual_seed(0)
    for matrix in (torch.randn(12, 4), 100 * torch.randn(12, 4), orthonormal(torch.randn(12, 4))):
        rotation = orthonormal(matrix)
        assert torch.allclose(rotation.T @ rotation, torch.eye(4), atol=1e-5)
    assert torch.allclose(orthonormal(rotation), rotation, atol=1e-6)


def test_strength_scales_the_edit() -> None:
    torch.manual_seed(0)
    editor = Editor(8, 2)
    torch.nn.init.normal_(editor.weight)
    h = torch.randn(1, 2, 8)
    assert torch.equal(editor(h, 0.0), h)
    assert torch.allclose(editor(h, 0.5) - h, (editor(h) - h) / 2, atol=1e-6)


def test_edits_are_computed_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    editor = Editor(64, 4)
    torch.nn.init.normal_(editor.weight)
    h = torch.randn(1, 5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(editor(h), editor(h.clone()))
        found = editor(h)
    assert torch.equal(found, editor(h))


def test_spans_of_real_prompts_are_read() -> None:
    own = generator()
    image = torch.rand(3, 64, 64)
    prompts = [parse_prompt("the circle in <image>. a circle", [image]), parse_prompt("a circle", [])]
    read = own.conditioner(encode_condition(prompts, tiny_image_tokenizer().encode))
    found = places(read, EditsConfig(first=0, last=1, segments=("start",)))
    last = read.mask.shape[1] - 1
    assert where(found["last"]) == [[last], [last]]
    images = places(read, EditsConfig(first=10_000, last=0, segments=("image",)))["first"]
    assert images.sum(dim=1).tolist() == [64, 0]
    assert not places(own.conditioner(Condition([()], None)), EditsConfig())["first"].any()


def test_what_the_model_has_not_is_refused() -> None:
    with pytest.raises(UserError, match=r"layers has 5, and the model's layers are 0 to 1"):
        Editors(EditsConfig(layers=(0, 5)), 2, 8)
    with pytest.raises(UserError, match="rank 9 is above the model's width 8"):
        Editors(EditsConfig(rank=9), 2, 8)
