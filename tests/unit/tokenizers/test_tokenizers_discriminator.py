"""The discriminator: what a logit sees, and what it remembers (nothing)."""

import pytest
import torch
from pydantic import ValidationError

from mentor.errors import UserError
from mentor.tokenizers import Discriminator, DiscriminatorConfig


def small(layers: int, groups: int = 0) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig(channels=4, layers=layers, groups=groups))


def test_it_has_as_many_parameters_as_the_published_one() -> None:
    """Batch and group normalisation have a scale and a bias for each channel alike."""
    discriminator = Discriminator(DiscriminatorConfig())
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_765_633
    assert discriminator(torch.zeros(1, 3, 64, 64)).shape == (1, 6, 6)


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_judges_a_patch_of_the_size_in_the_paper(layers: int, patch: int) -> None:
    images = torch.randn(1, 3, 160, 160, requires_grad=True)
    logits = small(layers)(images)
    middle = logits.shape[1] // 2
    logits[0, middle, middle].backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(dim=0) > 0
    assert int(seen.any(dim=0).sum()) == int(seen.any(dim=1).sum()) == patch


@pytest.mark.parametrize("groups", [0, 4])
def test_a_picture_is_judged_alike_whatever_is_beside_it_and_was_before(groups: int) -> None:
    discriminator = small(2, groups)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = discriminator(images)
    assert not list(discriminator.buffers())
    discriminator(9 * torch.randn(4, 3, 16, 16))
    alone = torch.cat([discriminator(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(together, alone)


def test_its_first_weights_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig())
    for name, weights in discriminator.state_dict().items():
        if weights.ndim == 4:
            assert float(weights.mean()) == pytest.approx(0, abs=2e-3), name
            assert float(weights.std()) == pytest.approx(0.02, rel=0.06), name
        elif name.endswith("bias"):
            assert not weights.any(), name
        else:
            assert float(weights.mean()) == pytest.approx(1, abs=0.01), name


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_picture_works_and_a_smaller_one_is_refused(layers: int) -> None:
    discriminator = small(layers)
    smallest = discriminator.config.smallest
    assert discriminator(torch.zeros(2, 3, smallest, smallest)).shape == (2, 1, 1)
    with pytest.raises(UserError, match=rf"takes {smallest} px and more, say loss.adversarial.discriminator.layers"):
        discriminator(torch.zeros(2, 3, 64, smallest - 1))


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValidationError, match="a layer has 24 channels, which 32 groups do not divide"):
        DiscriminatorConfig(channels=12)
