"""Release folders: what one loads and shares. Plain JSON and safetensors, nothing that runs code when it is read."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mentor import __version__
from mentor.conditioning import load_material, save_material
from mentor.errors import UserError
from mentor.models.building import AnyGenerator, build_generator
from mentor.models.cards import Card, render_card
from mentor.models.generator import Generator, GeneratorConfig
from mentor.releases import WEIGHTS
from mentor.tokenizers import ImageTokenizer, ImageTokenizerConfig, build_image_tokenizer
from mentor.types import CodeSpec

# 2: layouts of published models, pretrained encoders in folders of their own, codebooks in space. 3: adapters, words
# read by a pretrained encoder. 4: continuous tokens, diffusion transformers. Earlier ones are read as well.
FORMAT_VERSION = 4


@dataclass(frozen=True)
class Release:
    """A generator with the image tokenizer it was trained on, in eval mode."""

    generator: AnyGenerator
    image_tokenizer: ImageTokenizer
    image_size: int
    config: Mapping[str, Any]
    fingerprint: str


def code_spec(image_tokenizer: ImageTokenizer, image_size: int) -> CodeSpec:
    """What `image_tokenizer` makes of square pictures of `image_size` pixels.

    Raises:
        UserError: the size is no multiple of the tokenizer's factor.
    """
    if image_size % image_tokenizer.factor:
        raise UserError(
            f"image_size {image_size} is no multiple of the image tokenizer's factor {image_tokenizer.factor}: "
            f"take {image_size // image_tokenizer.factor * image_tokenizer.factor or image_tokenizer.factor}"
        )
    side = image_size // image_tokenizer.factor
    return CodeSpec((side, side), image_tokenizer.vocab_size, image_tokenizer.code_width, image_tokenizer.feature_width)


def save_image_tokenizer(folder: Path, tokenizer: ImageTokenizer, image_size: int, card: Card) -> None:
    """Write a release folder of an image tokenizer; the folder appears whole or not at all."""
    config = {"kind": "image_tokenizer", "image_size": image_size, "image_tokenizer": tokenizer.config.model_dump()}
    with whole_folder(folder) as partial:
        write_release(partial, config, tokenizer.state_dict(), _size(tokenizer), card)


def save_generator(
    folder: Path, generator: Generator, image_tokenizer: ImageTokenizer, image_size: int, card: Card
) -> None:
    """Write a release folder of a generator, its image tokenizer inside; the folder appears whole or not at all."""
    config = {
        "kind": "generator",
        "image_size": image_size,
        "generator": generator.config.model_dump(),
        "codes": {
            "grid": list(generator.spec.grid),
            "vocab_size": generator.spec.vocab_size,
            "code_width": generator.spec.code_width,
            "feature_width": generator.spec.feature_width,
        },
    }
    with whole_folder(folder) as partial:
        write_release(partial, config, generator.state_dict(), _size(generator), card, generator.kept_apart)
        save_material(generator.material, partial)
        inner = {"kind": "image_tokenizer", "image_size": image_size}
        inner["image_tokenizer"] = image_tokenizer.config.model_dump()
        (partial / "image_tokenizer").mkdir()
        inner_card = Card(f"{card.title}: image tokenizer")
        size = _size(image_tokenizer)
        write_release(partial / "image_tokenizer", inner, image_tokenizer.state_dict(), size, inner_card)


def load_image_tokenizer(folder: Path) -> ImageTokenizer:
    """The image tokenizer of a release folder, its own or the one inside a generator's, in eval mode.

    Raises:
        UserError: the folder is no release, or a part of it is missing or damaged.
    """
    folder = Path(folder)
    config = read_config(folder)
    _refuse_adapter(config, folder)
    if config["kind"] == "generator":
        folder = folder / "image_tokenizer"
        config = read_config(folder)
    tokenizer = build_image_tokenizer(_parse(ImageTokenizerConfig, config, "image_tokenizer", folder))
    load_weights(tokenizer, folder)
    return tokenizer.eval()


def load_generator(folder: Path) -> Release:
    """The generator of a release folder with its image tokenizer, on the CPU in eval mode.

    Raises:
        UserError: the folder is no release of a generator, or a part of it is missing or damaged.
    """
    folder = Path(folder)
    config = read_config(folder)
    require_generator(config, folder)
    image_tokenizer = load_image_tokenizer(folder)
    spec = code_spec(image_tokenizer, config["image_size"])
    generator_config = _parse(GeneratorConfig, config, "generator", folder)
    material = load_material(generator_config.conditioner, folder)
    generator = build_generator(generator_config, material, spec, image_tokenizer.codebook)
    load_weights(generator, folder, generator.kept_apart)
    return Release(generator.eval(), image_tokenizer, config["image_size"], config, config["fingerprint"])


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a release folder.

    Raises:
        UserError: there is none, it is not ours, or it is of a newer version.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{folder} is not a release folder (no readable config.json in it): "
            f"give the `release` folder that training writes into its run folder"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): copy the release folder again") from error
    if not isinstance(config, dict) or config.get("format") != "mentor" or "kind" not in config:
        raise UserError(f'{path} does not describe a mentor model (no "format": "mentor" in it)')
    if config.get("version", 0) > FORMAT_VERSION:
        raise UserError(f"{path} has format version {config['version']}, this is {FORMAT_VERSION}: update mentor")
    return config


def require_generator(config: Mapping[str, Any], folder: str | Path) -> None:
    """Nothing, where the config.json of a release folder is a generator's.

    Raises:
        UserError: it is another one's.
    """
    _refuse_adapter(config, folder)
    if config["kind"] != "generator":
        raise UserError(f"{folder} holds an image tokenizer, not a generator: give the release folder of stage 1 or 2")


def _refuse_adapter(config: Mapping[str, Any], folder: str | Path) -> None:
    if config["kind"] == "adapter":
        base = config.get("base", {}).get("name", "?")
        raise UserError(
            f"{folder} holds an adapter, not a model: give the model that it is for ({base}), and {folder} "
            "with --adapter where there is such an option"
        )


def load_weights(module: nn.Module, folder: Path, apart: tuple[str, ...] = ()) -> None:
    """Load a release folder's weights into `module`; every name and shape must match.

    Args:
        module: what the weights are of.
        folder: the release folder.
        apart: beginnings of the names of tensors that are kept in files of their own and are there already.

    Raises:
        UserError: the file is missing or damaged, or names or shapes differ; the message lists the first few.
    """
    path = Path(folder) / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {path} ({error}): copy the release folder again") from error
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(apart)}
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} against {tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if weights[name].shape != own[name].shape
    ]
    if missing or unknown or shapes:
        raise UserError(
            f"{path} does not fit the model: missing {missing[:4]}, unknown {unknown[:4]}, other shapes {shapes[:4]} "
            f"(missing, unknown and differing in all: {len(missing)}, {len(unknown)}, {len(shapes)})"
        )
    module.load_state_dict(weights, strict=not apart)


def weights_fingerprint(module: nn.Module) -> str:
    """Sixteen hex digits that name the weights, see `tensors_fingerprint`."""
    return tensors_fingerprint(module.state_dict())


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits that name tensors: sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _parse(kind: Any, config: Mapping[str, Any], key: str, folder: Path) -> Any:
    try:
        return TypeAdapter(kind).validate_python(config[key])
    except (KeyError, ValidationError) as error:
        raise UserError(
            f"{folder}/config.json has no valid {key!r} part ({error}): copy the release folder again"
        ) from error


def write_release(
    folder: Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    parameters: int,
    card: Card,
    apart: tuple[str, ...] = (),
) -> None:
    """Write config.json, weights and model card of a release into a folder that is there.

    Args:
        folder: where to.
        config: what the release is, beside what every release says of itself.
        tensors: the weights.
        parameters: how many numbers of them are learned.
        card: what people are told.
        apart: beginnings of the names of tensors that are kept in files of their own.
    """
    header = {
        "format": "mentor",
        "version": FORMAT_VERSION,
        "mentor": __version__,
        "fingerprint": tensors_fingerprint(tensors),
    }
    about = {"training": dict(card.training), "metrics": dict(card.metrics), "data": dict(card.data)}
    text = json.dumps(header | config | about, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(apart)}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}, folder / WEIGHTS)
    shutil.copymode(folder / "config.json", folder / WEIGHTS)  # safetensors lets the owner alone read them
    if card.samples is not None:
        card.samples.save(folder / "samples.png")
    (folder / "README.md").write_text(render_card(card, config, parameters), encoding="utf-8")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class whole_folder:
    """Context that gives a temporary folder beside `folder` and renames it into place when all went well."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.partial = self.folder.with_name(self.folder.name + ".partial")

    def __enter__(self) -> Path:
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"cannot write {self.partial} ({error.strerror}): choose a folder that can be written"
            ) from error
        return self.partial

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        for path in self.partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        old = self.folder.with_name(self.folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self.partial.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)
