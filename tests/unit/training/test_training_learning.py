"""From noise to pictures: each kind of generator is trained on a few examples, and then draws what they ask for."""

import random

import pytest
import torch
from tiny import tiny_generator, tiny_image_tokenizer
from torch import Tensor

from mentor.conditioning import Condition, drop_condition, encode_condition
from mentor.diffusion import DDPMConfig
from mentor.models import AnyGenerator, ARHeadConfig, DiffusionHeadConfig, DiTConfig
from mentor.models.heads import HeadConfig
from mentor.sampling import SamplingConfig, sample
from mentor.training.objectives import Target, example_seeds, score
from mentor.types import ImageSegment, Prompt, TextSegment

TOKENIZER = tiny_image_tokenizer(stem=8)
COUNT = 6
HEADS: dict[str, HeadConfig] = {
    "ar": ARHeadConfig(),
    "dit": DiTConfig(steps=20),
    "epsilon": DiTConfig(process=DDPMConfig(), steps=20),
    "v": DiTConfig(process=DDPMConfig(prediction="v", zero_snr=True), steps=20),
    "raster": DiffusionHeadConfig(width=64, steps=20),
    "random": DiffusionHeadConfig(order="random", width=64, steps=20),
}


def pictures(seed: int) -> Tensor:
    """Pictures of large soft blots."""
    coarse = torch.rand(COUNT, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=64, mode="nearest")


# Of the noise in a picture most is told by the picture itself, so the prompt is heeded late.
STEPS = {"epsilon": 1200}
TARGETS, SPOILED = pictures(0), pictures(1)
# What is shown is the target with most of another picture on it, as in recovery.
INPUTS = 0.3 * TARGETS + 0.7 * SPOILED
PROMPTS: list[Prompt] = [(TextSegment(f"a circle {number}"), ImageSegment(INPUTS[number])) for number in range(COUNT)]


def condition(prompts: list[Prompt]) -> Condition:
    return encode_condition(prompts, TOKENIZER.encode)


def train(generator: AnyGenerator, steps: int) -> tuple[float, float]:
    """Train in place; the losses at the beginning and at the end."""
    codes = TOKENIZER.encode(TARGETS)
    latents = TOKENIZER.continuous(codes.features).detach()
    generator.train()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, rng = [], random.Random(0)
    for step in range(steps):
        kept = drop_condition(PROMPTS, rng, 0.1, 0.0, 0.0)
        seeds = example_seeds(0, step, [str(number) for number in range(COUNT)])
        target = Target(codes.ids, latents, torch.zeros(COUNT, 4, 4), seeds)
        loss = score(generator, condition(kept), target, 0.0)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    generator.eval()
    return sum(losses[:20]) / 20, sum(losses[-20:]) / 20


def latents_of(pictures: Tensor, generator: AnyGenerator) -> Tensor:
    """What the generator would draw of pictures if it knew them."""
    codes = TOKENIZER.encode(pictures)
    return codes.latents if generator.draws == "codes" else TOKENIZER.continuous(codes.features)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_what_is_drawn_is_what_was_asked_for(kind: str) -> None:
    torch.manual_seed(0)
    generator = tiny_generator(TOKENIZER, layers=2, head=HEADS[kind])
    before, after = train(generator, STEPS.get(kind, 400))
    with torch.no_grad():
        drawn = sample(generator, condition(PROMPTS), range(COUNT), SamplingConfig(guidance=1.5))
        drawn = drawn if drawn.is_floating_point() else TOKENIZER.quantize.lookup(drawn)
        goals, shown = latents_of(TARGETS, generator), latents_of(INPUTS, generator)
    apart = (drawn.unsqueeze(1) - goals.unsqueeze(0)).square().mean(dim=(2, 3, 4))
    gain = 10 * torch.log10((shown - goals).square().mean(dim=(1, 2, 3)) / apart.diagonal())
    right = (apart.argmin(dim=1) == torch.arange(COUNT)).float().mean()
    print(f"{kind}: loss {before:.2f} -> {after:.2f}, {gain.mean():.1f} dB over doing nothing, {right:.0%} its own")
    assert after < 0.6 * before
    assert gain.mean() > 3, "doing nothing is hardly worse"
    assert right > 0.8, "chance is a sixth"
