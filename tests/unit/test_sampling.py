"""Drawing codes: filters, guidance, seeds, and the cached loop against one without a cache."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mentor.conditioning import Condition, NativeConfig, TextTokenizer, encode_condition
from mentor.models import ARHeadConfig, BackboneConfig, Generator, GeneratorConfig
from mentor.sampling import SamplingConfig, draw, guidance_rows, keep_top_k, keep_top_p, sample
from mentor.types import Codes, CodeSpec, ImageSegment, Prompt, TextSegment

SPEC = CodeSpec(grid=(3, 3), vocab_size=20, code_width=4, feature_width=6)
PICTURE = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(5))
FULL: Prompt = (TextSegment("a red circle"), ImageSegment(PICTURE))


def encode(images: torch.Tensor) -> Codes:
    pooled = torch.nn.functional.adaptive_avg_pool2d(images, 3)
    ids = torch.zeros(len(images), 3, 3, dtype=torch.long)
    return Codes(ids, pooled[:, [0, 1, 2, 0]], pooled[:, [0, 1, 2, 2, 1, 0]])


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    config = GeneratorConfig(
        conditioner=NativeConfig(max_prefix=64),
        backbone=BackboneConfig(layers=2, width=32, heads=2, rope_base=100),
        head=ARHeadConfig(),
    )
    model = Generator(config, TextTokenizer.train(["a red circle"] * 3, 300), SPEC, torch.randn(20, 4))
    torch.nn.init.normal_(model.head.vectors.free.weight, std=0.5)
    return model.eval()


def condition(*prompts: Prompt) -> Condition:
    return encode_condition(list(prompts), encode)


@torch.no_grad()
def slow_greedy(generator: Generator, prompt: Prompt, guidance: float) -> list[int]:
    """Greedy decoding by running the whole sequence anew for every token, each condition on its own."""
    ids = torch.zeros(1, 3, 3, dtype=torch.long)
    for position in range(9):
        full = generator(condition(prompt), ids)[0, position]
        null = generator(condition(()), ids)[0, position]
        ids.view(-1)[position] = (null + guidance * (full - null)).argmax()
    return ids.flatten().tolist()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_cached_loop_equals_the_slow_one(generator: Generator, guidance: float) -> None:
    prompts: list[Prompt] = [FULL, (TextSegment("red"),)]
    config = SamplingConfig(guidance=guidance, temperature=0)
    fast = sample(generator, condition(*prompts), [0, 0], config)
    assert [row.flatten().tolist() for row in fast] == [slow_greedy(generator, p, guidance) for p in prompts]


def test_a_seed_gives_the_same_picture_whoever_else_is_in_the_batch(generator: Generator) -> None:
    config = SamplingConfig(guidance=2.0)
    alone = sample(generator, condition(FULL), [7], config)
    others: list[Prompt] = [(TextSegment("a much longer text about nothing at all"), *FULL), (TextSegment("red"),)]
    together = sample(generator, condition(others[0], FULL, others[1], FULL), [1, 7, 3, 8], config)
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(together[1], together[3]), "another seed is another picture"


def test_two_scales_follow_their_formula_and_meet_one_scale_when_equal() -> None:
    config = SamplingConfig(guidance=3.0, guidance_images=1.5)
    rows, combine = guidance_rows(condition(FULL, (TextSegment("red"),)), config)
    assert [len(prompt) for prompt in rows.prompts] == [2, 1, 0, 0, 1, 0]
    assert rows.codes is not None and len(rows.codes.ids) == 2
    f, u, i = (torch.randn(2, 5) for _ in range(3))
    assert torch.allclose(combine(torch.cat((f, u, i))), u + 1.5 * (i - u) + 3.0 * (f - i))
    rows, combine = guidance_rows(condition(FULL), SamplingConfig(guidance=3.0, guidance_images=3.0))
    assert len(rows.prompts) == 2
    assert torch.allclose(combine(torch.stack((f[0], u[0]))), u[:1] + 3.0 * (f[:1] - u[:1]))


def test_three_rows_decode(generator: Generator) -> None:
    ids = sample(generator, condition(FULL), [0], SamplingConfig(guidance=3.0, guidance_images=1.5))
    assert ids.shape == (1, 3, 3)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(20000, 4)
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(draw(logits, uniform), minlength=4) / 20000
    assert counts.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.015)


def test_draws_never_take_a_token_without_probability() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]]).expand(3, 3)
    assert draw(logits, torch.tensor([0.0, 0.5, 1 - 1e-7])).tolist() == [1, 1, 1]


def test_top_k_and_top_p_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = rng.normal(size=12) * 2
        probabilities = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-probabilities)
        kept, total = [], 0.0
        for index in order:
            kept.append(index)
            total += probabilities[index]
            if total >= 0.7:
                break
        tensor = torch.tensor(logits).float().unsqueeze(0)
        assert set(keep_top_p(tensor, 0.7)[0].isfinite().nonzero().flatten().tolist()) == set(kept)
        assert set(keep_top_k(tensor, 4)[0].isfinite().nonzero().flatten().tolist()) == set(order[:4].tolist())


def test_top_k_one_is_greedy(generator: Generator) -> None:
    greedy = sample(generator, condition(FULL), [0], SamplingConfig(temperature=0))
    assert torch.equal(greedy, sample(generator, condition(FULL), [123], SamplingConfig(top_k=1)))


def test_low_temperature_approaches_greedy(generator: Generator) -> None:
    greedy = sample(generator, condition(FULL), [0], SamplingConfig(temperature=0))
    assert torch.equal(greedy, sample(generator, condition(FULL), [123], SamplingConfig(temperature=1e-3)))


def test_processors_come_after_guidance_and_progress_is_told(generator: Generator) -> None:
    steps = []

    def only_seven(logits: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits, float("-inf")).index_fill(1, torch.tensor([7]), 0.0)

    ids = sample(generator, condition(FULL), [0], SamplingConfig(), [only_seven], lambda *step: steps.append(step))
    assert ids.unique().tolist() == [7]
    assert steps == [(n, 9) for n in range(1, 10)]


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("temperature", -1, "greedy"),
        ("top_p", 0, "at most 1"),
        ("top_p", 1.5, "at most 1"),
        ("top_k", -2, "all tokens"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: float, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SamplingConfig(**{setting: value})
