"""What every conditioner keeps to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conditions import CAPTIONS, SPEC, encode
from pydantic import TypeAdapter
from tiny import tiny_clip_text_encoder, tiny_text_encoder, tiny_vision_encoder

from mentor.conditioning import (
    CaptionConfig,
    ClassLabelConfig,
    Condition,
    Conditioner,
    ConditionerConfig,
    Dropped,
    FusedConfig,
    Material,
    NativeConfig,
    build_conditioner,
    encode_condition,
    learn_material,
    load_material,
    save_material,
)
from mentor.conditioning.projectors import ResamplerConfig
from mentor.conditioning.qformer import QFormerConfig
from mentor.errors import UserError
from mentor.types import Prompt, parse_prompt

WIDTH = 8


@dataclass(frozen=True)
class Case:
    """A conditioner's settings, prompts that it can read, and some that it cannot."""

    config: ConditionerConfig
    prompts: Sequence[Prompt]
    unreadable: Sequence[Prompt]


def image(value: float) -> torch.Tensor:
    return torch.full((3, 4, 6), value) + torch.linspace(-0.1, 0.1, 24).view(4, 6)


def text(words: str, *values: float) -> Prompt:
    return parse_prompt(words, [image(value) for value in values])


QFORMER = QFormerConfig(tokens=3, layers=3, heads=2, width=12)
CASES: dict[str, Case] = {
    "native": Case(
        NativeConfig(max_prefix=32),
        [text("red"), text("a blue square on"), text("<image>", 0.1), text("a red <image> and <image>", 0.5, 0.2)],
        [text("many words " * 40), text("<image>" * 6, *[0.1] * 6)],
    ),
    "native, pretrained text": Case(
        NativeConfig(max_prefix=32, text_encoder="given"),
        [text("red"), text("a blue square on"), text("<image>", 0.1), text("a red <image> and <image>", 0.5, 0.2)],
        [text("many words " * 40), text("<image>" * 6, *[0.1] * 6)],
    ),
    "class_label": Case(
        ClassLabelConfig(classes=12),
        [text("3"), text(" 11 ")],
        [text("12"), text("-1"), text("a cat"), text("³"), text("<image>", 0.1), text("3<image>", 0.1)],
    ),
    "caption": Case(
        CaptionConfig(encoder="t5", slots=9),
        [text("red"), text("a large red circle"), text("stripes on a blue circle")],
        [text("many words " * 40), text("<image>", 0.1)],
    ),
    "clip text": Case(
        CaptionConfig(encoder="clip", slots=99),
        [text("red"), text("a large red circle"), text("stripes on a blue circle")],
        [text("many words " * 8), text("<image>", 0.1)],
    ),
    "fused clip": Case(
        FusedConfig(slots=16, vision_encoder="clip"),
        [text("red"), text("a large red circle"), text("<image>", 0.1), text("a red <image> and <image>", 0.5, 0.2)],
        [text("many words " * 40), text("<image>" * 6, *[0.1] * 6)],
    ),
    "fused siglip, resampled": Case(
        FusedConfig(slots=16, vision_encoder="siglip", projector=ResamplerConfig(tokens=3, layers=2, heads=2)),
        [text("red"), text("<image>", 0.1), text("a red <image> and <image> at the left", 0.5, 0.2)],
        [text("many words " * 40), text("<image>" * 6, *[0.1] * 6)],
    ),
    "fused clip, q-former": Case(
        FusedConfig(slots=16, vision_encoder="clip", projector=QFORMER),
        [text("red"), text("<image>", 0.1), text("a red <image> and <image> at the left", 0.5, 0.2)],
        [text("many words " * 40), text("<image>" * 6, *[0.1] * 6)],
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def material(case: Case, tmp_path: Path) -> Material:
    config = case.config
    if isinstance(config, CaptionConfig | FusedConfig) or (isinstance(config, NativeConfig) and config.text_encoder):
        clip = isinstance(config, CaptionConfig) and config.encoder == "clip"
        (tiny_clip_text_encoder() if clip else tiny_text_encoder()).save(tmp_path / "text")
        key = "encoder" if isinstance(config, CaptionConfig) else "text_encoder"
        config = config.model_copy(update={key: str(tmp_path / "text")})
    if isinstance(config, FusedConfig):
        tiny_vision_encoder(config.vision_encoder).save(tmp_path / "vision")
        config = config.model_copy(update={"vision_encoder": str(tmp_path / "vision")})
    return learn_material(config, lambda: CAPTIONS)


@pytest.fixture
def conditioner(case: Case, material: Material) -> Conditioner:
    torch.manual_seed(0)
    return build_conditioner(case.config, material, SPEC, WIDTH).eval()


def condition(conditioner: Conditioner, prompts: Sequence[Prompt]) -> Condition:
    return encode_condition(prompts, encode) if conditioner.reads_codes else Condition(prompts, None)


def test_prefixes_are_padded_on_the_left_and_their_length_is_known_before(conditioner: Conditioner, case: Case) -> None:
    prompts = [*case.prompts, ()]
    prefix = conditioner(condition(conditioner, prompts))
    lengths = [conditioner.count(prompt) for prompt in prompts]
    most = max(lengths)
    assert prefix.embeddings.shape == (len(prompts), most, WIDTH)
    assert prefix.mask.tolist() == [[False] * (most - length) + [True] * length for length in lengths]
    assert prefix.cells.shape == (len(prompts), most, 2)
    assert most <= case.config.longest(SPEC)


def test_a_row_does_not_depend_on_its_neighbours(conditioner: Conditioner, case: Case) -> None:
    together = conditioner(condition(conditioner, case.prompts))
    for row, prompt in enumerate(case.prompts):
        alone = conditioner(condition(conditioner, [prompt]))
        length = alone.embeddings.shape[1]
        assert torch.allclose(together.embeddings[row, -length:], alone.embeddings[0], atol=1e-6)
        assert torch.equal(together.cells[row, -length:], alone.cells[0])


def test_spans_follow_each_other_and_cover_the_prompt(conditioner: Conditioner, case: Case) -> None:
    prefix = conditioner(condition(conditioner, [*case.prompts, ()]))
    for row, spans in enumerate(prefix.spans):
        assert spans[0].start == 0 and spans[-1].end == int(prefix.mask[row].sum())
        assert all(one.end == following.start for one, following in pairwise(spans))
    assert prefix.spans[-1][0].kind == "null"
    assert all("null" not in [span.kind for span in spans] for spans in prefix.spans[:-1])


def test_prompts_differ_from_each_other_and_from_nothing(conditioner: Conditioner, case: Case) -> None:
    alone = [conditioner(condition(conditioner, [prompt])).embeddings for prompt in [*case.prompts, ()]]
    for place, one in enumerate(alone):
        assert all(one.shape != other.shape or not torch.equal(one, other) for other in alone[place + 1 :])


def test_nothing_is_the_empty_prompt_or_as_much_of_it_as_the_prompt_beside_it_has(conditioner: Conditioner) -> None:
    empty = conditioner(Condition([()], None)).embeddings
    for tokens in (1, 3):
        nothing = conditioner.null_prefix(tokens)
        assert nothing.spans[0][0].kind == "null"
        expected = empty[:, -tokens:] if conditioner.null_as_long else empty
        assert torch.allclose(nothing.embeddings, expected, atol=1e-6)


def test_a_dropped_prompt_is_the_nothing_that_it_would_be_compared_with(conditioner: Conditioner, case: Case) -> None:
    for prompt in case.prompts:
        dropped = Dropped(prompt)
        assert not dropped and dropped == ()
        prefix = conditioner(Condition([dropped], None))
        expected = conditioner.null_prefix(conditioner.count(prompt))
        assert prefix.embeddings.shape == expected.embeddings.shape
        assert torch.allclose(prefix.embeddings, expected.embeddings, atol=1e-6)
        assert conditioner.count(dropped) == prefix.mask.sum()
        assert [span.kind for span in prefix.spans[0]] == [span.kind for span in expected.spans[0]]


def test_gradients_reach_every_part(conditioner: Conditioner, case: Case) -> None:
    prefix = conditioner.train()(condition(conditioner, [*case.prompts, ()]))
    (prefix.embeddings * torch.randn_like(prefix.embeddings)).sum().backward()
    for name, parameter in conditioner.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert name.startswith(conditioner.apart), name


def test_what_cannot_be_read_is_refused_before_and_when_it_is_read(conditioner: Conditioner, case: Case) -> None:
    calls: list[Callable[[Prompt], object]] = [
        conditioner.count,
        lambda prompt: conditioner(condition(conditioner, [prompt])),
    ]
    for prompt in case.unreadable:
        for call in calls:
            with pytest.raises(UserError, match=r"room for|draws classes|reads text alone"):
                call(prompt)


def test_settings_and_material_make_the_same_again(
    conditioner: Conditioner, case: Case, material: Material, tmp_path: Path
) -> None:
    save_material(material, tmp_path)
    adapter: TypeAdapter[ConditionerConfig] = TypeAdapter(ConditionerConfig)
    config = adapter.validate_python(case.config.model_dump(mode="json"))
    again = build_conditioner(config, load_material(config, tmp_path), SPEC, WIDTH).eval()
    again.load_state_dict(conditioner.state_dict())
    both = [each(condition(each, case.prompts)).embeddings for each in (conditioner, again)]
    assert torch.equal(*both)
