"""Drawing latents: seeds, company, guidance, settings that mean nothing, and loops against slow ones."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny_generator, tiny_image_tokenizer, waken

from mentor.conditioning import Condition, encode_condition, images_only
from mentor.decoding.continuous import step_sizes
from mentor.decoding.fitting import check_fit
from mentor.decoding.settings import SamplingConfig
from mentor.diffusion import DDPMConfig, Draws, denoise
from mentor.errors import UserError
from mentor.models import ARHeadConfig, ContinuousGenerator, DiffusionHeadConfig, DiffusionTransformer, DiTConfig
from mentor.models.heads import HeadConfig
from mentor.sampling import Request, sample, stream
from mentor.types import ImageSegment, Prompt, TextSegment

TOKENIZER = tiny_image_tokenizer(stem=8)
PICTURE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
FULL: Prompt = (TextSegment("a red circle "), ImageSegment(PICTURE))
WORDS: Prompt = (TextSegment("a large blue square at the left on stripes"),)
HEADS: dict[str, HeadConfig] = {
    "dit": DiTConfig(steps=4),
    "epsilon": DiTConfig(process=DDPMConfig(), steps=4),
    "v": DiTConfig(process=DDPMConfig(prediction="v", zero_snr=True), sampler="ddpm", steps=4),
    "raster": DiffusionHeadConfig(steps=3),
    "random": DiffusionHeadConfig(order="random", steps=3),
}
MODELS = {
    name: waken(tiny_generator(TOKENIZER, layers=2, head=head)).eval().requires_grad_(False)
    for name, head in HEADS.items()
}
NONE = SamplingConfig(guidance=1)


def condition(*prompts: Prompt) -> Condition:
    return encode_condition(list(prompts), TOKENIZER.encode)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_seed_is_a_picture_in_whatever_company(name: str, guidance: float) -> None:
    model, config = MODELS[name], SamplingConfig(guidance=guidance)
    several = sample(model, condition(FULL, WORDS, FULL), [5, 6, 7], config)
    assert several.shape == (3, 8, 4, 4) and bool(several.isfinite().all())
    again, alone = (
        sample(model, condition(FULL, WORDS, FULL), [5, 6, 7], config),
        sample(model, condition(WORDS), [6], config),
    )
    assert torch.equal(again, several)
    torch.testing.assert_close(alone[0], several[1], atol=2e-3, rtol=1e-3)
    assert not torch.allclose(several[0], several[2], atol=0.1)


@pytest.mark.parametrize("name", HEADS)
def test_guidance_of_one_is_no_guidance(name: str) -> None:
    model, asked = MODELS[name], condition(FULL, WORDS)
    plain = sample(model, asked, [1, 2], NONE)
    never = sample(model, asked, [1, 2], SamplingConfig(guidance=4, guidance_interval=(0, 0)))
    both = sample(model, asked, [1, 2], SamplingConfig(guidance=1, guidance_images=1))
    torch.testing.assert_close(both, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(never, plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(sample(model, asked, [1, 2], SamplingConfig(guidance=4)), plain, atol=1e-4)
    none = sample(model, condition((), ()), [1, 2], NONE)
    torch.testing.assert_close(sample(model, asked, [1, 2], SamplingConfig(guidance=0)), none, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("scales", [(3.0, None), (2.0, 0.5)])
@torch.no_grad()
def test_denoising_equals_a_loop_that_reads_everything_anew(scales: tuple[float, float | None]) -> None:
    dit = MODELS["dit"]
    assert isinstance(dit, DiffusionTransformer)
    text, images = scales[0], scales[0] if scales[1] is None else scales[1]

    def predict(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        full, null, shown = (dit(condition(prompt), noisy, time) for prompt in (FULL, (), images_only(FULL)))
        return null + images * (shown - null) + text * (full - shown)

    expected = denoise(dit.head.config.process, predict, Draws([9]).normal(16, 8), "euler", 4)
    drawn = sample(dit, condition(FULL), [9], SamplingConfig(guidance=text, guidance_images=scales[1]))
    torch.testing.assert_close(dit.scale.tokens(drawn), expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_raster_order_equals_a_loop_without_a_cache() -> None:
    model = MODELS["raster"]
    assert isinstance(model, ContinuousGenerator)
    head, draws, tokens = model.head, Draws([4]), torch.zeros(1, 16, 8)
    for at in range(16):
        full, null = (head.condition(model(condition(prompt), tokens)[:, at]) for prompt in (FULL, ()))

        def predict(noisy: torch.Tensor, time: torch.Tensor, full=full, null=null) -> torch.Tensor:
            return head(noisy, time, null).lerp(head(noisy, time, full), 2.5)

        start = draws.normal(1, 8)[0]
        tokens[:, at] = denoise(model.settings.process, predict, start, "ddpm", 3, lambda: draws.normal(1, 8)[0])
    drawn = sample(model, condition(FULL), [4], SamplingConfig(guidance=2.5))
    torch.testing.assert_close(model.scale.tokens(drawn), tokens, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("each", [1, 5, 16])
@torch.no_grad()
def test_random_order_equals_a_loop_that_reads_everything_anew(each: int) -> None:
    model = MODELS["random"]
    assert isinstance(model, ContinuousGenerator)
    head, draws, tokens, hidden = model.head, Draws([4]), torch.zeros(1, 16, 8), torch.ones(1, 16, dtype=torch.bool)
    order, done = draws.order(16)[0], 0
    for count in step_sizes(16, each):
        places = order[done : done + count]
        told = head.condition(model(condition(FULL), tokens, hidden)[0, places])
        start = draws.normal(count, 8)[0]
        new = denoise(
            model.settings.process,
            lambda noisy, time, told=told: head(noisy, time, told),
            start,
            "ddpm",
            3,
            lambda count=count: draws.normal(count, 8)[0],
        )
        tokens[0, places], hidden[0, places] = new, False
        done += count
    drawn = sample(model, condition(FULL), [4], SamplingConfig(guidance=1, tokens_per_step=each))
    torch.testing.assert_close(model.scale.tokens(drawn), tokens, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("tokens", [1, 16, 64, 256])
@pytest.mark.parametrize("each", [1, 3, 4, 16, 10_000])
def test_steps_draw_every_token_once_few_first(tokens: int, each: int) -> None:
    sizes = step_sizes(tokens, each)
    assert sum(sizes) == tokens and min(sizes) >= 1 and len(sizes) == math.ceil(tokens / each)
    if tokens == 256 and each == 4:
        left = np.floor(256 * np.cos(np.pi / 2 * np.arange(1, 65) / 64))
        assert sizes[-20:] == (left[:-1] - left[1:]).astype(int).tolist()[-20:]


@pytest.mark.parametrize("name", ["raster", "random", "v"])
def test_the_temperature_reaches_the_noise(name: str) -> None:
    model, asked = MODELS[name], condition(*[WORDS] * 4)
    cold, again, warm = (
        sample(model, asked, range(4), SamplingConfig(guidance=1, temperature=temperature)) for temperature in (0, 0, 1)
    )
    assert torch.equal(cold, again) and not torch.allclose(cold, warm, atol=1e-2)


@pytest.mark.parametrize("name", HEADS)
def test_a_stream_gives_what_sample_gives(name: str) -> None:
    model, steps = MODELS[name], []
    requests = [Request(condition(prompt), seed) for seed, prompt in enumerate((FULL, WORDS, FULL))]
    drawn = list(stream(model, requests, NONE, 2, on_step=lambda done, total: steps.append((done, total))))
    for request, latents in drawn:
        alone = sample(model, request.condition, [request.seed], NONE)[0]
        torch.testing.assert_close(latents, alone, atol=2e-3, rtol=1e-3)
    assert len(drawn) == 3 and {total for _, total in steps} == {16} and steps[-1] == (16, 16)


@pytest.mark.parametrize(
    ("head", "settings", "message"),
    [
        (ARHeadConfig(), {"steps": 9}, "steps 9 means nothing to a model that draws codes: leave it out"),
        (ARHeadConfig(), {"sampler": "euler"}, "sampler euler means nothing to a model that draws codes: leave it out"),
        (
            ARHeadConfig(),
            {"tokens_per_step": 2},
            "tokens_per_step 2 means nothing to a model that draws codes: leave it out",
        ),
        (HEADS["dit"], {"top_k": 5}, "top_k 5 means nothing to a diffusion transformer: leave it out"),
        (HEADS["dit"], {"speculative": 8}, "speculative 8 means nothing to a diffusion transformer: leave it out"),
        (HEADS["dit"], {"sampler": "ddim"}, "sampler ddim does not fit a flow model: choose euler, heun or dpm++"),
        (
            HEADS["dit"],
            {"temperature": 0.5},
            "temperature 0.5 scales noise that sampler euler does not add: take temperature 1",
        ),
        (
            HEADS["epsilon"],
            {"temperature": 0.5},
            "temperature 0.5 scales noise that sampler ddim does not add: take sampler ddpm, or temperature 1",
        ),
        (HEADS["v"], {"sampler": "heun"}, "sampler heun does not fit a model that predicts v with zero_snr: choose "),
        (HEADS["dit"], {"steps": 2000}, "steps 2000: denoising takes 1 to 1000 of them"),
        (
            HEADS["raster"],
            {"tokens_per_step": 2},
            "tokens_per_step 2 means nothing to a model that draws one continuous token after the other: leave it out",
        ),
        (HEADS["raster"], {"top_p": 0.5}, "top_p 0.5 means nothing to a model that draws one continuous token after"),
        (
            HEADS["random"],
            {"tokens_per_step": 17},
            "tokens_per_step 17 is more than the 16 tokens that a picture of this model has: take 1 to 16",
        ),
    ],
)
def test_what_means_nothing_to_a_model_is_refused(head: HeadConfig, settings: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_fit(SamplingConfig(**settings), head, 16)
    assert str(error.value).startswith(message)
    check_fit(SamplingConfig(), head, 16)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"tokens_per_step": 0}, {"sampler": "plms"}])
def test_settings_that_cannot_be_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1|is unknown: choose euler, heun, dpm\+\+, ddim, ddpm"):
        SamplingConfig(**settings)


@pytest.mark.parametrize("name", HEADS)
def test_pictures_of_latents_are_pictures(name: str) -> None:
    drawn = sample(MODELS[name], condition(WORDS), [0], NONE)
    smooth, snapped = (TOKENIZER.picture(drawn, quantised) for quantised in (False, True))
    assert smooth.shape == snapped.shape == (1, 3, 64, 64) and smooth.abs().max() <= 1
    codes = TOKENIZER.quantize(drawn).ids
    torch.testing.assert_close(snapped, TOKENIZER.picture(codes))
    assert not torch.allclose(smooth, snapped, atol=1e-3)
