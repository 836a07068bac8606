"""Opening a model: precisions, and guidance that it was never trained for."""

from typing import Any

import pytest

from mentor.drawing.jobs import plan
from mentor.drawing.model import Model, load, null_trained
from mentor.errors import UserError


def test_auto_becomes_the_precision_of_the_machine(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.precision == "fp32"
    for fast, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("mentor.models.packing.has_fast_bf16", lambda fast=fast: fast)
        assert load(model.folder).precision == expected
    with pytest.raises(UserError, match="precision 'fp64': choose auto, fp32, bf16 or int8"):
        load(model.folder, precision="fp64")


def test_an_absent_device_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match=r"device 'abacus' cannot be used .*: take cpu or cuda"):
        load(model.folder, "abacus")


@pytest.mark.parametrize(
    ("training", "trained"),
    [
        ({}, True),
        ({"steps": 3}, True),
        ({"objective.guidance.everything": 0.1}, True),
        ({"objective.guidance.everything": 0.0}, False),
        ({"objective.guidance.everything": 0.0, "init_from": "runs/1/release"}, True),
        ({"objective.guidance.everything": 0.0, "init_from": "x", "null_condition_trained": False}, False),
        ({"objective.guidance.everything": 0.0, "init_from": "x", "null_condition_trained": True}, True),
    ],
)
def test_a_release_that_does_not_say_is_taken_for_trained(training: dict[str, Any], trained: bool) -> None:
    assert null_trained(training) is trained


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"guidance": 2.0}, r"guidance 2 needs"),
        ({"guidance": 0.0}, r"guidance 0 needs"),
        ({"guidance": 1.0, "guidance_images": 1.5}, r"guidance 1 and guidance_images 1.5 needs"),
        ({"guidance": 3.0, "guidance_images": 1.0}, r"guidance 3 and guidance_images 1 needs"),
    ],
)
def test_guidance_is_refused_where_nothing_was_ever_left_out(
    untrained: Model, settings: dict[str, float], says: str
) -> None:
    with pytest.raises(UserError, match=says + r".*everything=0\): take guidance 1") as caught:
        plan(untrained, "a mug", (), 1, 0, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"guidance": 1.0}, {"guidance": 1, "guidance_images": 1.0}])
def test_no_guidance_is_never_refused(untrained: Model, settings: dict[str, float]) -> None:
    plan(untrained, "a mug", (), 1, 0, **settings)
