"""Adversarial losses against formulas of their own, and the joint backward pass against two optimizers in turn."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mentor.tokenizers import (
    AdversarialKind,
    Discriminator,
    DiscriminatorConfig,
    discriminator_loss,
    generator_loss,
)
from mentor.training.image_tokenizer_module import judge

KINDS: tuple[AdversarialKind, ...] = get_args(AdversarialKind)


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed))


def log_sigmoid(logit: float) -> float:
    return -math.log1p(math.exp(-logit))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_agree_with_a_loop(kind: AdversarialKind) -> None:
    real, fake = logits(0), logits(1)
    real_loss, fake_loss, drawn_loss = [], [], []
    for place in np.ndindex(3, 5, 4):
        on_real, on_fake = float(real[place]), float(fake[place])
        if kind == "hinge":
            real_loss.append(max(0.0, 1 - on_real))
            fake_loss.append(max(0.0, 1 + on_fake))
        else:
            real_loss.append(-log_sigmoid(on_real))
            fake_loss.append(-math.log(1 - 1 / (1 + math.exp(-on_fake))))
        drawn_loss.append(-log_sigmoid(on_fake) if kind == "non_saturating" else -on_fake)
    expected = 0.5 * (np.mean(real_loss) + np.mean(fake_loss))
    assert float(discriminator_loss(real, fake, kind)) == pytest.approx(expected, rel=1e-5)
    assert float(generator_loss(fake, kind)) == pytest.approx(np.mean(drawn_loss), rel=1e-5)


def test_the_losses_by_probability_are_torchs_cross_entropy_of_logits_to_labels() -> None:
    real, fake = logits(0), logits(1)
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    # torch takes the logits first and the labels second; the other way round gives another number, without an error.
    right = F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, zeros)
    torch.testing.assert_close(discriminator_loss(real, fake, "non_saturating"), 0.5 * right)
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla"), 0.5 * right)
    drawn = F.binary_cross_entropy_with_logits(fake, ones)
    torch.testing.assert_close(generator_loss(fake, "non_saturating"), drawn)
    assert not torch.isclose(F.binary_cross_entropy_with_logits(ones, fake), drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_each_side_is_drawn_its_own_way(kind: AdversarialKind) -> None:
    real, fake = logits(0).requires_grad_(), logits(1).requires_grad_()
    discriminator_loss(real, fake, kind).backward()
    assert real.grad is not None and fake.grad is not None
    assert (real.grad <= 0).all() and (real.grad < 0).any(), "real pictures are to get higher logits"
    assert (fake.grad >= 0).all() and (fake.grad > 0).any(), "drawn pictures are to get lower logits"
    drawn = logits(1).requires_grad_()
    generator_loss(drawn, kind).backward()
    assert drawn.grad is not None and (drawn.grad < 0).all(), "who draws wants higher logits"


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_have_finite_losses_and_gradients(kind: AdversarialKind) -> None:
    real, fake = torch.full((1, 2, 2), -500.0).requires_grad_(), torch.full((1, 2, 2), 500.0).requires_grad_()
    (discriminator_loss(real, fake, kind) + generator_loss(-fake, kind)).backward()
    assert real.grad is not None and fake.grad is not None
    assert real.grad.isfinite().all() and fake.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_backward_pass_gives_the_gradients_of_two_optimizers_in_turn(kind: AdversarialKind) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(channels=8, layers=1, groups=4))
    painter = torch.nn.Conv2d(3, 3, 3, padding=1)
    real = torch.randn(4, 3, 12, 12)
    fake = painter(real)
    verdict = judge(discriminator, real, fake, kind)
    ((fake - real).square().mean() + 0.7 * (verdict.push * fake).sum() + verdict.d_loss).backward()
    ours = [parameter.grad.clone() for model in (painter, discriminator) for parameter in model.parameters()]

    painter.zero_grad()
    discriminator.requires_grad_(False)
    fake = painter(real)
    g_loss = generator_loss(discriminator(fake), kind)
    ((fake - real).square().mean() + 0.7 * g_loss).backward()
    discriminator.requires_grad_(True).zero_grad()
    on_real, on_fake = discriminator(real), discriminator(fake.detach())
    d_loss = discriminator_loss(on_real, on_fake, kind)
    d_loss.backward()
    theirs = [parameter.grad for model in (painter, discriminator) for parameter in model.parameters()]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    expected = (g_loss, d_loss, on_real.mean(), on_fake.mean())
    found = (verdict.g_loss, verdict.d_loss, verdict.d_real, verdict.d_fake)
    torch.testing.assert_close(found, expected)
