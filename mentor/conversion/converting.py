"""A checkpoint of another project to a release folder, and back."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from safetensors.torch import save
from torch import Tensor

from mentor.conversion.image_tokenizers import convert_llamagen_vq, convert_taming_vqgan, map_llamagen_vq
from mentor.conversion.mapping import Report, give_back
from mentor.conversion.reading import read_checkpoint
from mentor.data.storage.whole import unwritable, whole_file
from mentor.errors import UserError
from mentor.models.checkpoint import Card, code_spec, load_image_tokenizer, read_config, save_image_tokenizer

Kind = Literal["llamagen_vq", "taming_vqgan"]


def convert(kind: Kind, source: Path, output: Path, image_size: int, part: str | None = None) -> Report:
    """Write the release folder `output` of the checkpoint `source`.

    Args:
        kind: what the checkpoint holds.
        source: a file.
        output: a folder that is not there yet.
        image_size: side of the pictures that the release is for, in pixels.
        part: the name under which the weights lie in the file, such as model or ema; None takes the first that is
            there, and averaged weights first for an image tokenizer, as LlamaGen's own tools do.

    Raises:
        UserError: the checkpoint is not of this kind, damaged, or would run code, or `output` is there already.
    """
    if output.exists():
        raise UserError(f"{output} is there already: give the name of a folder that is not")
    theirs = read_checkpoint(source, (part,) if part else ("ema", "model", "module", "state_dict"))
    match kind:
        case "llamagen_vq":
            tokenizer, report = convert_llamagen_vq(theirs, str(source))
        case "taming_vqgan":
            tokenizer, report = convert_taming_vqgan(theirs, str(source))
        case _:
            assert_never(kind)
    code_spec(tokenizer, image_size)
    save_image_tokenizer(output, tokenizer, image_size, Card(f"{kind} image tokenizer", _origin(kind, source, report)))
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
            weights, report = _llamagen_vq(release)
        case "taming_vqgan":
            raise UserError("taming_vqgan converts one way alone: --to llamagen goes with llamagen_vq")
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
    return report


def _llamagen_vq(release: Path) -> tuple[dict[str, Tensor], Report]:
    tokenizer = load_image_tokenizer(release)
    config = tokenizer.config
    special = {"stem": (config.stem, 1), "patches": (config.patches, False), "attention": (config.attention, True)}
    special |= {"middle": (config.middle, True), "groups": (config.groups, 32)}
    special |= {"patch_encoder": (config.patch_encoder, None), "decoder_stem": (config.decoder_stem or 1, 1)}
    special |= {"quantizer.kind": (config.quantizer.kind, "vq")}
    special |= {"quantizer.unit": (getattr(config.quantizer, "unit", True), True)}
    different = [f"{name}={own}" for name, (own, theirs) in special.items() if own != theirs]
    if different:
        raise UserError(f"{release} has parts that LlamaGen's image tokenizers have not ({', '.join(different)})")
    origin = _read_origin(release, "llamagen_vq")
    weights = give_back(tokenizer, map_llamagen_vq(tokenizer), origin.get("types", {}))
    return weights, Report(len(weights), sum(tensor.numel() for tensor in weights.values()), {}, {})


def _origin(kind: Kind, source: Path, report: Report) -> dict[str, Any]:
    """What a release keeps of where it is from."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"converted_from": {"kind": kind, "file": source.name, "sha256": digest, "types": dict(report.types)}}


def _read_origin(release: Path, kind: Kind) -> Mapping[str, Any]:
    """What `_origin` wrote, where the release was converted from this kind and not trained since."""
    origin = (read_config(release).get("training") or {}).get("converted_from") or {}
    return origin if origin.get("kind") == kind else {}
