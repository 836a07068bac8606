"""Generators of latents: the diffusion transformer, and continuous tokens in raster and in random order."""

from typing import Any

import pytest
import torch
from tiny import CAPTIONS, tiny_generator, tiny_image_tokenizer, waken
from torch import Tensor

from mentor.conditioning import Condition, NativeConfig, TextTokenizer, encode_condition
from mentor.config import compose
from mentor.diffusion import DDPMConfig, Draws, FlowConfig
from mentor.models import (
    ARHeadConfig,
    BackboneConfig,
    ContinuousGenerator,
    DiffusionHeadConfig,
    DiffusionTransformer,
    DiTConfig,
    GeneratorConfig,
    build_generator,
    matched,
)
from mentor.models.decoder import Decoder
from mentor.models.heads import HeadConfig, LatentScale
from mentor.models.packing import pack
from mentor.nn.context import ContextCache
from mentor.types import CodeSpec, ImageSegment, Prompt, TextSegment

TOKENIZER = tiny_image_tokenizer()
PICTURES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
ONE: Prompt = (TextSegment("a large red circle"), ImageSegment(PICTURES[1]))
TWO: Prompt = (TextSegment("a circle"), ImageSegment(PICTURES[0]), ImageSegment(PICTURES[1]))
WORDS: Prompt = (TextSegment("a blue square at the left"),)
PROMPTS: list[Prompt] = [ONE, WORDS, TWO, ONE, ()]
TOKENS = torch.randn(5, 64, 8, generator=torch.Generator().manual_seed(1))
HIDDEN = torch.rand(5, 64, generator=torch.Generator().manual_seed(2)) < 0.7
TIMES = torch.tensor([10.0, 250.0, 999.0, 500.0, 3.0])


def make(head: HeadConfig) -> Any:
    return waken(tiny_generator(TOKENIZER, layers=2, head=head)).eval()


def condition(prompts: list[Prompt] | None = None) -> Condition:
    return encode_condition(PROMPTS if prompts is None else prompts, TOKENIZER.encode)


def context(generator: ContinuousGenerator | DiffusionTransformer) -> ContextCache:
    return ContextCache([prompt.cache for prompt in Decoder(generator).prefill(condition())], 64)


@pytest.fixture(scope="module")
def dit() -> DiffusionTransformer:
    return make(DiTConfig())


@pytest.fixture(scope="module")
def masked() -> ContinuousGenerator:
    return make(DiffusionHeadConfig(order="random"))


@pytest.fixture(scope="module")
def raster() -> ContinuousGenerator:
    return make(DiffusionHeadConfig())


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_a_prompt_that_is_read_once_serves_every_step(packed: bool) -> None:
    dit = make(DiTConfig())
    expected = dit(condition(), TOKENS, TIMES)
    if packed:
        pack(dit, "fp32")
    cache = context(dit)
    for _ in range(2):
        torch.testing.assert_close(dit.denoise(TOKENS, TIMES, cache), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(dit.denoise(TOKENS[:2], TIMES[:2], cache.first(2)), expected[:2], atol=1e-4, rtol=0)


@torch.no_grad()
def test_states_of_hidden_tokens_are_those_of_one_run_over_everything(masked: ContinuousGenerator) -> None:
    expected = masked(condition(), TOKENS, HIDDEN)
    torch.testing.assert_close(masked.states(TOKENS, HIDDEN, context(masked)), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_continuous_tokens_over_a_cache_equal_teacher_forcing(raster: ContinuousGenerator) -> None:
    expected = raster(condition(), TOKENS)
    decoder = Decoder(raster)
    prompts = decoder.prefill(condition())
    cache = decoder.make_cache([prompts], 64, [0])
    with torch.inference_mode():
        torch.testing.assert_close(torch.stack([p.first for p in prompts]), expected[:, 0], atol=1e-4, rtol=0)
        for at in range(63):
            step = decoder.step(TOKENS[:, at : at + 1], at, cache, at + 1)
            torch.testing.assert_close(step[:, 0], expected[:, at + 1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_who_sees_whom(dit: DiffusionTransformer, masked: ContinuousGenerator, raster: ContinuousGenerator) -> None:
    other = TOKENS.clone()
    other[:, 40] += 1
    changed = (raster(condition(), other) - raster(condition(), TOKENS)).abs().amax(dim=(0, 2))
    assert changed[:41].max() == 0 and changed[41:].min() > 0
    hidden = HIDDEN.clone()
    hidden[:, 40] = True
    assert torch.equal(masked(condition(), other, hidden), masked(condition(), TOKENS, hidden))
    hidden[:, 40] = False
    shown = (masked(condition(), other, hidden) - masked(condition(), TOKENS, hidden)).abs().amax(dim=(0, 2))
    assert shown.min() > 0
    assert (dit(condition(), other, TIMES) - dit(condition(), TOKENS, TIMES)).abs().amax(dim=(0, 2)).min() > 0


@torch.no_grad()
def test_prompt_and_time_are_heard(dit: DiffusionTransformer) -> None:
    plain = dit(condition(), TOKENS, TIMES)
    assert not torch.allclose(dit(condition(PROMPTS[::-1]), TOKENS, TIMES)[0], plain[0], atol=1e-4)
    assert (dit(condition(), TOKENS, TIMES + 100) - plain).abs().amax(dim=(1, 2)).min() > 1e-4
    # A row does not depend on its neighbours.
    alone = dit(condition([WORDS]), TOKENS[1:2], TIMES[1:2])
    torch.testing.assert_close(alone[0], plain[1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_new_diffusion_transformer_predicts_nothing() -> None:
    dit = tiny_generator(TOKENIZER, head=DiTConfig()).eval()
    assert dit(condition(), TOKENS, TIMES).abs().max() == 0
    latents = dit.scale.latents(TOKENS, 8)
    flow = dit.losses(condition(), latents, Draws(range(5)))
    # Of noise and tokens of variance 1 each.
    assert flow.shape == (5, 64) and 1.5 < flow.mean() < 2.5


@torch.no_grad()
def test_the_chance_of_a_loss_is_each_examples_own(
    dit: DiffusionTransformer, masked: ContinuousGenerator, raster: ContinuousGenerator
) -> None:
    latents = dit.scale.latents(TOKENS, 8)
    generators: list[Any] = [dit, masked, raster]
    for generator in generators:
        whole, again, alone = (
            generator.losses(condition(prompts), latents[rows], Draws(seeds))
            for prompts, rows, seeds in (
                (PROMPTS, slice(None), [3, 1, 4, 1, 5]),
                (PROMPTS, slice(None), [3, 1, 4, 2, 5]),
                ([WORDS], slice(1, 2), [1]),
            )
        )
        if not isinstance(whole, Tensor):
            (whole, counted), (again, _), (alone, _) = whole, again, alone
            share = counted.float().mean(dim=1)
            assert bool((share >= 0.7).all()) and (generator is masked or bool(counted.all()))
        torch.testing.assert_close(alone[0], whole[1], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(again[3], whole[3])
        torch.testing.assert_close(again[[0, 1, 2, 4]], whole[[0, 1, 2, 4]])


def test_shares_of_hidden_tokens_follow_the_settings() -> None:
    masked = make(DiffusionHeadConfig(order="random"))
    hidden = masked._hide(Draws(range(2000)), 64)
    share = hidden.float().mean(dim=1)
    low = torch.distributions.Normal(0.0, 1.0)
    # The mean of a normal distribution at 1 with deviation .25, cut off at .7 and 1.
    a, b = torch.tensor(-1.2), torch.tensor(0.0)
    density = torch.exp(low.log_prob(a)) - torch.exp(low.log_prob(b))
    expected = 1 + 0.25 * density / (low.cdf(b) - low.cdf(a))
    assert abs(share.mean() - expected) < 0.015 and share.min() >= 0.7
    places = hidden.float().mean(dim=0)
    assert places.min() > share.mean() - 0.05 and places.max() < share.mean() + 0.05


@pytest.mark.parametrize("size", ["tiny", "b", "l", "xl", "xxl"])
@pytest.mark.parametrize("codes", [2048, 16384])
@pytest.mark.parametrize("head", ["dit", "diffusion", "diffusion_masked"])
def test_every_size_has_as_many_parameters_as_the_autoregressive_one(size: str, codes: int, head: str) -> None:
    def count(stage: str, head: str) -> int:
        settings = compose("train", [f"stage={stage}", f"backbone={size}", f"head={head}"])
        config = GeneratorConfig(
            conditioner=NativeConfig(),
            backbone=BackboneConfig(**settings["backbone"]),
            head=settings["head"],
        )
        spec = CodeSpec((16, 16), codes, 8, 256)
        words = TextTokenizer.train(CAPTIONS, 300)
        with torch.device("meta"):
            model = build_generator(config, words, spec, torch.empty(codes, 8))
        return sum(parameter.numel() for parameter in model.parameters())

    own, theirs = count("diffusion" if head == "dit" else "1", head), count("1", "ar")
    assert abs(own / theirs - 1) < 0.05


def test_sizes_that_are_given_stay() -> None:
    spec = CodeSpec((8, 8), 512, 8, 16)
    parts = {"conditioner": NativeConfig(), "backbone": BackboneConfig(layers=2, width=32, heads=2, hidden=48)}
    for head in (ARHeadConfig(), DiTConfig(), DiffusionHeadConfig(width=24)):
        config = GeneratorConfig(**parts, head=head)
        assert matched(config, spec) == config
    config = GeneratorConfig(
        conditioner=NativeConfig(), backbone=BackboneConfig(layers=2, width=32, heads=2), head={"kind": "dit"}
    )
    filled = matched(config, spec)
    assert filled.backbone.hidden and matched(filled, spec) == filled


def test_tokens_have_mean_zero_and_variance_one_and_come_back() -> None:
    codebook = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 3
    scale = LatentScale(codebook)
    latents = codebook[torch.arange(128)].view(2, 8, 8, 8).permute(0, 3, 1, 2)
    tokens = scale.tokens(latents)
    assert tokens.shape == (2, 64, 8)
    torch.testing.assert_close(scale.latents(tokens, 8), latents)
    everything = (codebook - scale.mean) / scale.spread
    assert everything.mean(dim=0).abs().max() < 1e-5 and (everything.std(dim=0) - 1).abs().max() < 1e-5


def test_samplers_that_do_not_fit_are_refused_in_settings() -> None:
    with pytest.raises(ValueError, match="sampler ddim does not fit a flow model: choose euler, heun or dpm"):
        DiTConfig(sampler="ddim")
    with pytest.raises(ValueError, match="sampler ddpm does not fit"):
        DiffusionHeadConfig(process=FlowConfig(), sampler="ddpm")
    assert DiffusionHeadConfig().default_sampler == "ddpm"
    assert DiffusionHeadConfig(process=FlowConfig()).default_sampler == DiTConfig().default_sampler == "euler"
    assert DiTConfig(process=DDPMConfig()).default_sampler == "ddim"
