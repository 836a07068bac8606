"""Converted weights against what the original implementations made of them, and against transformers' classes."""

import pytest
import torch
from goldenvectors import read_golden
from torch import Tensor, nn
from transformers import ChameleonVQVAEConfig, JanusVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.modeling_janus import JanusVQVAE

from mentor.conditioning import Condition
from mentor.conversion.generators import convert_llamagen_gpt
from mentor.conversion.image_tokenizers import convert_llamagen_vq, convert_taming_vqgan
from mentor.decoding.settings import SamplingConfig
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
    generator, report = convert_llamagen_gpt(golden.weights, "golden", image_tokenizer, 128, heads=2)
    assert report.tensors == len(golden.weights)
    prompts = [(TextSegment(str(label)),) for label in golden.given["labels"].tolist()]
    with torch.no_grad():
        logits = generator(Condition(prompts, None), golden.given["ids"].view(2, 8, 8))
    assert (logits - golden.made["logits"]).abs().max() < 1e-4


def test_a_converted_generator_draws_with_guidance_as_its_formula_says(image_tokenizer: ImageTokenizer) -> None:
    golden = read_golden("llamagen_gpt_c2i_small")
    generator, _ = convert_llamagen_gpt(golden.weights, "golden", image_tokenizer, 128, heads=2)
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
