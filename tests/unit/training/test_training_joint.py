from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from mentor.training.joint import JointOptimizer


def build(seed: int = 0) -> tuple[nn.Linear, JointOptimizer]:
    torch.manual_seed(seed)
    module = nn.Linear(3, 2)
    return module, JointOptimizer([[SGD([module.weight], lr=0.1, momentum=0.9)], [AdamW([module.bias], lr=0.2)]])


def learn(module: nn.Linear, optimizer: JointOptimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        module(torch.full((1, 3), step + 1.0)).square().sum().backward()
        optimizer.step()


def test_it_does_what_its_parts_do_alone() -> None:
    module, joint = build()
    other, _ = build()
    parts = [SGD([other.weight], lr=0.1, momentum=0.9), AdamW([other.bias], lr=0.2)]
    learn(module, joint, 3)
    for step in range(3):
        other.zero_grad()
        other(torch.full((1, 3), step + 1.0)).square().sum().backward()
        for part in parts:
            part.step()
    assert torch.equal(module.weight, other.weight)
    assert torch.equal(module.bias, other.bias)


def test_its_closure_is_called_with_gradients() -> None:
    module, joint = build()
    before = module.bias.detach().clone()

    losses = []

    def closure() -> float:
        loss = module(torch.ones(1, 3)).square().sum()
        loss.backward()
        losses.append(float(loss.detach()))
        return losses[-1]

    assert [joint.step(closure)] == losses
    assert not torch.equal(module.bias, before)


def test_a_saved_state_goes_on_as_if_nothing_had_been(tmp_path) -> None:
    module, joint = build()
    learn(module, joint, 2)
    torch.save({"module": module.state_dict(), "optimizer": joint.state_dict()}, tmp_path / "state.pt")
    learn(module, joint, 3)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again, joined = build(seed=1)
    again.load_state_dict(saved["module"])
    joined.load_state_dict(saved["optimizer"])
    learn(again, joined, 3)
    assert torch.equal(module.weight, again.weight)
    assert torch.equal(module.bias, again.bias)


def test_its_state_is_that_of_an_ordinary_optimizer() -> None:
    """What reads the state of optimizers, such as the checkpoints of sharded training, reads this one's too."""
    module, joint = build()
    learn(module, joint, 2)
    state = joint.state_dict()
    assert {number: sorted(one) for number, one in state["state"].items()} == {
        0: ["momentum_buffer"],
        1: ["exp_avg", "exp_avg_sq", "step"],
    }
    assert [group["params"] for group in state["param_groups"]] == [[0], [1]]
    named = deepcopy(get_optimizer_state_dict(module, joint))
    assert named["state"].keys() == {"weight", "bias"}
    again, joined = build(seed=1)
    again.load_state_dict(module.state_dict())
    set_optimizer_state_dict(again, joined, named)
    learn(module, joint, 2)
    learn(again, joined, 2)
    assert torch.equal(module.weight, again.weight) and torch.equal(module.bias, again.bias)


def test_a_schedule_moves_every_part_after_loading_too() -> None:
    _, joint = build()
    joint.load_state_dict(joint.state_dict())
    schedule = LambdaLR(joint, lambda update: 1 / (1 + update))
    joint.step()
    schedule.step()
    assert [part.param_groups[0]["lr"] for part in joint.parts] == [0.05, 0.1]


def test_a_step_that_its_closure_asks_to_skip_moves_nothing_and_the_next_one_does() -> None:
    module, joint = build()
    learn(module, joint, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {number: {**one} for number, one in joint.state_dict()["state"].items()}
    state = {number: {name: value.clone() for name, value in one.items()} for number, one in state.items()}

    def closure() -> float:
        joint.zero_grad()
        loss = module(torch.ones(1, 3)).square().sum()
        loss.backward()
        joint.skip = True
        return float(loss.detach())

    assert joint.step(closure) == pytest.approx(module(torch.ones(1, 3)).square().sum().item())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    for number, one in joint.state_dict()["state"].items():
        assert all(torch.equal(state[number][name], value) for name, value in one.items())
    assert not joint.skip
    joint.step()
    assert not any(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_skip_without_a_closure_leaves_the_gradients_at_hand_out() -> None:
    module, joint = build()
    before = module.weight.detach().clone()
    module(torch.ones(1, 3)).sum().backward()
    joint.skip = True
    joint.step()
    assert torch.equal(module.weight, before)


def test_a_skip_does_not_outlive_its_gradients() -> None:
    """A loss scaler that finds overflow does not step at all; what it left out must not count for the next update."""
    module, joint = build()
    joint.skip = True
    joint.zero_grad()
    before = module.weight.detach().clone()
    module(torch.ones(1, 3)).sum().backward()
    joint.step()
    assert not torch.equal(module.weight, before)


def test_a_loss_scaler_steps_it() -> None:
    module, joint = build()
    plain, other = build()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(module(torch.ones(1, 3)).square().sum()).backward()
    scaler.unscale_(joint)
    scaler.step(joint)
    scaler.update()
    plain(torch.ones(1, 3)).square().sum().backward()
    other.step()
    torch.testing.assert_close(module.weight, plain.weight)
    torch.testing.assert_close(module.bias, plain.bias)
    joint.zero_grad()
    before = module.weight.detach().clone()
    scaler.scale(module(torch.full((1, 3), torch.inf)).square().sum()).backward()
    scaler.unscale_(joint)
    scaler.step(joint)
    scaler.update()
    assert torch.equal(module.weight, before)


def test_the_gradient_of_each_model_is_limited_by_itself() -> None:
    module, joint = build()
    assert [[id(one) for one in group] for group in joint.groups_to_clip] == [[id(module.weight)], [id(module.bias)]]
    module.weight.grad, module.bias.grad = torch.full((2, 3), 100.0), torch.tensor([0.3, 0.4])
    for group in joint.groups_to_clip:
        torch.nn.utils.clip_grad_norm_(group, 1.0)
    assert float(module.weight.grad.norm()) == pytest.approx(1, rel=1e-4)
    assert module.bias.grad.tolist() == pytest.approx([0.3, 0.4]), "another model's gradient does not shrink it"
