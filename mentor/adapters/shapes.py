"""Names and shapes of an adapter's weights, by its settings and those of the backbone."""

import torch

from mentor.adapters.editing import Editors
from mentor.adapters.lora import linear, targets
from mentor.adapters.settings import AdapterConfig
from mentor.models import Backbone, BackboneConfig


def adapter_shapes(config: AdapterConfig, backbone_config: BackboneConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight that the adapter has.

    Raises:
        UserError: the adapter asks for what the backbone has not.
    """
    with torch.device("meta"):
        backbone = Backbone(backbone_config)
        shapes: dict[str, tuple[int, ...]] = {}
        if config.lora is not None:
            for name in targets(config.lora, len(backbone.blocks)):
                layer = linear(backbone, name)
                shapes[f"lora.{name}.down"] = (config.lora.rank, layer.in_features)
                shapes[f"lora.{name}.up"] = (layer.out_features, config.lora.rank)
        if config.edits is not None:
            editors = Editors(config.edits, len(backbone.blocks), backbone_config.width)
            shapes |= {f"edits.{name}": tuple(tensor.shape) for name, tensor in editors.state_dict().items()}
    return shapes


def count_adapter(config: AdapterConfig, backbone_config: BackboneConfig) -> int:
    """How many numbers the adapter has."""
    return sum(torch.Size(shape).numel() for shape in adapter_shapes(config, backbone_config).values())
