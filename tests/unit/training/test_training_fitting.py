"""Whether parts fit, asked before anything is trained."""

import pytest
from tiny import tiny_text_encoder, tiny_vision_encoder

from mentor.conditioning import (
    CaptionConfig,
    Conditioner,
    FusedConfig,
    NativeConfig,
    PretrainedPair,
    TextTokenizer,
    build_conditioner,
)
from mentor.errors import UserError
from mentor.training.fitting import check_references, shows_references
from mentor.types import CodeSpec

SPEC = CodeSpec(grid=(2, 2), vocab_size=16, code_width=4, feature_width=5)
WITH, WITHOUT = ("text_to_image", "segment"), ("text_to_image",)


def make(kind: str, room: int = 16) -> Conditioner:
    match kind:
        case "native":
            return build_conditioner(NativeConfig(max_prefix=room), TextTokenizer.train(["a"], 300), SPEC, 8)
        case "caption":
            return build_conditioner(CaptionConfig(slots=room), tiny_text_encoder(), SPEC, 8)
        case _:
            pair = PretrainedPair(tiny_text_encoder(), tiny_vision_encoder())
            return build_conditioner(FusedConfig(slots=room), pair, SPEC, 8)


def test_prompts_of_text_to_image_alone_show_no_picture() -> None:
    assert shows_references(WITH) and not shows_references(WITHOUT)


@pytest.mark.parametrize(
    ("kind", "room", "codes", "said"),
    [
        ("native", 16, False, None),
        ("native", 16, True, None),
        ("native", 4, False, "takes 5 prefix tokens and the model has room for 4"),
        ("caption", 16, False, "reads no images, and prompts of segment have one: say data.mixture.segment=0"),
        ("fused", 16, False, None),
        ("fused", 16, True, "reads the pixels of images.* these data are codes: say data.root=DIR"),
        ("fused", 4, False, "takes 5 prefix tokens and the model has room for 4"),
    ],
)
def test_a_conditioner_must_be_able_to_read_what_tasks_show(
    kind: str, room: int, codes: bool, said: str | None
) -> None:
    conditioner = make(kind, room)
    check_references(conditioner, WITHOUT, codes)
    if said is None:
        check_references(conditioner, WITH, codes)
    else:
        with pytest.raises(UserError, match=said):
            check_references(conditioner, WITH, codes)
