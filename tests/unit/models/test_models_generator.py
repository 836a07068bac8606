"""The generator: masks, teacher forcing against the cache, parameters of the named sizes."""

import pytest
import torch
from torch.nn import functional

from mentor.conditioning import NativeConfig, TextTokenizer, encode_condition
from mentor.models import ARHeadConfig, BackboneConfig, Generator, GeneratorConfig, build_generator, count_parameters
from mentor.models.generator import prefix_lm_mask
from mentor.models.heads import ARHead, CodeEmbedding, CodeVectors
from mentor.types import Codes, CodeSpec, ImageSegment, TextSegment

SPEC = CodeSpec(grid=(3, 3), vocab_size=20, code_width=4, feature_width=6)


def make_generator(kv_heads: int = 0, **head: int) -> Generator:
    torch.manual_seed(0)
    config = GeneratorConfig(
        conditioner=NativeConfig(max_prefix=64),
        backbone=BackboneConfig(layers=2, width=32, heads=4, kv_heads=kv_heads, rope_base=100),
        head=ARHeadConfig(**head),
    )
    tokenizer = TextTokenizer.train(["a red circle", "a blue square"], 300)
    generator = build_generator(config, tokenizer, SPEC, torch.randn(20, 4))
    torch.nn.init.normal_(generator.head.vectors.free.weight, std=0.1)
    return generator.eval()


def encode(images: torch.Tensor) -> Codes:
    pooled = functional.adaptive_avg_pool2d(images, 3)
    ids = torch.zeros(len(images), 3, 3, dtype=torch.long)
    return Codes(ids, pooled[:, [0, 1, 2, 0]], pooled[:, [0, 1, 2, 2, 1, 0]])


def make_condition():
    generator = torch.Generator().manual_seed(1)
    picture = torch.randn(3, 9, 9, generator=generator)
    return encode_condition([(TextSegment("a red circle"), ImageSegment(picture)), (TextSegment("blue"),), ()], encode)


def test_the_tail_alone_is_the_tail_of_all() -> None:
    backbone = make_generator().backbone
    x, mask = torch.randn(2, 7, 32), prefix_lm_mask(torch.ones(2, 4, dtype=torch.bool), 3)
    coordinates = torch.randint(0, 3, (2, 7, 2)).float()
    with torch.no_grad():
        rotary = backbone.rotary(coordinates)
        whole, tail = backbone(x, rotary, mask), backbone(x, rotary, mask, tail=3)
    assert torch.allclose(whole[:, -3:], tail, atol=1e-6)


def test_prediction_of_a_token_sees_only_what_came_before() -> None:
    generator, condition = make_generator(), make_condition()
    ids = torch.randint(0, 20, (3, 3, 3), generator=torch.Generator().manual_seed(2))
    changed = ids.clone()
    changed[:, 1, 1] = (changed[:, 1, 1] + 7) % 20  # token 4
    with torch.no_grad():
        before, after = generator(condition, ids), generator(condition, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-4)


def test_prompt_and_reference_change_the_prediction() -> None:
    generator = make_generator()
    ids = torch.zeros(1, 3, 3, dtype=torch.long)
    picture = torch.randn(3, 9, 9)
    prompts = [
        (TextSegment("a red circle"), ImageSegment(picture)),
        (TextSegment("a blue circle"), ImageSegment(picture)),
        (TextSegment("a red circle"), ImageSegment(-picture)),
    ]
    with torch.no_grad():
        logits = [generator(encode_condition([prompt], encode), ids) for prompt in prompts]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


def test_prefix_lm_mask_is_open_in_the_prefix_and_causal_behind_it() -> None:
    mask = prefix_lm_mask(torch.tensor([[False, True, True]]), 2)[0, 0].int().tolist()
    assert mask == [[0, 1, 1, 0, 0]] * 3 + [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]


def test_gradients_reach_every_parameter() -> None:
    generator = make_generator().train()
    loss = generator(make_condition(), torch.randint(0, 20, (3, 3, 3))).square().mean()
    loss.backward()
    without = [name for name, parameter in generator.named_parameters() if parameter.grad is None]
    assert not without


def test_untied_head_has_no_code_projection() -> None:
    assert make_generator(tied=False).head.vectors.tied is None
    assert make_generator().head.vectors.tied is not None


@pytest.mark.parametrize("head", [{"tied": False}, {"hidden": 0}, {"hidden": 16}])
def test_logits_match_states_with_the_vectors_of_the_codes(head: dict[str, int]) -> None:
    generator = make_generator(**head)
    vectors = generator.head.vectors
    torch.testing.assert_close(vectors.table(), vectors(torch.arange(20)))
    hidden = torch.randn(2, 5, 32)
    expected = torch.einsum("btd,vd->btv", hidden, vectors.table())
    torch.testing.assert_close(generator.head(hidden), expected)
    with generator.head.fixed():
        torch.testing.assert_close(generator.head(hidden), expected)
        vectors.free.weight = torch.nn.Parameter(torch.zeros_like(vectors.free.weight))
        torch.testing.assert_close(generator.head(hidden), expected)
    assert (generator.head(hidden) - expected).abs().max() > 0.1


def test_codes_of_one_vector_share_all_but_the_free_part() -> None:
    codebook = torch.randn(6, 4)
    codebook[5] = codebook[2]
    vectors = CodeVectors(ARHeadConfig(hidden=8), codebook, 16, scale=1.0)
    shared = (vectors.table() - vectors.free.weight).detach()
    torch.testing.assert_close(shared[5], shared[2])
    assert (shared[1] - shared[2]).abs().max() > 0.01


@pytest.mark.parametrize("hidden", [0, 256])
def test_new_logits_and_tokens_have_about_variance_one(hidden: int) -> None:
    config, codebook = ARHeadConfig(hidden=hidden), functional.normalize(torch.randn(1000, 8), dim=-1)
    tokens = CodeEmbedding(config, codebook, 64)(torch.arange(1000)[None])
    assert tokens.detach().std().item() == pytest.approx(1, abs=0.3)
    logits = ARHead(config, codebook, 64)(torch.randn(50, 1, 64))
    assert logits.detach().std().item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "millions"),
    [(12, 768, 12, 111), (24, 1024, 16, 343), (36, 1280, 20, 775), (48, 1536, 24, 1411)],
)
def test_sizes_follow_llamagens_table(layers: int, width: int, heads: int, millions: float) -> None:
    """Parameters of backbone, code table and output head, as LlamaGen counts them, within 1 %."""
    spec = CodeSpec(grid=(16, 16), vocab_size=16384, code_width=8, feature_width=512)
    config = GeneratorConfig(
        conditioner=NativeConfig(),
        backbone=BackboneConfig(layers=layers, width=width, heads=heads),
        head=ARHeadConfig(tied=False),
    )
    tokenizer = TextTokenizer.train(["a"], 256)
    with torch.device("meta"):
        parts = count_parameters(build_generator(config, tokenizer, spec, torch.empty(16384, 8, device="meta")))
    assert (parts["backbone"] + parts["embedding"] + parts["head"]) / 1e6 == pytest.approx(millions, rel=0.01)
