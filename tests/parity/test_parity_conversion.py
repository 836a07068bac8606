"""Converted weights against what the original implementations made of them, and against transformers' classes."""

from collections.abc import Sequence

import pytest
import torch
from goldenvectors import Golden, read_golden
from tiny import tiny_text_encoder
from torch import Tensor, nn
from transformers import ChameleonVQVAEConfig, JanusVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.modeling_janus import JanusVQVAE

from mentor.conditioning import Condition, PretrainedText
from mentor.conversion.generators import Beside, convert_generator
from mentor.conversion.image_tokenizers import convert_llamagen_vq, convert_taming_vqgan
from mentor.decoding.settings import SamplingConfig
from mentor.models import Generator
from mentor.sampling import sample
from mentor.tokenizers import ImageTokenizer
from mentor.types import TextSegment

SIZES = {"base_channels": 32, "channel_multiplier": [1, 2, 4], "latent_channels": 48, "num_embeddings": 60}


def randomise(model: nn.Module) -> nn.Module:
    """The model with weights that leave no part of it without a say."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.normal_(float(name.endswith("weight")), 0.2, generator=generator)
        else:
            parameter.data.normal_(std=2 * parameter[0].numel() ** -0.5, generator=generator)
    return model.eval()


def as_taming_names_it(weights: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """transformers has taming's names, but counts the decoder's levels in the order in which they come."""
    renamed = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[:2] == ["decoder", "up"]:
            parts[2] = str(levels - 1 - int(parts[2]))
        renamed[".".join(parts)] = tensor
    return renamed


def test_llamagen_image_tokenizer_gives_the_golden_ids_and_pixels() -> None:
    golden = read_golden("llamagen_vq_small")
    tokenizer, report = convert_llamagen_vq(golden.weights, "golden")
    assert report.tensors == len(golden.weights)
    with torch.no_grad():
        codes = tokenizer.encode(golden.given["images"])
        latents = tokenizer.quant_conv(codes.features)
        drawn = tokenizer.decode_ids(codes.ids)
    assert torch.equal(codes.ids, golden.made["ids"])
    assert (latents - golden.made["pre_quant"]).abs().max() < 1e-4
    assert (drawn - golden.made["decoded"].clamp(-1, 1)).abs().max() < 1e-4


@pytest.fixture(scope="module")
def image_tokenizer() -> ImageTokenizer:
    tokenizer, _ = convert_llamagen_vq(read_golden("llamagen_vq_small").weights, "golden")
    return tokenizer


def test_llamagen_class_conditional_generator_gives_the_golden_logits(image_tokenizer: ImageTokenizer) -> None:
    golden = read_golden("llamagen_gpt_c2i_small")
    generator, report = convert_generator(golden.weights, "golden", Beside(image_tokenizer, 128, 2), repaired=False)
    assert report.tensors == len(golden.weights)
    prompts = [(TextSegment(str(label)),) for label in golden.given["labels"].tolist()]
    with torch.no_grad():
        logits = generator(Condition(prompts, None), golden.given["ids"].view(2, 8, 8))
    assert (logits - golden.made["logits"]).abs().max() < 1e-4


class GoldenText(PretrainedText):
    """Gives the golden features of the captions 0 and 1, or others in their places."""

    rows: Sequence[Tensor]

    def tokens(self, text: str) -> list[int]:
        return [0] * len(self.rows[int(text)])

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        return [self.rows[int(text)] for text in texts]


def convert_text_conditional(golden: Golden, image_tokenizer: ImageTokenizer, repaired: bool, swap: bool) -> Generator:
    """The golden generator; `swap` gives it what stands for nothing in the place of every caption."""
    plain = tiny_text_encoder(width=24)
    text = GoldenText(plain.model, plain.tokenizer)
    features = golden.given["caption_embeddings"]
    if swap:
        features = golden.weights["cls_embedding.uncond_embedding"].float().expand_as(features)
    rows = [row[mask] for row, mask in zip(features, golden.given["caption_mask"].bool(), strict=True)]
    assert len({len(row) for row in rows}) == 2, "captions of two lengths"
    object.__setattr__(text, "rows", rows)
    generator, report = convert_generator(golden.weights, "golden", Beside(image_tokenizer, 128, 2, text), repaired)
    assert report.tensors == len(golden.weights)
    return generator


@pytest.mark.parametrize(("name", "repaired"), [("llamagen_gpt_t2i_small", False), ("repaired_gpt_t2i_small", True)])
def test_text_conditional_generators_of_both_rotary_variants_give_the_golden_logits(
    image_tokenizer: ImageTokenizer, name: str, repaired: bool
) -> None:
    golden = read_golden(name)
    generator = convert_text_conditional(golden, image_tokenizer, repaired, swap=False)
    prompts = [(TextSegment(str(caption)),) for caption in range(2)]
    ids = golden.given["ids"].view(2, 8, 8)
    with torch.no_grad():
        together = generator(Condition(prompts, None), ids)
        alone = generator(Condition(prompts[1:], None), ids[1:])
    assert (together - golden.made["logits"]).abs().max() < 1e-4
    assert (alone - golden.made["logits"][1:]).abs().max() < 1e-4


@pytest.mark.parametrize(("name", "repaired"), [("llamagen_gpt_t2i_small", False), ("repaired_gpt_t2i_small", True)])
def test_nothing_has_the_slots_of_the_caption_that_it_is_compared_with(
    image_tokenizer: ImageTokenizer, name: str, repaired: bool
) -> None:
    """LlamaGen swaps the captions' features and leaves their mask as it is."""
    generator, nothing = (
        convert_text_conditional(read_golden(name), image_tokenizer, repaired, swap) for swap in (False, True)
    )
    condition = Condition([(TextSegment(str(caption)),) for caption in range(2)], None)
    seen: list[Tensor] = []
    config = SamplingConfig(guidance=3.0)
    drawn = sample(generator, condition, [0, 1], config, [lambda logits: seen.append(logits) or logits])
    with torch.no_grad():
        full, null = (each(condition, drawn) for each in (generator, nothing))
    assert (torch.stack(seen, dim=1) - (null + 3.0 * (full - null))).abs().max() < 1e-4


def test_a_converted_generator_draws_with_guidance_as_its_formula_says(image_tokenizer: ImageTokenizer) -> None:
    golden = read_golden("llamagen_gpt_c2i_small")
    generator, _ = convert_generator(golden.weights, "golden", Beside(image_tokenizer, 128, 2), repaired=False)
    prompts = [(TextSegment(str(label)),) for label in golden.given["labels"].tolist()]
    seen: list[Tensor] = []
    drawn = sample(
        generator,
        Condition(prompts, None),
        [0, 1],
        SamplingConfig(guidance=3.0),
        [lambda logits: seen.append(logits) or logits],
    )
    with torch.no_grad():
        given, nothing = (generator(Condition(rows, None), drawn) for rows in (prompts, [(), ()]))
    assert (torch.stack(seen, dim=1) - (nothing + 3.0 * (given - nothing))).abs().max() < 1e-4


def test_taming_vqgan_agrees_with_chameleons_encoder_and_januss_decoder() -> None:
    sizes = SIZES | {"embed_dim": 40}
    encoder = randomise(ChameleonVQVAE(ChameleonVQVAEConfig(**sizes, resolution=32, attn_resolutions=[8])))
    decoder = randomise(JanusVQVAE(JanusVQVAEConfig(**sizes, num_patches=8)))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    # Codes among the latents, so that many are chosen.
    latents = encoder.quant_conv(encoder.encoder(images)).permute(0, 2, 3, 1).flatten(0, 2)
    encoder.quantize.embedding.weight.data.copy_(latents[::2][:60] + 0.1)
    weights = dict(encoder.state_dict()) | {"loss.discriminator.weight": torch.zeros(1)}
    mine = ("decoder.", "post_quant_conv.")
    weights |= {name: tensor for name, tensor in decoder.state_dict().items() if name.startswith(mine)}
    tokenizer, report = convert_taming_vqgan(as_taming_names_it(weights, levels=3), "taming")
    assert [len(names) for names in report.left_out.values()] == [1]
    with torch.no_grad():
        codes = tokenizer.encode(images)
        latents, _, ids = encoder.quantize(encoder.quant_conv(encoder.encoder(images)))
        drawn = decoder.decoder(decoder.post_quant_conv(latents))
        assert torch.equal(codes.ids.flatten(), ids)
        assert len(ids.unique()) > 30, "the codes should differ for the comparison to say something"
        assert (codes.latents - latents).abs().max() < 1e-5
        assert (tokenizer.decode_ids(codes.ids) - drawn.clamp(-1, 1)).abs().max() < 1e-4
