import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from mentor.training.joint import JointOptimizer


def build(seed: int = 0) -> tuple[nn.Linear, JointOptimizer]:
    torch.manual_seed(seed)
    module = nn.Linear(3, 2)
    return module, JointOptimizer([SGD([module.weight], lr=0.1, momentum=0.9), AdamW([module.bias], lr=0.2)])


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


def test_a_schedule_moves_every_part_after_loading_too() -> None:
    _, joint = build()
    joint.load_state_dict(joint.state_dict())
    schedule = LambdaLR(joint, lambda update: 1 / (1 + update))
    joint.step()
    schedule.step()
    assert [part.param_groups[0]["lr"] for part in joint.parts] == [0.05, 0.1]
