"""What a stage trains, on the meta device: shapes without memory. Of a release its small files are read, no weights."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.optim import Optimizer

from mentor.adapters import begin_adapter
from mentor.conditioning import (
    CaptionConfig,
    ClassLabelConfig,
    ConditionerConfig,
    FusedConfig,
    Material,
    NativeConfig,
    PretrainedPair,
    PretrainedText,
    TextTokenizer,
    learn_material,
    load_material,
)
from mentor.config import validate
from mentor.data.streammodule import TrainingData
from mentor.errors import UserError
from mentor.hub import fetch
from mentor.models import AnyGenerator, GeneratorConfig, build_generator, matched
from mentor.models.checkpoint import code_spec, read_config, require_generator
from mentor.tokenizers import ImageTokenizer, ImageTokenizerConfig, build_image_tokenizer
from mentor.training.build import build_module
from mentor.training.config import AlignmentTraining, ImageTokenizerTraining, TrainConfig, TuningTraining
from mentor.training.fitting import check_codes, check_head, check_same, check_size
from mentor.training.freeze import freeze
from mentor.training.image_tokenizer_module import ImageTokenizerModule
from mentor.training.optim import build_optimizer
from mentor.types import CodeSpec

# Byte-level BPE has at least the bytes.
_LEAST_TEXT_VOCABULARY = 256


@dataclass(frozen=True)
class Blueprint:
    """What a stage trains and uses, all of it on the meta device.

    Attributes:
        module: what is trained, averaged and kept in checkpoints.
        optimizer: of the module.
        image_tokenizer: the trained one, or the frozen one that gives a generator its codes.
        spec: the codes that it makes of the data's pictures.
        parts: name -> module, for a table.
    """

    module: nn.Module
    optimizer: Optimizer
    image_tokenizer: ImageTokenizer
    spec: CodeSpec
    parts: dict[str, nn.Module | nn.Parameter]

    @property
    def generator(self) -> AnyGenerator | None:
        """What all stages but that of the image tokenizer train."""
        return self.module if isinstance(self.module, AnyGenerator) else None


def draw_blueprint(config: TrainConfig, datamodule: TrainingData) -> Blueprint:
    """What `build_module` would make, without its weights.

    The text tokenizer that stage 1 trains is taken for as large as the settings let it be.

    Raises:
        UserError: what `build_module` would raise, as far as that can be known without the weights.
    """
    try:
        config = config.model_copy(update=_releases(config))
    except UserError:
        build_module(config, datamodule)  # it says what to do
        raise
    match config:
        case ImageTokenizerTraining():
            return _draw_image_tokenizer(config, datamodule)
        case AlignmentTraining():
            tokenizer_config, fingerprint = _read_image_tokenizer(config.image_tokenizer_from)
            material = blank_material(config.conditioner)
            if config.init_from is not None:
                theirs = _read_generator(config.init_from)
                spec = _spec_of(config.init_from)
                check_same(config.init_from, theirs.model_dump(), matched(config.generator, spec).model_dump())
                material = blank_material(theirs.conditioner, Path(config.init_from))
            return _draw_generator(config, config.generator, material, tokenizer_config, fingerprint, datamodule)
        case TuningTraining():
            generator = _read_generator(config.init_from)
            tokenizer_config, fingerprint = _read_image_tokenizer(config.init_from)
            material = blank_material(generator.conditioner, Path(config.init_from))
            return _draw_generator(config, generator, material, tokenizer_config, fingerprint, datamodule)
        case _:
            assert_never(config)


def draw_generator(config: GeneratorConfig, material: Material, spec: CodeSpec) -> AnyGenerator:
    """A generator on the meta device, that shares nothing with others of the same material."""
    if isinstance(material, PretrainedText | PretrainedPair):
        material = copy.deepcopy(material)
    with torch.device("meta"):
        codebook = torch.empty(spec.vocab_size, spec.code_width)
        return build_generator(config, material, spec, codebook)


def blank_material(config: ConditionerConfig, release: Path | None = None) -> Material:
    """Material of the right size that takes no time to make; a text tokenizer takes a word for one of its entries.

    Args:
        config: of the conditioner.
        release: the release folder that the generator is from, if it is from one.
    """
    match config:
        case NativeConfig(text_encoder=""):
            learned = None if release is None else load_material(config, release)
            most = max(_LEAST_TEXT_VOCABULARY, config.text_vocab_size)
            vocabulary = learned.vocab_size if isinstance(learned, TextTokenizer) else most
            words = Tokenizer(models.WordLevel({str(number): number for number in range(vocabulary)}, unk_token="0"))
            words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
            return TextTokenizer(words)
        case NativeConfig() | CaptionConfig() | FusedConfig():
            return learn_material(config, list, True) if release is None else load_material(config, release, True)
        case ClassLabelConfig():
            return None
        case _:
            assert_never(config)


def _draw_image_tokenizer(config: ImageTokenizerTraining, datamodule: TrainingData) -> Blueprint:
    if datamodule.codes is not None:
        build_module(config, datamodule)  # it refuses them
    if config.init_from is not None:
        found, _ = _read_image_tokenizer(config.init_from)
        check_same(config.init_from, found.model_dump(), config.image_tokenizer.model_dump(), "image_tokenizer.")
    with torch.device("meta"):
        tokenizer = build_image_tokenizer(config.image_tokenizer)
        spec = code_spec(tokenizer, config.data.image_size)
        freeze(tokenizer, config.freeze)
        module = ImageTokenizerModule(tokenizer.train(), config.loss, config.optimizer, config.trainer.max_steps)
        configured = module.configure_optimizers()
    assert isinstance(configured, dict)
    optimizer = configured["optimizer"]
    parts: dict[str, nn.Module | nn.Parameter] = dict(tokenizer.named_children())
    parts |= {name: part for name, part in module.named_children() if part is not tokenizer}
    return Blueprint(module, optimizer, tokenizer, spec, parts)


def _draw_generator(
    config: AlignmentTraining | TuningTraining,
    generator_config: GeneratorConfig,
    material: Material,
    tokenizer_config: ImageTokenizerConfig,
    fingerprint: str,
    datamodule: TrainingData,
) -> Blueprint:
    check_head(config.stage, generator_config.head, config.objective.label_smoothing)
    with torch.device("meta"):
        image_tokenizer = build_image_tokenizer(tokenizer_config).eval().requires_grad_(False)
    spec = code_spec(image_tokenizer, config.data.image_size)
    if config.init_from is not None:
        check_size(config.data.image_size, spec, _spec_of(config.init_from).grid, image_tokenizer.factor)
    if datamodule.codes is not None:
        check_codes(datamodule.codes, config.data.places, fingerprint, spec, generator_config)
    generator = draw_generator(generator_config, material, spec)
    if isinstance(config, TuningTraining) and config.adapter is not None:
        with torch.device("meta"):
            begin_adapter(generator, config.adapter)
    freeze(generator, config.freeze)
    optimizer = build_optimizer(generator.train(), config.optimizer)
    parts: dict[str, nn.Module | nn.Parameter] = dict(generator.named_children())
    parts |= dict(generator.named_parameters(recurse=False))
    return Blueprint(generator, optimizer, image_tokenizer, spec, parts)


def _releases(config: TrainConfig) -> dict[str, str]:
    """Setting -> folder of the releases that a training begins from; those of the hub are in its cache."""
    named = {key: getattr(config, key, None) for key in ("image_tokenizer_from", "init_from")}
    return {key: str(fetch(place)) for key, place in named.items() if place is not None}


def _read_image_tokenizer(folder: str) -> tuple[ImageTokenizerConfig, str]:
    """The settings and the fingerprint of a release's image tokenizer, its own or the one inside a generator's."""
    path = Path(folder)
    facts = read_config(path)
    if facts["kind"] == "generator":
        facts = read_config(path / "image_tokenizer")
    return validate(ImageTokenizerConfig, facts["image_tokenizer"]), facts["fingerprint"]


def _spec_of(folder: str) -> CodeSpec:
    """What the generator of a release was made for."""
    codes = read_config(Path(folder))["codes"]
    return CodeSpec(**(codes | {"grid": tuple(codes["grid"])}))


def _read_generator(folder: str) -> GeneratorConfig:
    facts = read_config(Path(folder))
    require_generator(facts, folder)
    return validate(GeneratorConfig, facts["generator"])
