"""Generators and their parts, and the release folders they are kept in."""

import torch

from mentor.models.autoregressive import CodeGenerator
from mentor.models.backbone import Backbone, BackboneConfig
from mentor.models.building import AnyGenerator, build_generator
from mentor.models.continuous import ContinuousGenerator
from mentor.models.dit import DiffusionTransformer
from mentor.models.generator import Generator, GeneratorConfig
from mentor.models.heads import ARHead, ARHeadConfig, DiffusionHead, DiffusionHeadConfig, DiTConfig
from mentor.models.sizes import matched


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
    "AnyGenerator",
    "Backbone",
    "BackboneConfig",
    "CodeGenerator",
    "ContinuousGenerator",
    "DiTConfig",
    "DiffusionHead",
    "DiffusionHeadConfig",
    "DiffusionTransformer",
    "Generator",
    "GeneratorConfig",
    "build_generator",
    "count_parameters",
    "matched",
]
