"""Noise: how it is added in training, and how samplers take it away. Networks are told of nothing here.

A new process is a class that keeps the contract of `Process`, with a config of its own kind, a case in `build_process`
and its samplers in `samplers`.
"""

from mentor.diffusion.draws import Draws
from mentor.diffusion.processes import (
    DDPMConfig,
    FlowConfig,
    Process,
    ProcessConfig,
    build_process,
)
from mentor.diffusion.samplers import ANCESTRAL, SAMPLERS, calls, check_sampler, denoise

__all__ = [
    "ANCESTRAL",
    "SAMPLERS",
    "DDPMConfig",
    "Draws",
    "FlowConfig",
    "Process",
    "ProcessConfig",
    "build_process",
    "calls",
    "check_sampler",
    "denoise",
]
