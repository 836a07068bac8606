"""Makes a generator ready to decode: weights in the layout and precision that its products are fastest with."""

from typing import Literal, TypeVar

import torch
from torch import nn

from mentor.models.autoregressive import CodeGenerator
from mentor.models.generator import Generator
from mentor.nn.packed import Precision, has_fast_bf16, pack_product

PrecisionChoice = Literal["auto", "fp32", "bf16", "int8"]
AGenerator = TypeVar("AGenerator", bound=Generator)


def choose_precision(choice: PrecisionChoice, device: torch.device | str) -> Precision:
    """The precision to decode with; `auto` takes the fastest that was measured to be harmless.

    That is bfloat16 wherever the device multiplies it itself, for every size and batch (docs/performance.md has the
    table); 8-bit integers, which are faster still for large models, change pictures visibly more and are never chosen.
    """
    if choice != "auto":
        return choice
    if torch.device(device).type == "cpu":
        return "bf16" if has_fast_bf16() else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp32"


def pack(generator: AGenerator, precision: Precision) -> AGenerator:
    """The generator, changed in place: it decodes faster, with weights in `precision`, and can no longer be trained.

    On the CPU only weights change their type, and all sums stay in float32. On a GPU the whole decoder computes in
    bfloat16 for `bf16` and `int8`.
    """
    generator.eval().requires_grad_(False)
    if generator.sees_all and precision == "fp32":
        # Hundreds of rows in every product: torch's own takes half of the time that the packed one does.
        return generator
    if generator.backbone.norm.weight.device.type != "cpu" and precision != "fp32":
        generator.backbone.to(torch.bfloat16)
    for module in list(generator.backbone.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, pack_product(child.weight, precision))
            elif isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())
    if isinstance(generator, CodeGenerator):
        generator.embedding.fix()
        generator.head.fix(lambda table: pack_product(table, precision))
    return generator
