"""Quantizers and losses against implementations that are not ours."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio
from vector_quantize_pytorch import FSQ, VectorQuantize

from mentor.tokenizers import (
    EMAVectorQuantizer,
    EMAVQConfig,
    FiniteScalarQuantizer,
    FSQConfig,
    PixelLoss,
    PixelLossConfig,
    VectorQuantizer,
    VQConfig,
    psnr,
)


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(3, 8, 5, 6, generator=torch.Generator().manual_seed(0))


def test_vq_agrees_with_a_loop(latents: torch.Tensor) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(VQConfig(codes=50, width=8)).eval()
    quantized = quantizer(latents)
    weights = quantizer.embedding.weight.detach().double().numpy()
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    squared = 0.0
    for b, y, x in np.ndindex(3, 5, 6):
        vector = latents[b, :, y, x].double().numpy()
        vector /= np.sqrt((vector**2).sum())
        distances = [((vector - code) ** 2).sum() for code in weights]
        best = int(np.argmin(distances))
        squared += distances[best]
        assert quantized.ids[b, y, x] == best
        np.testing.assert_allclose(quantized.latents[b, :, y, x].detach(), weights[best], atol=1e-6)
    assert quantized.loss.item() == pytest.approx(1.25 * squared / latents.numel(), rel=1e-5)


@pytest.mark.parametrize("unit", [True, False])
def test_vq_agrees_with_the_library_on_the_same_codebook(latents: torch.Tensor, unit: bool) -> None:
    quantizer = VectorQuantizer(VQConfig(codes=50, width=8, unit=unit)).eval()
    library = VectorQuantize(dim=8, codebook_size=50, use_cosine_sim=unit, accept_image_fmap=True).eval()
    library.codebook = quantizer.codebook.detach()
    vectors, ids, _ = library(latents)
    quantized = quantizer(latents)
    assert torch.equal(quantized.ids, ids)
    torch.testing.assert_close(quantized.latents, vectors)


def test_ema_vq_learns_as_the_library_does(latents: torch.Tensor) -> None:
    config = EMAVQConfig(codes=16, width=8, restart_below=0.0)
    quantizer = EMAVectorQuantizer(config)
    library = VectorQuantize(
        dim=8, codebook_size=16, use_cosine_sim=True, accept_image_fmap=True, decay=config.decay, commitment_weight=0.25
    )
    library.codebook = quantizer.codebook
    library._codebook.embed_avg.copy_(quantizer.library._codebook.embed_avg)
    for step in range(10):
        batch = latents + 0.1 * step
        vectors, ids, loss = library(batch)
        quantized = quantizer(batch)
        assert torch.equal(quantized.ids, ids)
        torch.testing.assert_close(quantized.latents, vectors)
        torch.testing.assert_close(quantized.loss, loss.squeeze())
    torch.testing.assert_close(quantizer.codebook, library.codebook)


def test_ema_vq_evaluates_as_the_library_does(latents: torch.Tensor) -> None:
    quantizer = EMAVectorQuantizer(EMAVQConfig(codes=16, width=8)).eval()
    vectors, ids, _ = quantizer.library(latents.permute(0, 2, 3, 1).reshape(1, -1, 8))
    quantized = quantizer(latents)
    assert torch.equal(quantized.ids.flatten(), ids.flatten())
    torch.testing.assert_close(quantized.latents.permute(0, 2, 3, 1).reshape(1, -1, 8), vectors)


@pytest.mark.parametrize("levels", [(8, 8, 4, 4), (8, 5, 5, 5), (3, 7)])
def test_fsq_agrees_with_the_library(levels: tuple[int, ...]) -> None:
    quantizer, library = FiniteScalarQuantizer(FSQConfig(levels=levels)), FSQ(list(levels))
    latents = 2 * torch.randn(4, len(levels), 6, 6, generator=torch.Generator().manual_seed(0))
    ours, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    vectors, ids = library(theirs)
    quantized = quantizer(ours)
    assert torch.equal(quantized.ids, ids.long())
    torch.testing.assert_close(quantized.latents, vectors)
    torch.testing.assert_close(quantizer.codebook, library.implicit_codebook)
    weights = torch.linspace(-1, 1, latents.numel()).view_as(latents)
    (quantized.latents * weights).sum().backward()
    (vectors * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_psnr_agrees_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(5, 3, 16, 16, generator=generator) * 2 - 1
    images = targets + torch.linspace(0.01, 0.8, 5).view(5, 1, 1, 1) * torch.randn(5, 3, 16, 16, generator=generator)
    theirs = peak_signal_noise_ratio(images, targets, data_range=2.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(psnr(images, targets), theirs)
    assert psnr(targets, targets).tolist() == [100.0] * 5


def test_pixel_loss_agrees_with_a_loop() -> None:
    config = PixelLossConfig(squared=2.0, absolute=0.7, gradient=0.3, chroma=0.5)
    generator = torch.Generator().manual_seed(0)
    images, targets = torch.randn(2, 2, 3, 4, 5, generator=generator)
    difference = np.zeros((2, 3, 4, 5))
    for b, y, x in np.ndindex(2, 4, 5):
        r, g, blue = (images[b, :, y, x] - targets[b, :, y, x]).double().tolist()
        luma = 0.299 * r + 0.587 * g + 0.114 * blue
        difference[b, :, y, x] = luma, 0.5 * (r - luma), 0.5 * (blue - luma)
    expected = 2.0 * np.mean(difference**2) + 0.7 * np.mean(np.abs(difference))
    edges = np.mean(np.abs(np.diff(difference, axis=2))), np.mean(np.abs(np.diff(difference, axis=3)))
    expected += 0.3 * (edges[0] + edges[1]) / 2
    assert float(PixelLoss(config)(images, targets)) == pytest.approx(expected, rel=1e-5)
