"""What tests of conditioners share: sizes of codes, captions, and codes that tell images apart by their brightness."""

import torch

from mentor.types import Codes, CodeSpec

SPEC = CodeSpec(grid=(2, 3), vocab_size=16, code_width=4, feature_width=5)
CAPTIONS = ["a red circle at the left", "a blue square on red stripes", "a red square at the top"] * 5


def encode(images: torch.Tensor) -> Codes:
    """Codes on the grid of `SPEC`."""
    count = len(images)
    value = images.mean(dim=(1, 2, 3)).view(count, 1, 1, 1)
    ids = torch.zeros(count, 2, 3, dtype=torch.long)
    return Codes(ids, value * torch.linspace(1, 2, 24).view(4, 2, 3), value * torch.linspace(-1, 1, 30).view(5, 2, 3))
