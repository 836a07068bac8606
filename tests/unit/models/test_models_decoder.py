"""Token by token over a cache, against teacher forcing."""

import pytest
import torch
from tiny import tiny_fused_generator, tiny_generator, tiny_image_tokenizer

from mentor.conditioning import Condition, encode_condition
from mentor.models import Generator
from mentor.models.decoder import Decoder, unique_prompts
from mentor.models.packing import choose_precision, pack
from mentor.nn import packed
from mentor.nn.packed import Int8Linear, PackedLinear, WeightOnlyInt8Linear, has_fast_int8
from mentor.types import ImageSegment, Prompt, TextSegment

TOKENIZER = tiny_image_tokenizer()
PICTURES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
TWO: Prompt = (TextSegment("a circle"), ImageSegment(PICTURES[0]), ImageSegment(PICTURES[1]))
ONE: Prompt = (TextSegment("a large red circle"), ImageSegment(PICTURES[1]))
WORDS: Prompt = (TextSegment("a blue square at the left"),)
PROMPTS = [ONE, WORDS, TWO, ONE, ()]


def make_generator() -> Generator:
    generator = tiny_generator(TOKENIZER, layers=2)
    torch.nn.init.normal_(generator.head.vectors.free.weight, std=0.3)
    return generator.eval()


def make_condition(prompts: list[Prompt]) -> Condition:
    return encode_condition(prompts, TOKENIZER.encode)


@pytest.fixture(scope="module")
def expected() -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and the logits of each by one run over everything."""
    ids = torch.randint(0, 32, (5, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return ids.flatten(1), make_generator()(make_condition(PROMPTS), ids)


@pytest.mark.parametrize("packed_", [False, True])
def test_steps_equal_teacher_forcing(expected: tuple[torch.Tensor, torch.Tensor], packed_: bool) -> None:
    ids, logits = expected
    decoder = Decoder(pack(make_generator(), "fp32") if packed_ else make_generator())
    prompts = decoder.prefill(make_condition(PROMPTS))
    cache = decoder.make_cache([prompts], 64, [0])
    with torch.inference_mode():
        torch.testing.assert_close(torch.stack([p.first for p in prompts]), logits[:, 0], atol=1e-4, rtol=0)
        for at in range(63):
            step = decoder.step(ids[:, at : at + 1], at, cache, at + 1)
            torch.testing.assert_close(step[:, 0], logits[:, at + 1], atol=1e-4, rtol=0)


def test_several_tokens_at_places_of_their_own(expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids, logits = expected
    decoder = Decoder(make_generator())
    cache = decoder.make_cache([decoder.prefill(make_condition(PROMPTS))] * 2, 70, [0, 0])
    with torch.inference_mode():
        tail = decoder.step(ids[:, :20], 0, cache, 20, tail=1)
        torch.testing.assert_close(tail, logits[:, 20:21].repeat(2, 1, 1), atol=1e-4, rtol=0)
        places = torch.tensor([20, 3, 7, 20, 19])
        chosen = ids.gather(1, places.unsqueeze(1) + torch.arange(4))
        step = decoder.step(chosen, places, cache, 24)
        for row, place in enumerate(places.tolist()):
            wanted = logits[row, place + 1 : place + 5]
            torch.testing.assert_close(step[row], wanted, atol=1e-4, rtol=0)
            torch.testing.assert_close(step[row + 5], wanted, atol=1e-4, rtol=0)


def test_a_prompt_of_several_rows_is_read_once_with_its_own_images() -> None:
    once = unique_prompts(make_condition(PROMPTS))
    assert once.prompts == [ONE, WORDS, TWO, ()]
    assert torch.equal(once.codes.ids, TOKENIZER.encode(PICTURES[[1, 0, 1]]).ids)
    decoder = Decoder(make_generator())
    read = decoder.prefill(make_condition(PROMPTS))
    assert read[0] is read[3] and read[0] is not read[1]
    assert decoder.null(read[0]) is decoder.null(read[1])
    torch.testing.assert_close(decoder.null(read[0]).first, read[4].first, atol=1e-5, rtol=0)


def test_nulls_as_long_as_their_prompts_are_read_once_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = tiny_fused_generator(tiny_image_tokenizer()).eval()
    decoder = Decoder(generator)
    lengths: list[int] = []
    null_prefix = generator.conditioner.null_prefix
    monkeypatch.setattr(generator.conditioner, "null_prefix", lambda n: lengths.append(n) or null_prefix(n))
    prompts = [(TextSegment(" ".join(["red"] * words)),) for words in (1, 2, 1, 3, 4, 1, 5, 1, 2)]
    with torch.inference_mode():
        for prompt in prompts:
            (beside,) = decoder.prefill(Condition([prompt], None))
            assert decoder.null(beside).cache.length == beside.cache.length
    # Each prompt has a mark of its end too. When the fifth length came, that of two words had waited longest.
    assert lengths == [2, 3, 4, 5, 6, 3]


@pytest.mark.parametrize(
    ("precision", "kind"),
    [
        ("fp32", PackedLinear),
        ("bf16", PackedLinear),
        pytest.param("int8", Int8Linear, marks=pytest.mark.skipif(not has_fast_int8(), reason="no 8-bit products")),
    ],
)
def test_packing_replaces_every_product_and_keeps_the_predictions(
    expected: tuple[torch.Tensor, torch.Tensor], precision: str, kind: type
) -> None:
    ids, logits = expected
    generator = pack(make_generator(), precision)
    assert not any(isinstance(module, torch.nn.Linear) for module in generator.backbone.modules())
    assert sum(isinstance(module, kind) for module in generator.backbone.modules()) == 8
    with torch.no_grad():
        ours = generator(make_condition(PROMPTS), ids.view(5, 8, 8))
    close = {"fp32": 1e-4, "bf16": 0.02, "int8": 0.06}[precision]
    assert (ours - logits).norm() < close * logits.norm()


def test_auto_takes_what_the_processor_multiplies_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("mentor.models.packing.has_fast_bf16", lambda fast=fast: fast)
        assert choose_precision("auto", "cpu") == chosen
    assert choose_precision("int8", "cpu") == "int8"


def test_eight_bits_without_the_products_for_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "has_fast_int8", lambda: False)
    with pytest.raises(ValueError, match="precision int8 needs a processor with VNNI"):
        pack(make_generator(), "int8")


def test_on_a_gpu_the_whole_decoder_takes_the_type_of_its_weights() -> None:
    """What is built for a GPU, run where there is none: types must fit from the prompt to the logits."""
    for precision, kind in (("bf16", torch.nn.Linear), ("int8", WeightOnlyInt8Linear)):
        generator = make_generator()
        generator.backbone.to(torch.bfloat16)
        products = {name: child for name, child in generator.backbone.named_modules() if type(child) is torch.nn.Linear}
        for name, child in products.items():
            parent, _, last = name.rpartition(".")
            setattr(generator.backbone.get_submodule(parent), last, packed.gpu_product(child.weight, precision))
        generator.embedding.fix()
        generator.head.fix(lambda table, precision=precision: packed.gpu_product(table, precision))
        assert sum(isinstance(module, kind) for module in generator.backbone.modules()) == 8
        decoder = Decoder(generator)
        assert decoder.dtype == torch.bfloat16
        prompts = decoder.prefill(make_condition([WORDS, ONE]))
        cache = decoder.make_cache([prompts], 64, [0])
        with torch.inference_mode():
            logits = decoder.step(torch.zeros(2, 1, dtype=torch.long), torch.tensor([0, 0]), cache, 64)
        assert logits.shape == (2, 1, 32) and logits.isfinite().all()
