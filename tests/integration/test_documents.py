"""What README and CONTRIBUTING say is so: the table of sizes, the files they link to, the commands' names."""

import re
from pathlib import Path

import pytest
import torch

from mentor.conditioning import NativeConfig, TextTokenizer
from mentor.config import read_yaml
from mentor.models import ARHeadConfig, BackboneConfig, GeneratorConfig, build_generator, count_parameters
from mentor.models.checkpoint import code_spec
from mentor.tokenizers import ImageTokenizerConfig, build_image_tokenizer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT_VOCABULARY = 2048


@pytest.fixture(scope="module")
def text_tokenizer() -> TextTokenizer:
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (12000, 6), generator=generator).tolist()
    return TextTokenizer.train([" ".join("".join(map(chr, word)) for word in letters)], TEXT_VOCABULARY)


@pytest.mark.parametrize("size", ["tiny", "b", "l", "xl", "xxl"])
def test_table_of_sizes(size: str, text_tokenizer: TextTokenizer) -> None:
    """Built without memory for the weights, at 512 px and with the image tokenizer's default layout."""
    assert text_tokenizer.vocab_size == TEXT_VOCABULARY
    shape = read_yaml(ROOT / "configs" / "backbone" / f"{size}.yaml")
    config = GeneratorConfig(conditioner=NativeConfig(), backbone=BackboneConfig(**shape), head=ARHeadConfig())
    with torch.device("meta"):
        image_tokenizer = build_image_tokenizer(ImageTokenizerConfig())
        spec = code_spec(image_tokenizer, 512)
        codebook = torch.empty(spec.vocab_size, spec.code_width)
        parts = count_parameters(build_generator(config, text_tokenizer, spec, codebook))
    parts["codes"] = parts["embedding"] + parts["head"]
    counts = [f"{parts[name] / 1e6:.1f}" for name in ("conditioner", "backbone", "codes", "total")]
    row = f"| `{size}` | {shape['layers']} x {shape['width']} x {shape['heads']} | {' | '.join(counts)} |"
    assert row in README, f"README should say {row}"
    tokenizer_size = sum(parameter.numel() for parameter in image_tokenizer.parameters()) / 1e6
    assert f"{tokenizer_size:.1f} M" in README


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_linked_files_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_named_modules_exist() -> None:
    """Every `mentor/...` path and `tools/...` script that the documents name is there."""
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        named = set(re.findall(r"\b(?:mentor|tools|configs|data_recipes|tests)/[\w/]*\w(?:\.py|\.yaml|\.md|/)", text))
        assert named
        assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
