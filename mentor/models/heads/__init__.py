"""Heads: what a generator predicts of the image's tokens, and how.

A new head is a module with a config of its own kind in a file of its own, its name in the union here, and a generator
that uses it with a case in `mentor.models.build_generator`.
"""

from typing import Annotated

from pydantic import Field

from mentor.models.heads.ar import ARHead, ARHeadConfig, CodeEmbedding, CodeVectors
from mentor.models.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from mentor.models.heads.dit import DiTConfig, DiTHead
from mentor.models.heads.latents import LatentEmbedding, LatentScale

HeadConfig = Annotated[ARHeadConfig | DiffusionHeadConfig | DiTConfig, Field(discriminator="kind")]

__all__ = [
    "ARHead",
    "ARHeadConfig",
    "CodeEmbedding",
    "CodeVectors",
    "DiTConfig",
    "DiTHead",
    "DiffusionHead",
    "DiffusionHeadConfig",
    "HeadConfig",
    "LatentEmbedding",
    "LatentScale",
]
