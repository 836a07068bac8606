"""What tests of adapters share: kinds of them, prompts, and one that does something without having been trained."""

from pathlib import Path

import torch
from tiny import tiny_generator, tiny_image_tokenizer

from mentor.adapters import Adapter, AdapterConfig, Base, EditsConfig, LoRAConfig, adapter_shapes, load_adapter
from mentor.adapters import save_adapter as save
from mentor.conditioning import Condition
from mentor.models import Generator
from mentor.models.checkpoint import Card, Release
from mentor.types import Prompt, parse_prompt

KINDS = {
    "attn": AdapterConfig(lora=LoRAConfig(preset="attn", rank=2, alpha=6)),
    "all_linear": AdapterConfig(lora=LoRAConfig(preset="all_linear", rank=3)),
    "prefix_attn": AdapterConfig(lora=LoRAConfig(preset="prefix_attn", rank=2)),
    "edits": AdapterConfig(edits=EditsConfig(rank=3, first=2, last=3)),
    "one layer": AdapterConfig(edits=EditsConfig(rank=2, first=0, last=1, layers=(1,))),
    "lora and edits": AdapterConfig(lora=LoRAConfig(rank=2), edits=EditsConfig(rank=2)),
    "prefix lora and edits": AdapterConfig(lora=LoRAConfig(preset="prefix_attn"), edits=EditsConfig(rank=2)),
}
PROMPTS: list[Prompt] = [
    parse_prompt("a large red circle at the left", []),
    (),
    parse_prompt("a blue square", []),
]
BASE = Base("releases/model", "0123456789abcdef")


def generator(layers: int = 2) -> Generator:
    """The same one at every call, in eval mode."""
    return tiny_generator(tiny_image_tokenizer(), layers=layers).eval()


def release(of: Generator) -> Release:
    """The release of a generator that the adapters here belong to."""
    return Release(of, tiny_image_tokenizer(), 64, {}, BASE.fingerprint)


def weights(config: AdapterConfig, of: Generator, seed: int = 0, size: float = 0.3) -> dict[str, torch.Tensor]:
    """Weights that change what the generator says."""
    random = torch.Generator().manual_seed(seed)
    shapes = adapter_shapes(config, of.config.backbone)
    return {name: size * torch.randn(shape, generator=random) for name, shape in shapes.items()}


def made(folder: Path, config: AdapterConfig, seed: int = 0) -> Adapter:
    """An adapter that has been written to a folder and read from it."""
    save(folder, config, weights(config, generator(), seed), BASE, 64, Card("test"))
    return load_adapter(folder, release(generator()), BASE.name)


def logits(of: Generator, prompts: list[Prompt] = PROMPTS) -> torch.Tensor:
    """What it says of the same codes after each prompt."""
    ids = torch.randint(0, 32, (len(prompts), *of.spec.grid), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return of(Condition(prompts, None), ids)
