"""Drawing codes: filters, guidance, seeds, and the cached loop against one without a cache."""

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from mentor.conditioning import Condition, NativeConfig, TextTokenizer, encode_condition
from mentor.decoding.batches import CodeBatch
from mentor.decoding.filters import draw, invert, keep_top_k, keep_top_p, standard_processors
from mentor.decoding.graphs import GraphRunner
from mentor.decoding.guidance import combine
from mentor.decoding.reading import Picture, read
from mentor.decoding.settings import SamplingConfig
from mentor.models import ARHeadConfig, BackboneConfig, CodeGenerator, GeneratorConfig
from mentor.models.decoder import Decoder
from mentor.models.packing import pack
from mentor.sampling import Request, sample, stream
from mentor.types import Codes, CodeSpec, ImageSegment, Prompt, TextSegment

SPEC = CodeSpec(grid=(3, 3), vocab_size=20, code_width=4, feature_width=6)
PICTURE = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(5))
FULL: Prompt = (TextSegment("a red circle"), ImageSegment(PICTURE))
RED: Prompt = (TextSegment("red"),)
# Long enough for rows to share what was read of it.
LONG: Prompt = (TextSegment("a red circle and nothing else " * 9), ImageSegment(PICTURE))
LONGER: Prompt = (TextSegment("a red circle and nothing more or less " * 9),)


def encode(images: torch.Tensor) -> Codes:
    pooled = torch.nn.functional.adaptive_avg_pool2d(images, 3)
    ids = torch.zeros(len(images), 3, 3, dtype=torch.long)
    return Codes(ids, pooled[:, [0, 1, 2, 0]], pooled[:, [0, 1, 2, 2, 1, 0]])


def make_generator(kv_heads: int = 0, published: bool = False) -> CodeGenerator:
    """A small generator; `published` gives it the layout of LlamaGen's."""
    torch.manual_seed(0)
    shape = {"layers": 2, "width": 32, "heads": 4, "kv_heads": kv_heads, "rope_base": 100}
    layout = {"grid_embeddings": False, "placement": "own", "causal_prefix": True} if published else {}
    config = GeneratorConfig(
        conditioner=NativeConfig(max_prefix=512),
        backbone=BackboneConfig(**shape, rope_prefix=not published, legacy_prefix=published),
        head=ARHeadConfig(),
        **layout,
    )
    model = CodeGenerator(config, TextTokenizer.train(["a red circle"] * 3, 300), SPEC, torch.randn(20, 4))
    torch.nn.init.normal_(model.head.vectors.free.weight, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def generator() -> CodeGenerator:
    return make_generator()


@pytest.fixture(scope="module")
def grouped() -> CodeGenerator:
    return make_generator(kv_heads=2)


@pytest.fixture(scope="module")
def published() -> CodeGenerator:
    return make_generator(published=True)


def condition(*prompts: Prompt) -> Condition:
    return encode_condition(list(prompts), encode)


def uncached(generator: CodeGenerator, prompt: Prompt, ids: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Guided logits of every token of a picture, by running each condition's whole sequence anew."""
    bare = tuple(segment for segment in prompt if isinstance(segment, ImageSegment))
    with torch.no_grad():
        full, null, images = (generator(condition(p), ids.unsqueeze(0))[0] for p in (prompt, (), bare))
    first, last = (round(share * 9) for share in config.guidance_interval)
    scale = config.guidance
    image_scale = scale if config.guidance_images is None else config.guidance_images
    guided = null + image_scale * (images - null) + scale * (full - images)
    inside = (torch.arange(9) >= first) & (torch.arange(9) < last)
    return torch.where(inside.unsqueeze(-1), guided, full)


OPTIONS = {
    "no guidance": {"guidance": 1.0},
    "guidance": {"guidance": 3.0},
    "two scales": {"guidance": 3.0, "guidance_images": 1.5},
    "guidance of images alone": {"guidance": 1.0, "guidance_images": 2.0},
    "interval": {"guidance": 3.0, "guidance_interval": (0.3, 0.7)},
    "interval from the second token": {"guidance": 3.0, "guidance_interval": (0.12, 1.0)},
    "interval with two scales": {"guidance": 3.0, "guidance_images": 2.0, "guidance_interval": (0.0, 0.5)},
    "empty interval": {"guidance": 3.0, "guidance_interval": (0.5, 0.5)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("packed", [False, True], ids=["as trained", "packed"])
@pytest.mark.parametrize(
    "prompts", [[FULL, RED], [LONG] * 3, [LONG] * 2 + [LONGER] * 2], ids=["ragged", "one", "pairs"]
)
def test_logits_equal_those_without_a_cache_for_every_option(
    generator: CodeGenerator, options: dict, packed: bool, prompts: list[Prompt]
) -> None:
    config = SamplingConfig(**options)
    model = pack(copy.deepcopy(generator), "fp32") if packed else generator
    seen = []

    def record(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return logits

    drawn = sample(model, condition(*prompts), range(len(prompts)), config, [record])
    for row, prompt in enumerate(prompts):
        cached = torch.stack([logits[row] for logits in seen])
        assert (cached - uncached(generator, prompt, drawn[row], config)).abs().max() < 1e-4
    assert len({tuple(ids.flatten().tolist()) for ids in drawn}) == len(prompts)


@pytest.mark.parametrize(
    "prompts", [[FULL, RED], [LONG] * 3, [LONG] * 2 + [LONGER] * 2], ids=["ragged", "one", "pairs"]
)
def test_the_layout_of_published_models_is_drawn_as_it_is_trained(
    published: CodeGenerator, prompts: list[Prompt]
) -> None:
    config = SamplingConfig(guidance=2.0, guidance_interval=(0.2, 1.0))
    seen: list[torch.Tensor] = []
    seeds = range(len(prompts))
    drawn = sample(published, condition(*prompts), seeds, config, [lambda logits: seen.append(logits) or logits])
    for row, prompt in enumerate(prompts):
        cached = torch.stack([logits[row] for logits in seen])
        assert (cached - uncached(published, prompt, drawn[row], config)).abs().max() < 1e-4
    greedy, drafted = (SamplingConfig(temperature=0, speculative=tokens) for tokens in (0, 4))
    assert torch.equal(*(sample(published, condition(*prompts), seeds, each) for each in (greedy, drafted)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("prompts", [[FULL, RED], [LONG] * 3], ids=["ragged", "one"])
def test_drafts_change_nothing_of_what_is_likeliest(
    generator: CodeGenerator, options: dict, prompts: list[Prompt]
) -> None:
    plain, drafted = (SamplingConfig(**options, temperature=0, speculative=tokens) for tokens in (0, 4))
    calls = []
    seeds = range(len(prompts))
    tried = sample(generator, condition(*prompts), seeds, drafted, on_step=lambda *done: calls.append(done))
    assert torch.equal(tried, sample(generator, condition(*prompts), seeds, plain))
    assert calls[-1] == (9, 9) and len(calls) <= 9


def test_wide_key_value_heads_are_read_by_groups_of_queries(grouped: CodeGenerator) -> None:
    config = SamplingConfig(guidance=2.0)
    seen: list[torch.Tensor] = []
    drawn = sample(grouped, condition(LONG, LONG), [0, 1], config, [lambda logits: seen.append(logits) or logits])
    for row in range(2):
        cached = torch.stack([logits[row] for logits in seen])
        assert (cached - uncached(grouped, LONG, drawn[row], config)).abs().max() < 1e-4
    tried = sample(grouped, condition(LONG), [0], SamplingConfig(temperature=0, speculative=3))
    assert torch.equal(tried, sample(grouped, condition(LONG), [0], SamplingConfig(temperature=0)))


def test_a_step_at_a_place_that_only_the_device_knows_is_the_same_step(
    generator: CodeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CUDA graph records, run on the CPU: positions in a tensor, more columns read than are filled."""
    config = SamplingConfig(guidance=2.0, guidance_interval=(0.0, 0.6))
    prompts = [FULL, RED]
    expected = sample(generator, condition(*prompts), [0, 1], config)
    step = CodeBatch.step

    def by_tensor(self: CodeBatch, position: int, guided: bool, end: int) -> None:
        step(self, torch.tensor([position]), guided, GraphRunner.reach(position, 9))

    monkeypatch.setattr(CodeBatch, "step", by_tensor)
    assert torch.equal(sample(generator, condition(*prompts), [0, 1], config), expected)


class RefuseNumbers(TorchDispatchMode):
    """No operation within may wait for the device: not for a number, not for how many of something there are."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (
            "aten.item",
            "aten._local_scalar_dense",
            "aten.nonzero",
            "aten.masked_select",
            "aten.equal",
            "aten.is_nonzero",
        )
        assert not str(func).startswith(waits), func
        return func(*args, **(kwargs or {}))


def test_a_step_never_asks_the_device_for_a_number(generator: CodeGenerator) -> None:
    """A graph without a break: a step that waited for the device could not be recorded."""
    decoder, config = Decoder(generator), SamplingConfig(guidance=2.0, top_k=5, top_p=0.9, temperature=0.7)
    with torch.inference_mode(), generator.head.fixed():
        prompts = read(decoder, condition(FULL, RED), config)
        pictures = [Picture(seed, read_) for seed, read_ in enumerate(prompts)]
        plain, traced = (CodeBatch(decoder, pictures, config, standard_processors(config)) for _ in range(2))
        compiled = torch.compile(traced.step, fullgraph=True, backend="eager")
        for batch, step in ((plain, plain.step), (traced, compiled)):
            batch.choose([torch.stack([p[i].first for p in prompts]) for i in range(2)], 0)
            for position in range(1, 9):
                at = torch.tensor([position])
                with RefuseNumbers() if batch is plain else nullcontext():
                    step(at, True, 9)
    assert torch.equal(plain.drawn, traced.drawn)


def test_a_batch_that_fits_takes_the_place_of_the_last_one_and_is_drawn_as_if_alone(generator: CodeGenerator) -> None:
    """What a GPU does, which has recorded the steps over these very tensors."""
    decoder, config = Decoder(generator), SamplingConfig(guidance=2.0)
    decoder.records = True
    sample(decoder, condition(FULL, LONG), [0, 1], config)
    kept = decoder.kept
    for prompts, seeds, again in (((FULL, RED), [5, 6], True), ((FULL,), [7], False)):
        drawn = sample(decoder, condition(*prompts), seeds, config)
        assert torch.equal(drawn, sample(generator, condition(*prompts), seeds, config))
        assert (decoder.kept is kept) == again


def test_a_seed_gives_the_same_picture_whoever_else_is_in_the_batch(generator: CodeGenerator) -> None:
    config = SamplingConfig(guidance=2.0)
    alone = sample(generator, condition(FULL), [7], config)
    others: list[Prompt] = [(TextSegment("a much longer text about nothing at all"), *FULL), (TextSegment("red"),)]
    together = sample(generator, condition(others[0], FULL, others[1], FULL), [1, 7, 3, 8], config)
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(together[1], together[3]), "another seed is another picture"


def test_two_scales_follow_their_formula_and_meet_one_scale_when_equal() -> None:
    f, u, i = (torch.randn(2, 5) for _ in range(3))
    torch.testing.assert_close(combine([f, u, i], 3.0, 1.5), u + 1.5 * (i - u) + 3.0 * (f - i))
    torch.testing.assert_close(combine([f, u, i], 3.0, 3.0), combine([f, u], 3.0, None))
    torch.testing.assert_close(combine([f, u], 3.0, None), u + 3.0 * (f - u))
    assert combine([f], 3.0, None) is f
    parts = [
        SamplingConfig(guidance=g, guidance_images=i).parts for g, i in ((1, None), (3, None), (3, 3), (3, 1), (1, 1))
    ]
    assert parts == [1, 2, 2, 3, 1]


def test_three_rows_decode(generator: CodeGenerator) -> None:
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


def test_top_k_one_is_greedy(generator: CodeGenerator) -> None:
    greedy = sample(generator, condition(FULL), [0], SamplingConfig(temperature=0))
    assert torch.equal(greedy, sample(generator, condition(FULL), [123], SamplingConfig(top_k=1)))


def test_low_temperature_approaches_greedy(generator: CodeGenerator) -> None:
    greedy = sample(generator, condition(FULL), [0], SamplingConfig(temperature=0))
    assert torch.equal(greedy, sample(generator, condition(FULL), [123], SamplingConfig(temperature=1e-3)))


def test_processors_come_after_guidance_and_progress_is_told(generator: CodeGenerator) -> None:
    steps = []

    def only_seven(logits: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits, float("-inf")).index_fill(1, torch.tensor([7]), 0.0)

    ids = sample(generator, condition(FULL), [0], SamplingConfig(), [only_seven], lambda *step: steps.append(step))
    assert ids.unique().tolist() == [7]
    assert steps == [(n, 9) for n in range(1, 10)]


@pytest.mark.parametrize("speculative", [0, 3])
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_a_stream_gives_every_picture_that_sample_gives(generator: CodeGenerator, speculative: int, slots: int) -> None:
    config = SamplingConfig(guidance=2.0, speculative=speculative)
    conditions = [condition(prompt) for prompt in (RED, LONG, FULL)]
    asked = [Request(conditions[at], seed) for seed, at in enumerate((0, 0, 1, 1, 2, 0, 2))]
    taken = []

    def requests():
        for request in asked:
            taken.append(request)
            yield request

    arrived = []
    for request, ids in stream(generator, requests(), config, slots):
        assert len(taken) <= len(arrived) + slots, "no request is taken before there is a slot for it"
        arrived.append(request)
        alone = sample(generator, request.condition, [request.seed], config)[0]
        assert torch.equal(ids, alone), request.seed
    assert sorted(request.seed for request in arrived) == list(range(7))


def test_a_prompt_is_read_once_for_all_its_pictures_and_so_is_nothing(
    generator: CodeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, shapes = Decoder(generator), []
    conditioner = generator.conditioner.forward
    monkeypatch.setattr(generator.conditioner, "forward", lambda c: shapes.append(len(c.prompts)) or conditioner(c))
    one = condition(LONG)
    for _ in range(2):
        list(stream(decoder, [Request(one, seed) for seed in range(5)], SamplingConfig(guidance=2.0), 2))
    sample(decoder, condition(*[FULL] * 4), range(4), SamplingConfig(guidance=2.0))
    assert shapes == [1, 1, 1, 1], "the prompt, nothing, the prompt, another prompt"


def test_partial_pictures_can_be_watched(generator: CodeGenerator) -> None:
    seen = []
    final = sample(
        generator, condition(FULL, RED), [0, 1], SamplingConfig(), watch=lambda ids, n: seen.append(ids[:, :n].clone())
    )
    assert [part.shape[1] for part in seen] == list(range(1, 10))
    for part in seen:
        assert torch.equal(part, final.flatten(1)[:, : part.shape[1]])


def test_inversion_equals_a_running_sum() -> None:
    for codes in (1, 2, 5, 97, 1024):
        weights = torch.rand(50, codes, generator=torch.Generator().manual_seed(codes))
        weights[weights < 0.5] = 0
        weights[:, codes // 2] = 0.3
        uniform = torch.rand(50, generator=torch.Generator().manual_seed(0))
        sums = weights.double().cumsum(dim=-1)
        expected = (sums <= uniform.double().unsqueeze(-1) * sums[:, -1:]).sum(dim=-1)
        chosen = invert(weights, uniform)
        assert torch.equal(chosen, expected)
        assert (weights.gather(1, chosen.unsqueeze(1)) > 0).all()


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("temperature", -1, "greedy"),
        ("top_p", 0, "at most 1"),
        ("top_p", 1.5, "at most 1"),
        ("top_k", -2, "all tokens"),
        ("speculative", -1, "off"),
        ("speculative", 100, "to 64"),
        ("guidance_interval", (0.6, 0.4), "two rising shares"),
        ("guidance_interval", (0.0, 1.4), "two rising shares"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: float, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SamplingConfig(**{setting: value})


@pytest.mark.parametrize("options", [{"guidance": 2.0}, {"guidance": 2.0, "guidance_images": 1.5}, {"guidance": 1.0}])
def test_a_batch_that_is_kept_draws_other_pictures_as_a_new_one_would(generator: CodeGenerator, options: dict) -> None:
    config, decoder = SamplingConfig(**options), Decoder(generator)
    decoder.records = True
    kept = []
    for prompts in ([LONGER, LONGER], [LONG, LONG], [FULL, FULL], [LONGER, FULL], [RED, LONG], [RED, RED, RED]):
        drawn = sample(decoder, condition(*prompts), range(5, 5 + len(prompts)), config)
        assert torch.equal(drawn, sample(generator, condition(*prompts), range(5, 5 + len(prompts)), config))
        kept.append(decoder.kept)
    assert kept[3] is kept[4], "no longer than what was there"
    assert len({id(batch) for batch in kept[2:]}) == 3, "a longer prompt and another number need new tensors"
    assert options != {"guidance": 2.0} or kept[0] is kept[1], "what rows share is replaced too"
    processed = sample(decoder, condition(RED), [0], config, [lambda logits: logits * 0])
    assert decoder.kept is None and processed.shape == (1, 3, 3)
