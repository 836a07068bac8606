"""Sizes that follow from others: every head's generator has as many parameters as one of the AR head."""

from typing import assert_never

from mentor.models.generator import GeneratorConfig
from mentor.models.heads import ARHeadConfig, DiffusionHeadConfig, DiTConfig
from mentor.models.heads.diffusion import mlp_parameters
from mentor.models.heads.dit import dit_parameters
from mentor.nn.layers import swiglu_hidden
from mentor.types import CodeSpec

# Widths are multiples of these.
_HIDDEN_STEP, _MLP_STEP, _WIDEST_MLP = 16, 8, 8192


def matched(config: GeneratorConfig, spec: CodeSpec) -> GeneratorConfig:
    """The settings with what follows from others filled in; what is given stays.

    An AR head has two vectors for every code. In a diffusion transformer those parameters go into a wider feed-forward,
    with a diffusion head into a wider MLP, so that the same backbone means the same size.
    """
    head, backbone = config.head, config.backbone
    match head:
        case ARHeadConfig():
            return config
        case DiTConfig() if not backbone.hidden:
            spare = ar_parameters(spec, backbone.width) - dit_parameters(
                spec.code_width, backbone.width, backbone.layers
            )
            wider = spare / (3 * backbone.width * backbone.layers)
            hidden = round((swiglu_hidden(backbone.width) + wider) / _HIDDEN_STEP) * _HIDDEN_STEP
            filled = backbone.model_copy(update={"hidden": max(_HIDDEN_STEP, hidden)})
            return config.model_copy(update={"backbone": filled})
        case DiffusionHeadConfig() if not head.width:
            spare = ar_parameters(spec, backbone.width) - (spec.code_width + 1) * backbone.width
            width = min(
                range(_MLP_STEP, _WIDEST_MLP + 1, _MLP_STEP),
                key=lambda width: abs(mlp_parameters(head, spec.code_width, backbone.width, width) - spare),
            )
            return config.model_copy(update={"head": head.model_copy(update={"width": width})})
        case DiTConfig() | DiffusionHeadConfig():
            return config
        case _:
            assert_never(head)


def ar_parameters(spec: CodeSpec, width: int) -> int:
    """Numbers that an AR head and the embedding of its codes learn."""
    hidden = ARHeadConfig().hidden
    tied = (spec.code_width + 1) * hidden + hidden * width
    return 2 * (spec.vocab_size * width + tied)
