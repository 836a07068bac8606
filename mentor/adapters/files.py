"""Adapters as release folders of their own: `config.json`, safetensors of some kilobytes, and a model card."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mentor.adapters.settings import AdapterConfig
from mentor.adapters.shapes import adapter_shapes
from mentor.errors import UserError
from mentor.hub import fetch
from mentor.models import BackboneConfig
from mentor.models.checkpoint import (
    WEIGHTS,
    Card,
    Release,
    read_config,
    tensors_fingerprint,
    whole_folder,
    write_release,
)


@dataclass(frozen=True)
class Base:
    """The release that an adapter was trained on.

    Attributes:
        name: folder or hub name, as training was given it.
        fingerprint: of its weights.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read from its folder.

    Attributes:
        folder: where it was read from.
        config: its parts.
        weights: of the parts: `lora.LAYER.down` and `.up`, `edits.layers.N.SITE.rotation`, `.weight` and `.bias`.
        base: what it was trained on.
        fingerprint: of the weights.
        about: all of its config.json.
    """

    folder: Path
    config: AdapterConfig
    weights: Mapping[str, Tensor]
    base: Base
    fingerprint: str
    about: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        """Numbers that were trained."""
        return sum(weight.numel() for weight in self.weights.values())


@dataclass(frozen=True)
class Applied:
    """An adapter and how much of it: 1 is as it was trained, 0 nothing."""

    adapter: Adapter
    strength: float = 1.0


# Where an adapter is, with its strength behind an equals sign or beside it if that is not 1.
Place = str | Path | tuple[str | Path, float]


def save_adapter(
    folder: Path, config: AdapterConfig, weights: Mapping[str, Tensor], base: Base, image_size: int, card: Card
) -> None:
    """Write an adapter's release folder; it appears whole or not at all."""
    about = {
        "kind": "adapter",
        "image_size": image_size,
        "adapter": config.model_dump(mode="json"),
        "base": {"name": base.name, "fingerprint": base.fingerprint},
    }
    with whole_folder(folder) as partial:
        write_release(partial, about, weights, sum(weight.numel() for weight in weights.values()), card)


def load_adapters(places: Sequence[Place], release: Release, name: str) -> list[Applied]:
    """The adapters in these places, for a release that they fit.

    Args:
        places: release folders or hub names of adapters, `PLACE`, `PLACE=STRENGTH` or `(PLACE, STRENGTH)`.
        release: what they shall be put on.
        name: of that release, for messages.

    Raises:
        UserError: as `load_adapter` does; or an adapter is named twice, or its strength is no finite number.
    """
    applied: list[Applied] = []
    for place in places:
        folder, strength = parse_place(place)
        adapter = load_adapter(fetch(folder), release, name)
        if any(other.adapter.fingerprint == adapter.fingerprint for other in applied):
            raise UserError(f"adapter {folder} is named twice: name it once, with a strength if need be ({folder}=2)")
        applied.append(Applied(adapter, strength))
    return applied


def parse_place(place: Place) -> tuple[str | Path, float]:
    """Folder and strength.

    Raises:
        UserError: the strength is no finite number.
    """
    if isinstance(place, tuple):
        folder, strength = place
    else:
        folder, strength = place, 1.0
        before, equals, after = str(place).rpartition("=")
        # A folder may have the sign in its name.
        if equals and not Path(place).exists():
            folder, strength = before, _number(after)
    if not math.isfinite(strength):
        raise UserError(
            f"adapter {folder}: its strength is no finite number: write {folder}=0.5, or {folder} alone for 1"
        )
    return folder, strength


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def load_adapter(folder: Path, release: Release, name: str) -> Adapter:
    """The adapter in a folder, for a release that it fits.

    Args:
        folder: the adapter's own release folder.
        release: what it shall be put on.
        name: of that release, for messages.

    Raises:
        UserError: the folder holds no adapter, it is damaged, or it was trained on another release.
    """
    folder = Path(folder)
    about = read_config(folder)
    if about["kind"] != "adapter":
        what = "a generator" if about["kind"] == "generator" else "an image tokenizer"
        raise UserError(f"{folder} holds {what}, not an adapter: give the release folder of a run with adapter=...")
    try:
        config = AdapterConfig.model_validate(about["adapter"])
        base = Base(about["base"]["name"], about["base"]["fingerprint"])
        own = about["fingerprint"]
    except (KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}/config.json describes no adapter ({reason}): copy the folder again") from error
    if base.fingerprint != release.fingerprint:
        raise UserError(
            f"adapter {folder} was trained on {base.name} ({base.fingerprint}), and {name} is {release.fingerprint}: "
            "give that model, or train an adapter on this one"
        )
    weights = _read_weights(folder / WEIGHTS, config, release.generator.config.backbone)
    if tensors_fingerprint(weights) != own:
        raise UserError(f"{folder / WEIGHTS} is not what config.json says it is ({own}): copy the folder again")
    return Adapter(folder, config, weights, base, own, about)


def _read_weights(path: Path, config: AdapterConfig, backbone: BackboneConfig) -> dict[str, Tensor]:
    """The tensors of the file; exactly those, and of the shapes, that the settings make.

    Raises:
        UserError: it cannot be read, or has others.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {path} ({error}): copy the folder again") from error
    expected = adapter_shapes(config, backbone)
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise UserError(
            f"{path} does not fit its config.json: {wrong[:3]} are missing, unknown or of other shapes "
            f"({len(wrong)} in all): copy the folder again"
        )
    return weights
