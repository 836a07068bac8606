import pytest

from mentor.errors import UserError
from mentor.models import Generator
from mentor.training.freeze import freeze


def test_the_named_parts_are_frozen_and_no_others(generator: Generator) -> None:
    frozen = freeze(generator, ["conditioner.*", "rows"])
    assert frozen
    for name, parameter in generator.named_parameters():
        assert parameter.requires_grad != (name.startswith("conditioner.") or name == "rows"), name
        assert (name in frozen) == (not parameter.requires_grad)


def test_no_pattern_freezes_nothing(generator: Generator) -> None:
    assert freeze(generator, []) == []
    assert all(parameter.requires_grad for parameter in generator.parameters())


def test_a_pattern_that_fits_nothing_is_refused_with_near_names(generator: Generator) -> None:
    with pytest.raises(UserError, match=r"'backbon' fits no parameter \(did you mean backbone\?\)") as caught:
        freeze(generator, ["rows", "backbon"])
    assert "\n" not in str(caught.value)
    assert all(parameter.requires_grad for parameter in generator.parameters())


def test_freezing_all_is_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match="nothing to train"):
        freeze(generator, ["*"])
