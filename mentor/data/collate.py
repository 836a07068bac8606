"""Examples side by side in a batch, and the batch as a few large tensors for the way between processes and devices."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mentor.types import Batch, Example, ImageSegment, Prompt, Segment, TextSegment, prompt_images


def collate(examples: Sequence[Example], valid: Sequence[bool] | None = None, with_arrays: bool = True) -> Batch:
    """The examples as one batch, in order. Targets share one size, references may differ.

    Args:
        examples: at least one.
        valid: False for padding rows; all True if left out.
        with_arrays: keep the arrays among the facts; training leaves them out, only evaluation reads them.
    """
    facts = [example.facts for example in examples]
    if not with_arrays:
        facts = [{name: fact for name, fact in each.items() if not isinstance(fact, np.ndarray)} for each in facts]
    return Batch(
        tasks=[example.task for example in examples],
        prompts=[example.prompt for example in examples],
        targets=torch.stack([example.target for example in examples]),
        focus=_stacked([example.focus for example in examples]),
        keys=[example.key for example in examples],
        valid=torch.tensor([True] * len(examples) if valid is None else list(valid)),
        facts=facts,
    )


def _stacked(focus: Sequence[Float[Tensor, "y x"]]) -> Float[Tensor, "b y x"]:
    """The examples' focus; where all share one tensor, as those without a named object do, nothing is copied."""
    first = focus[0]
    if all(one is first for one in focus):
        return first.expand(len(focus), -1, -1)
    return torch.stack(list(focus))


@dataclass(frozen=True)
class PackedBatch:
    """A batch whose reference images are one tensor per size, so that few things are moved.

    Attributes:
        batch: the batch with its prompts emptied, but where codes stand for the pictures.
        layout: each prompt's segments; an image is (group, row, name).
        references: the groups of equally large reference images.
    """

    batch: Batch
    layout: Sequence[Sequence[str | tuple[int, int, str]]]
    references: Sequence[Float[Tensor, "_r c _y _x"]]

    def pin_memory(self) -> "PackedBatch":
        """The same in page-locked memory (torch's DataLoader calls this by name)."""
        return self._mapped(Tensor.pin_memory)

    def to(self, device: torch.device) -> "PackedBatch":
        """The same on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "PackedBatch":
        moved = replace(
            self.batch,
            targets=function(self.batch.targets),
            focus=function(self.batch.focus),
            valid=function(self.batch.valid),
            codes=None if self.batch.codes is None else self.batch.codes.map(function),
        )
        return PackedBatch(moved, self.layout, [function(group) for group in self.references])


def pack(batch: Batch) -> PackedBatch:
    """The batch with its reference images gathered; where codes stand for the pictures, they are already."""
    if batch.codes is not None:
        return PackedBatch(batch, (), ())
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    layout: list[list[str | tuple[int, int, str]]] = []
    for prompt in batch.prompts:
        row: list[str | tuple[int, int, str]] = []
        for segment in prompt:
            if isinstance(segment, TextSegment):
                row.append(segment.text)
                continue
            group = groups.setdefault(tuple(segment.image.shape), [])
            row.append((list(groups).index(tuple(segment.image.shape)), len(group), segment.name))
            group.append(segment.image)
        layout.append(row)
    return PackedBatch(replace(batch, prompts=()), layout, [torch.stack(group) for group in groups.values()])


def unpack(packed: PackedBatch) -> Batch:
    """The inverse of `pack`; the prompts' images are views of the gathered ones."""
    if packed.batch.codes is not None:
        return packed.batch

    def segment(part: str | tuple[int, int, str]) -> Segment:
        if isinstance(part, str):
            return TextSegment(part)
        group, row, name = part
        return ImageSegment(packed.references[group][row], name)

    prompts: list[Prompt] = [tuple(segment(part) for part in row) for row in packed.layout]
    return replace(packed.batch, prompts=prompts)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with targets, focus, `valid`, codes and reference images on a device; facts stay where they are."""
    if batch.codes is not None:
        return unpack(pack(batch).to(device))
    images = [image for prompt in batch.prompts for image in prompt_images(prompt)]
    if all(tensor.device == device for tensor in [batch.targets, batch.focus, batch.valid, *images]):
        return batch
    return unpack(pack(batch).to(device))
