"""What is trained in each stage, made from the settings and the release folders they name."""

from pathlib import Path
from typing import assert_never

from mentor.adapters import Base, begin_adapter
from mentor.conditioning import learn_material
from mentor.data.streammodule import TrainingData
from mentor.errors import UserError
from mentor.hub import fetch, is_hub_name
from mentor.models import AnyGenerator, build_generator, matched
from mentor.models.checkpoint import (
    Release,
    code_spec,
    load_generator,
    load_image_tokenizer,
    weights_fingerprint,
)
from mentor.tokenizers import ImageTokenizer, build_image_tokenizer
from mentor.training.config import (
    AlignmentTraining,
    GeneratorTraining,
    ImageTokenizerTraining,
    TrainConfig,
    TuningTraining,
)
from mentor.training.fitting import check_codes, check_head, check_references, check_same, check_size
from mentor.training.freeze import freeze
from mentor.training.generator_module import GeneratorModule
from mentor.training.image_tokenizer_module import ImageTokenizerModule

TrainingModule = GeneratorModule | ImageTokenizerModule

# Enough to learn the words of a caption language from; more takes memory and changes nothing.
CAPTIONS = 200_000


def build_module(config: TrainConfig, datamodule: TrainingData) -> TrainingModule:
    """What the stage trains.

    Raises:
        UserError: a release folder is missing or does not fit the settings, or a freeze pattern fits nothing.
    """
    match config:
        case ImageTokenizerTraining():
            if datamodule.codes is not None:
                raise UserError(
                    f"{config.data.places} holds image codes, which an image tokenizer cannot learn from: "
                    "say data.root=DIR with the pictures"
                )
            return _image_tokenizer_module(config)
        case AlignmentTraining():
            generator, image_tokenizer, release = _aligned(config, datamodule)
            return _generator_module(config, generator, image_tokenizer, datamodule, release)
        case TuningTraining():
            release = _load_release(config.init_from, "init_from", config.command)
            module = _generator_module(config, release.generator, release.image_tokenizer, datamodule, release)
            module.base = Base(config.init_from, release.fingerprint)
            return module
        case _:
            assert_never(config)


def _image_tokenizer_module(config: ImageTokenizerTraining) -> ImageTokenizerModule:
    if config.init_from is None:
        tokenizer = build_image_tokenizer(config.image_tokenizer)
    else:
        folder = _require_folder(config.init_from, "init_from", f"stage=tokenizer experiment={config.name}")
        tokenizer = load_image_tokenizer(folder)
        theirs, ours = tokenizer.config.model_dump(), config.image_tokenizer.model_dump()
        check_same(config.init_from, theirs, ours, "image_tokenizer.")
    code_spec(tokenizer, config.data.image_size)
    freeze(tokenizer, config.freeze)
    settings = config.trainer
    return ImageTokenizerModule(tokenizer.train(), config.loss, config.optimizer, settings.max_steps, config.seed)


def _aligned(
    config: AlignmentTraining, datamodule: TrainingData
) -> tuple[AnyGenerator, ImageTokenizer, Release | None]:
    """The generator that stage 1 begins with, its image tokenizer, and the release it is from, if it is from one."""
    command = f"stage=tokenizer experiment={config.name}"
    image_tokenizer = load_image_tokenizer(
        _require_folder(config.image_tokenizer_from, "image_tokenizer_from", command)
    )
    if config.init_from is None:
        material = learn_material(config.conditioner, lambda: datamodule.captions(CAPTIONS))
        spec = code_spec(image_tokenizer, config.data.image_size)
        return build_generator(config.generator, material, spec, image_tokenizer.codebook), image_tokenizer, None
    release = _load_release(config.init_from, "init_from", config.command)
    ours = matched(config.generator, release.generator.spec)
    check_same(config.init_from, release.generator.config.model_dump(), ours.model_dump())
    theirs, ours = weights_fingerprint(release.image_tokenizer), weights_fingerprint(image_tokenizer)
    if theirs != ours:
        raise UserError(
            f"init_from {config.init_from} was trained with image tokenizer {theirs}, but image_tokenizer_from "
            f"{config.image_tokenizer_from} is {ours}: say image_tokenizer_from={config.init_from}"
        )
    return release.generator, image_tokenizer, release


def _generator_module(
    config: GeneratorTraining,
    generator: AnyGenerator,
    image_tokenizer: ImageTokenizer,
    datamodule: TrainingData,
    earlier: Release | None,
) -> GeneratorModule:
    check_head(config.stage, generator.config.head, config.objective.label_smoothing)
    spec = code_spec(image_tokenizer, config.data.image_size)
    check_size(config.data.image_size, spec, generator.spec.grid, image_tokenizer.factor)
    if datamodule.codes is not None:
        ours = weights_fingerprint(image_tokenizer)
        check_codes(datamodule.codes, config.data.places, ours, spec, generator.config)
    check_references(generator.conditioner, datamodule.config.tasks, datamodule.codes is not None)
    if isinstance(config, TuningTraining) and config.adapter is not None:
        begin_adapter(generator, config.adapter)
    freeze(generator, config.freeze)
    return GeneratorModule(
        generator.train(),
        image_tokenizer,
        config.objective,
        config.optimizer,
        config.trainer.max_steps,
        datamodule.config.tasks,
        config.seed,
        # A release that does not say is taken for trained, as drawing takes it.
        earlier is not None and earlier.config.get("training", {}).get("null_condition_trained", True),
    )


def _load_release(folder: str, key: str, command: str) -> Release:
    return load_generator(_require_folder(folder, key, command))


def _require_folder(folder: str, key: str, command: str) -> Path:
    """The folder, or the one in the hub's cache where it is the name of a release on the hub."""
    if not Path(folder).is_dir() and not is_hub_name(folder):
        raise UserError(
            f"{key} {folder} does not exist: train it first with `python -m mentor.train {command}`, "
            f"or say {key}=FOLDER with the release folder of another run"
        )
    try:
        return fetch(folder)
    except UserError as error:
        raise UserError(f"{key}: {error}; `python -m mentor.train {command}` trains one") from error
