"""Generators and their parts, and the release folders they are kept in."""

import torch
from jaxtyping import Float
from torch import Tensor

from mentor.conditioning import Material
from mentor.models.backbone import Backbone, BackboneConfig
from mentor.models.generator import Generator, GeneratorConfig
from mentor.models.heads import ARHead, ARHeadConfig
from mentor.types import CodeSpec


def build_generator(
    config: GeneratorConfig, material: Material, spec: CodeSpec, codebook: Float[Tensor, "v c"]
) -> Generator:
    """The generator that `config` describes, with fresh weights, for codes of the given kind."""
    return Generator(config, material, spec, codebook)


def count_parameters(module: torch.nn.Module) -> dict[str, int]:
    """Parameters of each direct part of `module`, and `total`."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}
    own = sum(p.numel() for p in module.parameters(recurse=False))
    if own:
        parts["own"] = own
    return parts | {"total": sum(parts.values())}


__all__ = [
    "ARHead",
    "ARHeadConfig",
    "Backbone",
    "BackboneConfig",
    "Generator",
    "GeneratorConfig",
    "build_generator",
    "count_parameters",
]
