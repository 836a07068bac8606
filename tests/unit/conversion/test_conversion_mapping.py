"""The books of a conversion: every name and shape on both sides, and the way back."""

import pytest
import torch
from torch import nn

from mentor.conversion.mapping import Mapped, give_back, take
from mentor.errors import UserError


def make_module() -> nn.Module:
    module = nn.Module()
    module.both = nn.Linear(3, 4, bias=False)
    module.one = nn.Linear(2, 2)
    module.register_buffer("count", torch.zeros(()))
    module.register_buffer("scale", torch.zeros(()))
    return module


MAPPED = Mapped(
    {"both.weight": ("w1", "w2"), "one.weight": ("one.w",), "one.bias": ("one.b",), "scale": ("s",)},
    {"count": torch.tensor(7.0)},
    {r"log\..+": "a log"},
)


def theirs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w1": (2, 3), "w2": (2, 3), "one.w": (2, 2), "one.b": (2,), "s": ()}
    tensors = {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}
    return tensors | {"one.b": torch.randn(2, generator=generator), "log.x": torch.ones(1)}


def test_tensors_are_put_together_and_accounted_for() -> None:
    module = make_module()
    report = take(module, theirs(), MAPPED, "x.pt")
    assert torch.equal(module.both.weight, torch.cat((theirs()["w1"], theirs()["w2"])).float())
    assert module.count == 7
    assert (report.tensors, report.parameters) == (5, 19)
    assert module.scale == theirs()["s"]
    assert report.left_out == {"a log": ["log.x"]}
    assert report.types == {"*": "float16", "one.b": "float32"}


def test_the_way_back_gives_the_very_bits() -> None:
    module = make_module()
    report = take(module, theirs(), MAPPED, "x.pt")
    back = give_back(module, MAPPED, report.types)
    assert back.keys() == theirs().keys() - {"log.x"}
    for name, tensor in back.items():
        assert tensor.dtype == theirs()[name].dtype and torch.equal(tensor, theirs()[name])


def test_everything_that_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    module, weights = make_module(), theirs()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    del weights["w2"]
    with pytest.raises(UserError, match=r"x.pt does not fit: 1 missing \(w2\); 1 unknown \(extra\)"):
        take(module, weights | {"extra": torch.ones(1)}, MAPPED, "x.pt")
    with pytest.raises(UserError, match=r"1 of another shape \(w1 \(3, 3\) against \(2, 3\)\)"):
        take(module, theirs() | {"w1": torch.zeros(3, 3)}, MAPPED, "x.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
