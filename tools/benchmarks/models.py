"""Models of the sizes in configs/backbone with random weights, and what is drawn with them."""

from dataclasses import replace

import torch

from mentor.conditioning import Condition, NativeConfig, TextTokenizer
from mentor.config import config_folder, read_yaml
from mentor.models import ARHeadConfig, BackboneConfig, CodeGenerator, GeneratorConfig, build_generator
from mentor.sampling import SamplingConfig, sample
from mentor.types import CodeSpec, Prompt, TextSegment

VOCABULARY = 16_384
GRID = (16, 16)
GUIDANCE = 3.0
CAPTION = "a large red circle at the left"
CAPTIONS = (CAPTION, "a small blue square at the right on stripes", "a green star in the middle", "two yellow cups")


def size_config(name: str) -> BackboneConfig:
    """The backbone of configs/backbone/`name`.yaml."""
    return BackboneConfig(**read_yaml(config_folder() / "backbone" / f"{name}.yaml"))


def random_generator(
    backbone: BackboneConfig, grid: tuple[int, int] = GRID, vocabulary: int = VOCABULARY
) -> CodeGenerator:
    """A generator of that size with random weights, the same at every call, in eval mode; texts of up to 63 tokens."""
    torch.manual_seed(0)
    config = GeneratorConfig(conditioner=NativeConfig(max_prefix=64), backbone=backbone, head=ARHeadConfig())
    spec = CodeSpec(grid, vocabulary, code_width=8, feature_width=8)
    # Said twice, every word becomes a token.
    text_tokenizer = TextTokenizer.train(CAPTIONS * 2, 1000)
    generator = build_generator(config, text_tokenizer, spec, torch.randn(vocabulary, 8))
    assert isinstance(generator, CodeGenerator)
    return generator.eval()


def text_condition(batch: int, caption: str = CAPTION) -> Condition:
    """The same text for each of `batch` pictures, as prompts of their own: none is spared that another has."""
    return Condition([(TextSegment(caption),) for _ in range(batch)], None)


def with_null(condition: Condition) -> Condition:
    """The prompts of a condition without images, and after them as many empty ones: the rows that guidance takes."""
    empty: list[Prompt] = [()] * len(condition.prompts)
    return Condition([*condition.prompts, *empty], None)


def prefix_length(generator: CodeGenerator) -> int:
    """Prefix tokens of `CAPTION`, the start token included."""
    with torch.inference_mode():
        return generator.conditioner(text_condition(1)).embeddings.shape[1]


def draw_pictures(generator: CodeGenerator, batch: int, guided: bool, tokens: int) -> None:
    """Draw the first `tokens` codes (whole rows of the grid) of `batch` pictures."""
    whole = generator.spec
    generator.spec = replace(whole, grid=(tokens // whole.grid[1], whole.grid[1]))
    try:
        sample(generator, text_condition(batch), range(batch), SamplingConfig(guidance=GUIDANCE if guided else 1.0))
    finally:
        generator.spec = whole
