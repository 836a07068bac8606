"""Our measures against those of torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryJaccardIndex
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.segmentation import MeanIoU

from mentor.evaluation.metrics import intersection_over_union, psnr


def test_psnr_of_each_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(6, 3, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(6, 3, 16, 16, generator=generator)
    images = (targets + noise * torch.linspace(0.01, 0.8, 6).view(-1, 1, 1, 1)).clamp(-1, 1)
    theirs = PeakSignalNoiseRatio(data_range=2.0)
    expected = torch.stack([theirs(image[None], target[None]) for image, target in zip(images, targets, strict=True)])
    torch.testing.assert_close(psnr(images, targets), expected, rtol=1e-5, atol=1e-4)
    mean = PeakSignalNoiseRatio(data_range=2.0, reduction="elementwise_mean", dim=(1, 2, 3))(images, targets)
    torch.testing.assert_close(psnr(images, targets).mean(), mean, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_intersection_over_union(share: float) -> None:
    rng = np.random.default_rng(0)
    predicted, true = rng.random((5, 16, 16)) < share, rng.random((5, 16, 16)) < 0.4
    ours = [intersection_over_union(first, second) for first, second in zip(predicted, true, strict=True)]
    for own, first, second in zip(ours, predicted, true, strict=True):
        jaccard = BinaryJaccardIndex()(torch.from_numpy(first), torch.from_numpy(second))
        assert own == pytest.approx(float(jaccard), abs=1e-6)
    theirs = MeanIoU(num_classes=2, include_background=False, input_format="index")
    mean = theirs(torch.from_numpy(predicted).long(), torch.from_numpy(true).long())
    assert np.mean(ours) == pytest.approx(float(mean), abs=1e-6)
