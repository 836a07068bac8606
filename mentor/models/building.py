"""From settings to a generator of their kind."""

from typing import assert_never

from jaxtyping import Float
from torch import Tensor

from mentor.conditioning import Material
from mentor.models.autoregressive import CodeGenerator
from mentor.models.continuous import ContinuousGenerator
from mentor.models.dit import DiffusionTransformer
from mentor.models.generator import GeneratorConfig
from mentor.models.heads import ARHeadConfig, DiffusionHeadConfig, DiTConfig
from mentor.models.sizes import matched
from mentor.types import CodeSpec

# Every kind of generator; a match over them must know all.
AnyGenerator = CodeGenerator | ContinuousGenerator | DiffusionTransformer


def build_generator(
    config: GeneratorConfig, material: Material, spec: CodeSpec, codebook: Float[Tensor, "v c"]
) -> AnyGenerator:
    """The generator that `config` describes, with fresh weights, for codes of the given kind."""
    config = matched(config, spec)
    match config.head:
        case ARHeadConfig():
            return CodeGenerator(config, material, spec, codebook)
        case DiffusionHeadConfig():
            return ContinuousGenerator(config, material, spec, codebook)
        case DiTConfig():
            return DiffusionTransformer(config, material, spec, codebook)
        case _:
            assert_never(config.head)
