"""Adapters: small changes to a generator that are trained, kept and shared apart from it.

`settings.py` says what an adapter may be, `tuning.py` puts a new one on a generator for training, `files.py` keeps it
in a release folder of its own, and `attaching.py` puts finished ones on a generator that draws.
"""

from mentor.adapters.attaching import Attached, PromptAdaptation, attach
from mentor.adapters.files import Adapter, Applied, Base, Place, load_adapter, load_adapters, parse_place, save_adapter
from mentor.adapters.settings import AdapterConfig, EditsConfig, LoRAConfig
from mentor.adapters.shapes import adapter_shapes, count_adapter
from mentor.adapters.tuning import adapter_weights, begin_adapter

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Applied",
    "Attached",
    "Base",
    "EditsConfig",
    "LoRAConfig",
    "Place",
    "PromptAdaptation",
    "adapter_shapes",
    "adapter_weights",
    "attach",
    "begin_adapter",
    "count_adapter",
    "load_adapter",
    "load_adapters",
    "parse_place",
    "save_adapter",
]
