"""Generators of LlamaGen (arXiv 2406.06525), and MENTOR's own (arXiv 2507.09574), which has the same decoder."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError
from torch import Tensor

from mentor.conditioning import (
    CaptionConfig,
    ClassLabelConfig,
    ConditionerConfig,
    FusedConfig,
    Material,
    PretrainedPair,
    PretrainedText,
    PretrainedVision,
)
from mentor.conversion.encoders import distance, find_prefixes, map_encoders
from mentor.conversion.mapping import Mapped, Report, take
from mentor.errors import UserError
from mentor.models import ARHeadConfig, BackboneConfig, Generator, GeneratorConfig, build_generator
from mentor.models.checkpoint import code_spec
from mentor.nn.layers import swiglu_hidden
from mentor.tokenizers import ImageTokenizer

# Heads of the published sizes, by their width.
_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}
_CLASSES = "cls_embedding.embedding_table.weight"
_NOTHING = "cls_embedding.uncond_embedding"
_ENCODERS = "multimodal_encoder."
_OURS = ("conditioner.text_encoder.", "conditioner.vision_encoder.")
# Of each conditioner of ours, what LlamaGen and MENTOR call its parts.
_SLOTS = {
    "project_in.weight": "cls_embedding.cap_proj.fc1.weight",
    "project_out.weight": "cls_embedding.cap_proj.fc2.weight",
    "nothing": _NOTHING,
}
_PROJECTOR = {
    f"projector.{layer}.{part}": f"{_ENCODERS}language_projection.{layer}.{part}"
    for layer in (0, 2)
    for part in ("weight", "bias")
}
_CONDITIONERS = {"class_label": {"classes.weight": _CLASSES}, "caption": _SLOTS, "fused": _SLOTS | _PROJECTOR}
# Of a block of ours, what LlamaGen calls its parts; two names: one below the other.
_BLOCK = {
    "attention.qkv.weight": ("attention.wqkv.weight",),
    "attention.out.weight": ("attention.wo.weight",),
    "feed_forward.gate_up.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
    "feed_forward.down.weight": ("feed_forward.w2.weight",),
    "attention_norm.weight": ("attention_norm.weight",),
    "feed_forward_norm.weight": ("ffn_norm.weight",),
}


@dataclass(frozen=True)
class Beside:
    """What a generator's checkpoint does not hold.

    Attributes:
        image_tokenizer: whose codes it draws.
        image_size: of its pictures, in pixels.
        heads: query heads, which no shape tells; 0 takes those of the published size of that width.
        text: the text encoder that it was trained with; where the checkpoint has the weights, they replace these.
        vision: likewise the image encoder.
    """

    image_tokenizer: ImageTokenizer
    image_size: int
    heads: int = 0
    text: PretrainedText | None = None
    vision: PretrainedVision | None = None


def convert_generator(
    theirs: Mapping[str, Tensor], what: str, beside: Beside, repaired: bool
) -> tuple[Generator, Report]:
    """The generator of a checkpoint of LlamaGen or of MENTOR.

    MENTOR has LlamaGen's decoder, alone, which then reads captions, or with its encoders. These are found by
    transformers' own names, and the report tells how far they are from those that are given beside.

    Args:
        theirs: the weights by name; sizes are read off their shapes.
        what: how messages call the checkpoint.
        beside: what they do not hold.
        repaired: whether they were trained without the fault of LlamaGen's that zeroes the prefix's queries and keys,
            as MENTOR's were.

    Raises:
        UserError: these are not such weights, or what is given beside does not fit them.
    """
    config = _read_config(theirs, what, beside.heads, repaired)
    material = _check_encoders(config.conditioner, theirs, what, beside)
    spec = code_spec(beside.image_tokenizer, beside.image_size)
    codes = len(theirs["output.weight"])
    if codes != spec.vocab_size:
        raise UserError(
            f"{what} draws {codes} codes and the image tokenizer has {spec.vocab_size}: "
            "give the one it was trained with"
        )
    generator = build_generator(config, material, spec, beside.image_tokenizer.codebook)
    within = isinstance(config.conditioner, FusedConfig)
    prefixes = find_prefixes(theirs, _ENCODERS, what) if within else {}
    given = {name: value.clone() for name, value in generator.state_dict().items() if name.startswith(_OURS)}
    report = take(generator, theirs, map_generator(generator, prefixes, theirs), what)
    notes = []
    for encoder in prefixes:
        before = {name: value for name, value in given.items() if name.startswith(f"conditioner.{encoder}.")}
        far = distance(before, generator.state_dict())
        notes.append(f"{encoder}: {far:.3g} of its length away from the one given beside")
    return generator.eval(), replace(report, prefixes=prefixes, notes=notes)


def map_generator(generator: Generator, prefixes: Mapping[str, str], theirs: Iterable[str] | None = None) -> Mapped:
    """How the tensors of a generator of LlamaGen's layout are called in a checkpoint.

    Args:
        generator: of ours.
        prefixes: what stands before the names of its encoders, where the checkpoint has them.
        theirs: the names that the checkpoint has; None for one that is yet to be written.
    """
    sources: dict[str, tuple[str, ...]] = {
        "backbone.norm.weight": ("norm.weight",),
        "embedding.free.weight": ("tok_embeddings.weight",),
        "head.vectors.free.weight": ("output.weight",),
    }
    kind = generator.config.conditioner.kind
    for ours, name in _CONDITIONERS[kind].items():
        sources[f"conditioner.{ours}"] = (name,)
    for layer in range(generator.config.backbone.layers):
        for ours, names in _BLOCK.items():
            sources[f"backbone.blocks.{layer}.{ours}"] = tuple(f"layers.{layer}.{name}" for name in names)
    state = generator.state_dict()
    sources |= map_encoders(state, prefixes, theirs)
    # The code vectors, which LlamaGen's generators do not look at, and encoders that are files of their own.
    kept = ("embedding.codebook", "head.vectors.codebook", *generator.kept_apart)
    own = {name: tensor for name, tensor in state.items() if name.startswith(kept) and name not in sources}
    return Mapped(sources, own, {r".*\.position_ids": "numbers from 0 on"})


def check_llamagen_layout(generator: Generator, what: str) -> None:
    """Nothing, where LlamaGen's code could build the generator too.

    Raises:
        UserError: it has parts that LlamaGen's have not.
    """
    config = generator.config
    if config.conditioner.kind not in _CONDITIONERS:
        known = ", ".join(_CONDITIONERS)
        raise UserError(f"{what} has conditioner.kind={config.conditioner.kind}, LlamaGen's generators have {known}")
    fixed = {
        "backbone.rope_prefix": (config.backbone.rope_prefix, False),
        "backbone.rope_base": (config.backbone.rope_base, 10000.0),
        "head.kind": (config.head.kind, "ar"),
        "head.tied": (getattr(config.head, "tied", False), False),
        "grid_embeddings": (config.grid_embeddings, False),
        "placement": (config.placement, "own"),
        "causal_prefix": (config.causal_prefix, True),
    }
    different = [f"{name}={own}" for name, (own, theirs) in fixed.items() if own != theirs]
    if different:
        raise UserError(f"{what} has parts that LlamaGen's generators have not ({', '.join(different)})")


def _read_config(theirs: Mapping[str, Tensor], what: str, heads: int, repaired: bool) -> GeneratorConfig:
    try:
        width = theirs["tok_embeddings.weight"].shape[1]
        combined = theirs["layers.0.attention.wqkv.weight"].shape[0]
        hidden = theirs["layers.0.feed_forward.w1.weight"].shape[0]
        conditioner = _read_conditioner(theirs)
        _ = theirs["output.weight"]
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{what} holds no generator of this kind (no {error} among its {len(theirs)} tensors, which begin with "
            f"{sorted(theirs)[:3]}): name the kind it is of"
        ) from error
    layers = len({match[1] for name in theirs if (match := re.match(r"layers\.(\d+)\.", name))})
    heads = heads or _HEADS.get(width, 0)
    if heads < 1 or width % heads:
        raise UserError(
            f"{what} has width {width}, which {heads} heads do not divide (no shape tells them): "
            "say how many it has with --heads"
        )
    kv_heads = (combined - width) * heads // (2 * width)
    try:
        backbone = BackboneConfig(
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=0 if kv_heads == heads else kv_heads,
            hidden=0 if hidden == swiglu_hidden(width) else hidden,
            rope_prefix=False,
            legacy_prefix=not repaired,
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{what} has sizes that ours cannot have ({reason}): convert another one") from error
    return GeneratorConfig(
        conditioner=conditioner,
        backbone=backbone,
        head=ARHeadConfig(tied=False),
        grid_embeddings=False,
        placement="own",
        causal_prefix=True,
    )


def _read_conditioner(theirs: Mapping[str, Tensor]) -> ConditionerConfig:
    if any(name.startswith(_ENCODERS) for name in theirs):
        return FusedConfig(slots=len(theirs[_NOTHING]))
    if _NOTHING in theirs:
        return CaptionConfig(slots=len(theirs[_NOTHING]))
    return ClassLabelConfig(classes=len(theirs[_CLASSES]) - 1)


def _check_encoders(config: ConditionerConfig, theirs: Mapping[str, Tensor], what: str, beside: Beside) -> Material:
    """The encoders, if the generator has a use for them and fits them."""
    reads = {
        "text_encoder": not isinstance(config, ClassLabelConfig),
        "vision_encoder": isinstance(config, FusedConfig),
    }
    for key, given in (("text_encoder", beside.text), ("vision_encoder", beside.vision)):
        option = "--" + key.replace("_", "-")
        if given is not None and not reads[key]:
            raise UserError(f"{what} has no use for an encoder of that kind: leave {option} out")
        if given is None and reads[key]:
            usual = "google/flan-t5-xl" if key == "text_encoder" else "openai/clip-vit-large-patch14"
            raise UserError(f"{what} needs the encoder that it was trained with: give it by {option} (usually {usual})")
    if beside.text is None:
        return None
    width = theirs[_NOTHING].shape[1]
    if beside.text.width != width:
        raise UserError(f"{what} reads text of width {width}, the text encoder gives {beside.text.width}: give another")
    return beside.text if beside.vision is None else PretrainedPair(beside.text, beside.vision)
