"""Converted weights against what the original implementations made of them, and against transformers' classes."""

import torch
from goldenvectors import read_golden
from torch import Tensor, nn
from transformers import ChameleonVQVAEConfig, JanusVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.modeling_janus import JanusVQVAE

from mentor.conversion.image_tokenizers import convert_llamagen_vq, convert_taming_vqgan

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
