"""Adapters against other implementations: peft's own merging, a loop in NumPy, torch's orthogonal parametrization."""

import numpy as np
import torch
from adapting import KINDS, generator, logits
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from mentor.adapters import LoRAConfig
from mentor.adapters.editing import Editor
from mentor.adapters.lora import product, targets


def test_updates_are_what_peft_computes_and_what_it_merges() -> None:
    config = KINDS["all_linear"].lora
    assert config is not None
    own = generator()
    backbone = own.backbone
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets(config, 2), bias="none")
    inject_adapter_in_model(settings, backbone)
    torch.manual_seed(0)
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    layers = {name: module for name, module in backbone.named_modules() if hasattr(module, "lora_A")}
    assert sorted(layers) == sorted(targets(config, 2))
    updates = {
        name: (layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach())
        for name, layer in layers.items()
    }
    said = logits(own)

    fresh = generator()
    with torch.no_grad():
        for name, update in updates.items():
            fresh.backbone.get_submodule(name).weight.add_(product([(update, config.scaling)]).float())
    assert torch.allclose(logits(fresh), said, atol=1e-4)
    for name, layer in layers.items():
        layer.merge()
        ours = fresh.backbone.get_submodule(name).weight
        assert torch.allclose(ours, layer.get_base_layer().weight, atol=1e-6)


def test_presets_name_the_layers_that_peft_finds() -> None:
    backbone = generator().backbone
    theirs = get_peft_model(backbone, LoraConfig(target_modules="all-linear"))
    found = {name for name, module in backbone.named_modules() if hasattr(module, "lora_A")}
    assert theirs is not None and found == set(targets(LoRAConfig(preset="all_linear"), 2))
    attention = {name for name in found if ".attention." in name}
    assert attention == set(targets(LoRAConfig(preset="attn"), 2)) == set(targets(LoRAConfig(preset="prefix_attn"), 2))


def test_an_edit_is_that_of_loreft_written_as_a_loop() -> None:
    torch.manual_seed(0)
    editor = Editor(10, 3)
    for parameter in editor.parameters():
        nn.init.normal_(parameter)
    h = torch.randn(2, 4, 10)
    found = editor(h).detach().numpy()
    matrix, source, bias = (parameter.detach().double().numpy() for parameter in editor.parameters())
    # Gram-Schmidt, column by column.
    columns: list[np.ndarray] = []
    for column in matrix.T:
        rest = column - sum(((column @ one) * one for one in columns), np.zeros(10))
        columns.append(rest / np.linalg.norm(rest))
    rotation = np.stack(columns, axis=1)
    for row in range(2):
        for token in range(4):
            state = h[row, token].double().numpy()
            expected = state + rotation @ (source @ state + bias - rotation.T @ state)
            assert np.allclose(found[row, token], expected, atol=1e-4)


def test_an_edit_is_that_of_a_layer_with_torchs_orthogonal_weight() -> None:
    torch.manual_seed(1)
    rotate = orthogonal(nn.Linear(3, 12, bias=False))
    source = nn.Linear(12, 3)
    editor = Editor(12, 3)
    with torch.no_grad():
        editor.rotation.copy_(rotate.weight)
        editor.weight.copy_(source.weight)
        editor.bias.copy_(source.bias)
    h = torch.randn(5, 2, 12)
    expected = h + rotate(source(h) - h @ rotate.weight)
    assert torch.allclose(editor(h), expected, atol=1e-5)
