"""A checkpoint of another project to a release folder, and back."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from safetensors.torch import save
from torch import Tensor

from mentor.conditioning import load_pretrained_text, load_pretrained_vision
from mentor.conversion.generators import (
    Beside,
    check_llamagen_layout,
    convert_generator,
    map_generator,
)
from mentor.conversion.image_tokenizers import (
    check_llamagen_shape,
    convert_llamagen_vq,
    convert_taming_vqgan,
    map_llamagen_vq,
)
from mentor.conversion.mapping import Report, give_back
from mentor.conversion.reading import PARTS, read_checkpoint
from mentor.data.storage.whole import unwritable, whole_file
from mentor.errors import UserError
from mentor.models.checkpoint import (
    Card,
    code_spec,
    load_generator,
    load_image_tokenizer,
    read_config,
    save_generator,
    save_image_tokenizer,
)
from mentor.tokenizers import ImageTokenizer

Kind = Literal["llamagen_vq", "llamagen_gpt", "mentor", "taming_vqgan"]
_IMAGE_SIZE = 256


@dataclass(frozen=True)
class Given:
    """What a checkpoint does not say itself.

    Attributes:
        image_size: side of the pictures in pixels; None takes the image tokenizer's, or 256 for one.
        part: the name under which the weights lie in the file, such as model or ema; None takes the first that is
            there, and averaged weights first for an image tokenizer, as LlamaGen's own tools do.
        image_tokenizer: release folder of the image tokenizer whose codes a generator draws.
        heads: query heads of a generator; 0 takes those of the published size of its width.
        text_encoder: folder or hub name of the text encoder that a generator was trained with, if it reads text.
        vision_encoder: likewise of the image encoder, if it reads images.
    """

    image_size: int | None = None
    part: str | None = None
    image_tokenizer: Path | None = None
    heads: int = 0
    text_encoder: str | None = None
    vision_encoder: str | None = None


def convert(kind: Kind, source: Path, output: Path, given: Given) -> Report:
    """Write the release folder `output` of the checkpoint `source`.

    Args:
        kind: what the checkpoint holds.
        source: a file.
        output: a folder that is not there yet.
        given: what the checkpoint does not say.

    Raises:
        UserError: the checkpoint is not of this kind, damaged, or would run code, or `output` is there already.
    """
    if output.exists():
        raise UserError(f"{output} is there already: give the name of a folder that is not")
    match kind:
        case "llamagen_vq":
            tokenizer, report = convert_llamagen_vq(_read(source, given, "ema"), str(source))
            _save_tokenizer(kind, tokenizer, report, source, output, given)
        case "taming_vqgan":
            tokenizer, report = convert_taming_vqgan(_read(source, given, "ema"), str(source))
            _save_tokenizer(kind, tokenizer, report, source, output, given)
        case "llamagen_gpt":
            report = _convert_generator(kind, source, output, given, repaired=False)
        case "mentor":
            report = _convert_generator(kind, source, output, given, repaired=True)
        case _:
            assert_never(kind)
    return report


def convert_back(kind: Kind, release: Path, output: Path) -> Report:
    """Write the checkpoint file `output` of the release folder `release`, under the names of LlamaGen.

    Args:
        kind: what the file is to hold.
        release: of an image tokenizer, or of a generator with one.
        output: ends in .safetensors, or in .pt for the weights under "model" as LlamaGen's own tools read them.

    Raises:
        UserError: the release holds nothing that these names could describe, or the file cannot be written.
    """
    if output.exists():
        raise UserError(f"{output} is there already: give the name of a file that is not")
    if output.suffix not in (".safetensors", ".pt"):
        raise UserError(f"{output} must end in .safetensors or .pt")
    match kind:
        case "llamagen_vq":
            tokenizer = load_image_tokenizer(release)
            check_llamagen_shape(tokenizer, str(release))
            folder = release / "image_tokenizer" if read_config(release)["kind"] == "generator" else release
            weights = give_back(tokenizer, map_llamagen_vq(tokenizer), _read_origin(folder, kind).get("types", {}))
        case "llamagen_gpt" | "mentor":
            generator = load_generator(release).generator
            check_llamagen_layout(generator, str(release))
            origin = _read_origin(release, kind)
            weights = give_back(
                generator, map_generator(generator, origin.get("prefixes", {})), origin.get("types", {})
            )
        case "taming_vqgan":
            raise UserError("taming_vqgan converts one way alone: --to llamagen goes with the other kinds")
        case _:
            assert_never(kind)
    try:
        with whole_file(output) as file:
            if output.suffix == ".safetensors":
                file.write(save(weights))
            else:
                torch.save({"model": weights}, file)
    except OSError as error:
        raise unwritable(output, error) from error
    return Report(len(weights), sum(tensor.numel() for tensor in weights.values()), {}, {})


def _read(source: Path, given: Given, first: str) -> dict[str, Tensor]:
    return read_checkpoint(source, (given.part,) if given.part else (first, *PARTS))


def _save_tokenizer(
    kind: Kind, tokenizer: ImageTokenizer, report: Report, source: Path, output: Path, given: Given
) -> None:
    size = given.image_size or _IMAGE_SIZE
    code_spec(tokenizer, size)
    save_image_tokenizer(output, tokenizer, size, Card(f"{kind} image tokenizer", _origin(kind, source, report)))


def _convert_generator(kind: Kind, source: Path, output: Path, given: Given, repaired: bool) -> Report:
    if given.image_tokenizer is None:
        raise UserError(
            f"{kind} needs --image-tokenizer DIR, the release folder of the image tokenizer whose codes it draws: "
            "convert that one first"
        )
    image_tokenizer = load_image_tokenizer(given.image_tokenizer)
    size = given.image_size or read_config(given.image_tokenizer)["image_size"]
    theirs = _read(source, given, "model")
    text = None if given.text_encoder is None else load_pretrained_text(given.text_encoder)
    vision = None if given.vision_encoder is None else load_pretrained_vision(given.vision_encoder)
    beside = Beside(image_tokenizer, size, given.heads, text, vision)
    generator, report = convert_generator(theirs, str(source), beside, repaired)
    save_generator(output, generator, image_tokenizer, size, Card(kind, _origin(kind, source, report)))
    return report


def _origin(kind: Kind, source: Path, report: Report) -> dict[str, Any]:
    """What a release keeps of where it is from."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {"kind": kind, "file": source.name, "sha256": digest}
    return {"converted_from": facts | {"types": dict(report.types), "prefixes": dict(report.prefixes)}}


def _read_origin(release: Path, kind: Kind) -> Mapping[str, Any]:
    """What `_origin` wrote; nothing, where the release was not converted from this kind."""
    origin = (read_config(release).get("training") or {}).get("converted_from") or {}
    return origin if origin.get("kind") == kind else {}
