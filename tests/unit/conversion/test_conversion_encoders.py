"""Encoders inside checkpoints: where they are, and names of one tensor."""

import pytest
import torch

from mentor.conversion.encoders import distance, find_prefixes, map_encoders
from mentor.errors import UserError

THEIRS = {
    "all.text.encoder.final_layer_norm.weight": torch.ones(1),
    "all.text.shared.weight": torch.ones(1),
    "all.vision.tower.pre_layrnorm.weight": torch.ones(1),
    "other.pre_layrnorm.weight": torch.ones(1),
}
PREFIXES = {"text_encoder": "all.text.", "vision_encoder": "all.vision.tower."}


def test_prefixes_are_found_within_their_region() -> None:
    assert find_prefixes(THEIRS, "all.", "x.pt") == PREFIXES


@pytest.mark.parametrize("change", [{"all.more.pre_layrnorm.weight": torch.ones(1)}, None])
def test_an_encoder_must_be_there_once(change: dict[str, torch.Tensor] | None) -> None:
    theirs = THEIRS | change if change else {}
    with pytest.raises(UserError, match=r"x.pt has [02] tensors called all\.\.\."):
        find_prefixes(theirs, "all.", "x.pt")


@pytest.mark.parametrize("there", ["shared.weight", "encoder.embed_tokens.weight"])
def test_either_name_of_a_shared_tensor_will_do(there: str) -> None:
    names = [f"conditioner.text_encoder.{name}" for name in ("shared.weight", "encoder.embed_tokens.weight")]
    sources = map_encoders([*names, "backbone.norm.weight"], PREFIXES, [f"all.text.{there}"])
    assert sources == dict.fromkeys(names, (f"all.text.{there}",))
    both = map_encoders(names, PREFIXES)
    assert both == {name: (f"all.text.{name.removeprefix('conditioner.text_encoder.')}",) for name in names}


def test_distance_is_relative_and_over_all_tensors() -> None:
    before = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    assert distance(before, {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "c": torch.ones(1)}) == 0
    assert distance(before, {"a": torch.tensor([6.0]), "b": torch.tensor([8.0])}) == pytest.approx(1)
