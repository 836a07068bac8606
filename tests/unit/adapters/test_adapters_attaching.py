"""Finished adapters on a generator: put on, several at once, taken off without a trace, drawn with."""

from pathlib import Path

import pytest
import torch
from adapting import KINDS, PROMPTS, generator, logits, made

from mentor.adapters import Adapter, Applied, attach
from mentor.conditioning import Condition
from mentor.decoding.settings import SamplingConfig
from mentor.errors import UserError
from mentor.models.decoder import Decoder
from mentor.models.packing import pack
from mentor.sampling import sample


@pytest.fixture(params=KINDS)
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    return made(tmp_path / "adapter", KINDS[request.param])


def test_an_adapter_changes_what_is_said_and_goes_without_a_trace(adapter: Adapter) -> None:
    own = generator()
    before, bits = logits(own), {name: tensor.clone() for name, tensor in own.state_dict().items()}
    attached = attach(own, [Applied(adapter)])
    assert not torch.allclose(logits(own)[[0, 2]], before[[0, 2]], atol=1e-3)
    attached.detach()
    after = own.state_dict()
    assert after.keys() == bits.keys() and all(torch.equal(after[name], bits[name]) for name in bits)
    assert torch.equal(logits(own), before)
    # And again: what was taken off can be put on.
    attach(own, [Applied(adapter)])
    assert not torch.equal(logits(own), before)


def test_edits_leave_the_null_condition_as_it_is(tmp_path: Path) -> None:
    own = generator()
    before = logits(own)
    attach(own, [Applied(made(tmp_path / "adapter", KINDS["edits"]))])
    after = logits(own)
    assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0])


def test_drawing_with_an_adapter_is_what_teacher_forcing_says(adapter: Adapter) -> None:
    own = generator()
    attach(own, [Applied(adapter)])
    ids = sample(own, Condition(PROMPTS[:1], None), [0], SamplingConfig(temperature=0, guidance=1))
    with torch.no_grad():
        said = own(Condition(PROMPTS[:1], None), ids).argmax(dim=-1)
    assert torch.equal(said.flatten(), ids.flatten())


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_drawing_packed_gives_the_same_codes(adapter: Adapter, guidance: float) -> None:
    settings = SamplingConfig(temperature=0, guidance=guidance)
    plain, packed = generator(), generator()
    for own in (plain, packed):
        attach(own, [Applied(adapter)])
    pack(packed, "fp32")
    condition = Condition([PROMPTS[0], PROMPTS[2]], None)
    drawn = [sample(Decoder(own), condition, [0, 1], settings) for own in (plain, packed)]
    assert torch.equal(*drawn)


def test_the_steps_of_decoding_are_the_bases_where_an_adapter_acts_on_prompts_alone(tmp_path: Path) -> None:
    own = generator()
    attach(own, [Applied(made(tmp_path / "adapter", KINDS["prefix lora and edits"]))])
    base, decoders = generator(), []
    read = Decoder(own).prefill(Condition(PROMPTS[:1], None))
    for each in (own, base):
        decoder = Decoder(each)
        cache = decoder.make_cache([read], 4, [0])
        decoders.append(decoder.step(torch.tensor([[3]]), 0, cache, 1))
    assert torch.equal(*decoders)


def test_several_adapters_add_up_in_any_order_with_their_strengths(tmp_path: Path) -> None:
    # Sums of two commute in any precision, those of three do not.
    one, other, third = (made(tmp_path / str(seed), KINDS["attn"], seed) for seed in (0, 1, 2))
    given = [Applied(one, 0.5), Applied(other, -2), Applied(third, 0.7)]
    found = []
    for applied in (given, given[::-1]):
        own = generator()
        assert attach(own, applied).merged
        found.append(own.backbone.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    weight = generator().backbone.get_submodule("blocks.0.attention.qkv").weight
    scaling = KINDS["attn"].lora.scaling
    expected = weight.double()
    for each, strength in ((one, 0.5), (other, -2), (third, 0.7)):
        parts = [each.weights[f"lora.blocks.0.attention.qkv.{part}"].double() for part in ("up", "down")]
        expected = expected + strength * scaling * parts[0] @ parts[1]
    assert torch.allclose(found[0]["blocks.0.attention.qkv.weight"].double(), expected, atol=1e-6)


def test_adapters_of_all_kinds_go_together(tmp_path: Path) -> None:
    kinds = ["attn", "prefix_attn", "edits", "one layer", "prefix lora and edits"]
    applied = [Applied(made(tmp_path / str(seed), KINDS[kind], seed)) for seed, kind in enumerate(kinds)]
    own = generator()
    before = logits(own)
    attached = attach(own, applied)
    together = logits(own)
    for left in range(len(applied)):
        attached.detach()
        attached = attach(own, applied[:left] + applied[left + 1 :])
        assert not torch.allclose(logits(own), together, atol=1e-4), kinds[left]
    attached.detach()
    assert torch.equal(logits(own), before)


def test_strength_nothing_is_no_adapter(adapter: Adapter) -> None:
    own = generator()
    before = logits(own)
    attach(own, [Applied(adapter, 0.0)])
    assert torch.allclose(logits(own), before, atol=1e-6)


def test_adapters_are_given_all_together(adapter: Adapter) -> None:
    own = generator()
    attached = attach(own, [Applied(adapter)])
    if attached.merged:
        return  # nothing of it is left to be found
    with pytest.raises(UserError, match="has adapters already"):
        attach(own, [Applied(adapter)])
