"""An adapter in training: it begins as nothing, it alone is trained, and what it learned is what is put on later."""

from pathlib import Path

import pytest
import torch
from adapting import BASE, KINDS, PROMPTS, generator, logits, release

from mentor.adapters import Applied, adapter_weights, attach, begin_adapter, count_adapter, load_adapter, save_adapter
from mentor.conditioning import Condition
from mentor.decoding.settings import SamplingConfig
from mentor.errors import UserError
from mentor.models import Generator
from mentor.models.checkpoint import Card
from mentor.sampling import sample

CODES = torch.randint(0, 32, (len(PROMPTS), 8, 8), generator=torch.Generator().manual_seed(2))


def learn(own: Generator, steps: int = 3) -> None:
    trained = [parameter for parameter in own.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(steps):
        said = own.train()(Condition(PROMPTS, None), CODES)
        loss = torch.nn.functional.cross_entropy(said.flatten(0, 1), CODES.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    own.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_does_nothing_and_is_all_that_is_trained(kind: str) -> None:
    own = generator()
    before = logits(own)
    frozen = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    begin_adapter(own, KINDS[kind])
    assert torch.allclose(logits(own), before, atol=1e-5)
    assert sum(parameter.numel() for parameter in own.parameters() if parameter.requires_grad) == count_adapter(
        KINDS[kind], own.config.backbone
    )
    learn(own)
    assert not torch.allclose(logits(own)[[0, 2]], before[[0, 2]], atol=1e-4)
    now = {name.replace(".base_layer", ""): tensor for name, tensor in own.state_dict().items()}
    assert all(torch.equal(now[name], frozen[name]) for name in frozen)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learned_is_what_is_put_on_another_copy(kind: str, tmp_path: Path) -> None:
    own = generator()
    begin_adapter(own, KINDS[kind])
    learn(own)
    save_adapter(tmp_path / "a", KINDS[kind], adapter_weights(own), BASE, 64, Card("test"))
    fresh = generator()
    attach(fresh, [Applied(load_adapter(tmp_path / "a", release(fresh), "m"))])
    assert torch.allclose(logits(fresh), logits(own), atol=2e-5)
    settings = SamplingConfig(temperature=0, guidance=1)
    condition = Condition([PROMPTS[0]], None)
    assert torch.equal(sample(own, condition, [0], settings), sample(fresh, condition, [0], settings))


def test_updates_of_the_prompt_alone_reach_image_tokens_through_the_prompt_only() -> None:
    own = generator()
    begin_adapter(own, KINDS["prefix_attn"])
    learn(own)
    adaptation, own.adaptation = own.adaptation, None
    # Without a reading the gate is shut: the base speaks.
    assert torch.equal(logits(own), logits(generator()))
    own.adaptation = adaptation
    assert not torch.equal(logits(own), logits(generator()))


def test_one_adapter_is_trained_at_a_time() -> None:
    own = generator()
    begin_adapter(own, KINDS["attn"])
    with pytest.raises(UserError, match="has adapters already"):
        begin_adapter(own, KINDS["attn"])
