"""An adapter in training: everything else on the generator is frozen, and peft has the updates of low rank."""

from torch import Tensor, nn

from mentor.adapters.attaching import PromptAdaptation
from mentor.adapters.editing import Editors
from mentor.adapters.lora import PrefixGate, targets
from mentor.adapters.settings import AdapterConfig, LoRAConfig
from mentor.errors import UserError
from mentor.models import Generator
from mentor.models.backbone import Backbone

_NAME = "trained"


def begin_adapter(generator: Generator, config: AdapterConfig) -> None:
    """Freeze the generator and put a new adapter on it, which does nothing yet, in place.

    Raises:
        UserError: there is an adapter on it already, or it has not what the settings name.
    """
    if generator.adaptation is not None:
        raise UserError("the generator has adapters already: begin with the release that they were trained on")
    generator.requires_grad_(False)
    gate = None
    if config.lora is not None:
        gate = PrefixGate() if config.lora.preset == "prefix_attn" else None
        _inject(generator.backbone, config.lora, gate)
    editors = []
    if config.edits is not None:
        editors = [Editors(config.edits, len(generator.backbone.blocks), generator.backbone.config.width)]
    generator.adaptation = PromptAdaptation(editors, [1.0] * len(editors), gate, trained=config)


def adapter_weights(generator: Generator) -> dict[str, Tensor]:
    """The weights of the adapter that `begin_adapter` put on, as they are now, named as in its release."""
    weights = {}
    for name, layer in _lora_layers(generator.backbone).items():
        for part, factors in (("down", layer.lora_A), ("up", layer.lora_B)):
            assert isinstance(factors, nn.ModuleDict)
            weights[f"lora.{name}.{part}"] = factors[_NAME].weight
    adaptation = generator.adaptation
    if isinstance(adaptation, PromptAdaptation):
        for editors in adaptation.editors:
            weights |= {f"edits.{name}": tensor for name, tensor in editors.state_dict().items()}
    return {name: weight.detach() for name, weight in weights.items()}


def _inject(backbone: Backbone, config: LoRAConfig, gate: PrefixGate | None) -> None:
    # Four seconds that only those who train with it should wait for.
    from peft import LoraConfig, inject_adapter_in_model

    chosen = targets(config, len(backbone.blocks))
    settings = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=chosen, bias="none"
    )
    inject_adapter_in_model(settings, backbone, _NAME)
    if gate is not None:
        for layer in _lora_layers(backbone).values():
            assert isinstance(layer.lora_B, nn.ModuleDict)
            layer.lora_B[_NAME].register_forward_hook(gate.hook)


def _lora_layers(backbone: Backbone) -> dict[str, nn.Module]:
    """Name -> layer of each one that peft has put in the place of a linear layer."""
    return {name: module for name, module in backbone.named_modules() if hasattr(module, "lora_A")}
