import math

import numpy as np
import pytest
import torch

from mentor.evaluation.metrics import HIGHEST_PSNR, imbalance, intersection_over_union, product, psnr


def test_psnr_of_a_known_error() -> None:
    targets = torch.zeros(2, 3, 4, 4)
    images = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), -0.02)])
    torch.testing.assert_close(psnr(images, targets), torch.tensor([20.0, 40.0]))


def test_equal_pictures_have_a_finite_psnr() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert psnr(images, images).tolist() == [HIGHEST_PSNR] * 2


def test_empty_masks_agree() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert intersection_over_union(empty, empty) == 1
    assert intersection_over_union(empty, full) == 0
    assert intersection_over_union(full, full) == 1


def test_imbalance_is_symmetric_and_undefined_at_zero() -> None:
    assert imbalance(0.5, 0.5) == 0
    assert imbalance(0.8, 0.2) == pytest.approx(imbalance(0.2, 0.8))
    assert imbalance(0.8, 0.2) == pytest.approx(math.log(4))
    assert imbalance(0.0, 0.5) is None
    assert product(0.5, 0.4) == pytest.approx(0.2)
