"""What is read of prompts for guidance."""

import pytest
import torch
from tiny import tiny_fused_generator, tiny_image_tokenizer

from mentor.conditioning import Condition
from mentor.decoding.settings import SamplingConfig
from mentor.sampling import sample
from mentor.types import TextSegment


@pytest.mark.parametrize("scale", [0.0, 7.0])
def test_a_scale_for_images_means_nothing_where_there_are_none(scale: float) -> None:
    """Of a prompt without images nothing is left, and that nothing must be as long as the one it is compared with."""
    model = tiny_fused_generator(tiny_image_tokenizer()).eval()
    torch.nn.init.normal_(model.head.vectors.free.weight)
    prompts = Condition([(TextSegment("a large red circle"),), (TextSegment("red"),)], None)
    seen: dict[float | None, list[torch.Tensor]] = {}
    for images in (scale, None):
        config = SamplingConfig(guidance=2.0, guidance_images=images)
        logits = seen[images] = []
        sample(model, prompts, [0, 1], config, [lambda x, into=logits: into.append(x) or x])
    torch.testing.assert_close(torch.stack(seen[scale]), torch.stack(seen[None]), atol=1e-4, rtol=0)
