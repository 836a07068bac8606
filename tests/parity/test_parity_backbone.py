"""The backbone against transformers' Llama with the same weights, and rotary positions against a plain loop."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

from mentor.models.backbone import Backbone, BackboneConfig
from mentor.nn.rope import apply_rotary, rotary_table


def llama_with_weights_of(backbone: Backbone, config: BackboneConfig) -> LlamaModel:
    hidden = backbone.blocks[0].feed_forward.down.in_features
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=1,
            hidden_size=config.width,
            intermediate_size=hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads or config.heads,
            rms_norm_eps=config.norm_eps,
            attention_bias=False,
            mlp_bias=False,
        )
    ).eval()
    head_width = config.width // config.heads
    kv_width = (config.kv_heads or config.heads) * head_width
    with torch.no_grad():
        for ours, theirs in zip(backbone.blocks, llama.layers, strict=True):
            queries, keys, values = ours.attention.qkv.weight.split((config.width, kv_width, kv_width))
            theirs.self_attn.q_proj.weight.copy_(queries)
            theirs.self_attn.k_proj.weight.copy_(keys)
            theirs.self_attn.v_proj.weight.copy_(values)
            theirs.self_attn.o_proj.weight.copy_(ours.attention.out.weight)
            gate, up = ours.feed_forward.gate_up.weight.chunk(2)
            theirs.mlp.gate_proj.weight.copy_(gate)
            theirs.mlp.up_proj.weight.copy_(up)
            theirs.mlp.down_proj.weight.copy_(ours.feed_forward.down.weight)
            theirs.input_layernorm.weight.copy_(ours.attention_norm.weight)
            theirs.post_attention_layernorm.weight.copy_(ours.feed_forward_norm.weight)
        llama.norm.weight.copy_(backbone.norm.weight)
    return llama


def check_against_llama(kv_heads: int) -> None:
    torch.manual_seed(0)
    config = BackboneConfig(layers=3, width=64, heads=4, kv_heads=kv_heads)
    backbone = Backbone(config).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 7, 64)
    mask = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7)
    with torch.no_grad():
        ours = backbone(x, backbone.rotary(torch.zeros(2, 7, 2)), mask)
        # All at position 0: Llama's one-dimensional rotary then turns nothing, as our grid position (0, 0) does.
        theirs = llama_with_weights_of(backbone, config)(
            inputs_embeds=x, position_ids=torch.zeros(2, 7, dtype=torch.long), attention_mask=torch.ones(2, 7)
        ).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert ours.std() > 0.1


def test_equals_llama() -> None:
    check_against_llama(kv_heads=0)


def test_equals_llama_with_grouped_query_heads() -> None:
    check_against_llama(kv_heads=2)


def test_rotary_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    heads, tokens, width, base = 2, 5, 8, 100.0
    x = rng.normal(size=(1, heads, tokens, width))
    cells = rng.integers(0, 9, size=(1, tokens, 2))
    expected = np.zeros_like(x)
    for head in range(heads):
        for token in range(tokens):
            for pair in range(width // 2):
                axis, j = divmod(pair, width // 4)
                angle = cells[0, token, axis] * base ** (-2 * j / (width / 2))
                even, odd = x[0, head, token, 2 * pair], x[0, head, token, 2 * pair + 1]
                expected[0, head, token, 2 * pair] = even * np.cos(angle) - odd * np.sin(angle)
                expected[0, head, token, 2 * pair + 1] = even * np.sin(angle) + odd * np.cos(angle)
    table = rotary_table(torch.tensor(cells, dtype=torch.float32), width, base)
    assert np.allclose(apply_rotary(torch.tensor(x, dtype=torch.float32), table).numpy(), expected, atol=1e-5)
