"""Generators of LlamaGen (arXiv 2406.06525), class-conditional and text-conditional."""

import re
from collections.abc import Mapping

from pydantic import ValidationError
from torch import Tensor

from mentor.conditioning import CaptionConfig, ClassLabelConfig, ConditionerConfig, PretrainedText
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
# Of each conditioner of ours, what LlamaGen calls its parts.
_CONDITIONERS = {
    "class_label": {"classes.weight": _CLASSES},
    "caption": {
        "project_in.weight": "cls_embedding.cap_proj.fc1.weight",
        "project_out.weight": "cls_embedding.cap_proj.fc2.weight",
        "nothing": _NOTHING,
    },
}
# Of a block of ours, what LlamaGen calls its parts; two names: one below the other.
_BLOCK = {
    "attention.qkv.weight": ("attention.wqkv.weight",),
    "attention.out.weight": ("attention.wo.weight",),
    "feed_forward.gate_up.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
    "feed_forward.down.weight": ("feed_forward.w2.weight",),
    "attention_norm.weight": ("attention_norm.weight",),
    "feed_forward_norm.weight": ("ffn_norm.weight",),
}


def convert_llamagen_gpt(
    theirs: Mapping[str, Tensor],
    what: str,
    image_tokenizer: ImageTokenizer,
    image_size: int,
    heads: int = 0,
    text: PretrainedText | None = None,
    repaired: bool = False,
) -> tuple[Generator, Report]:
    """The generator of a LlamaGen checkpoint, over the codes of an image tokenizer.

    Args:
        theirs: the weights by name; sizes are read off their shapes.
        what: how messages call the checkpoint.
        image_tokenizer: whose codes it draws.
        image_size: of its pictures, in pixels.
        heads: query heads, which no shape tells; 0 takes those of the published size of that width.
        text: the encoder of captions that a text-conditional generator was trained with.
        repaired: the weights were trained without the fault of LlamaGen's that zeroes the prefix's queries and keys.

    Raises:
        UserError: these are not such weights, or they are of another image tokenizer.
    """
    config = _read_config(theirs, what, heads, repaired)
    material = _check_text(config.conditioner, theirs, what, text)
    spec = code_spec(image_tokenizer, image_size)
    codes = len(theirs["output.weight"])
    if codes != spec.vocab_size:
        raise UserError(
            f"{what} draws {codes} codes and the image tokenizer has {spec.vocab_size}: "
            "give the one it was trained with"
        )
    generator = build_generator(config, material, spec, image_tokenizer.codebook)
    report = take(generator, theirs, map_llamagen_gpt(generator), what)
    return generator.eval(), report


def map_llamagen_gpt(generator: Generator) -> Mapped:
    """How the tensors of a generator of LlamaGen's layout are called by LlamaGen."""
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
    # The code vectors, which LlamaGen's generators do not look at, and encoders, which are files of their own.
    kept = ("embedding.codebook", "head.vectors.codebook", *generator.kept_apart)
    return Mapped(sources, {name: tensor for name, tensor in state.items() if name.startswith(kept)})


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
        "head.tied": (config.head.tied, False),
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
    if _NOTHING in theirs:
        return CaptionConfig(slots=len(theirs[_NOTHING]))
    return ClassLabelConfig(classes=len(theirs[_CLASSES]) - 1)


def _check_text(
    config: ConditionerConfig, theirs: Mapping[str, Tensor], what: str, text: PretrainedText | None
) -> PretrainedText | None:
    """The text encoder, if the generator has a use for it and fits it."""
    if not isinstance(config, CaptionConfig):
        if text is not None:
            raise UserError(f"{what} is class-conditional and reads no text: leave --text-encoder out")
        return None
    width = theirs[_NOTHING].shape[1]
    if text is None:
        raise UserError(
            f"{what} is text-conditional and reads captions of width {width}: give the text encoder that it was "
            "trained with by --text-encoder (LlamaGen's is google/flan-t5-xl)"
        )
    if text.width != width:
        raise UserError(
            f"{what} reads captions of width {width}, and the text encoder gives {text.width}: give another"
        )
    return text
