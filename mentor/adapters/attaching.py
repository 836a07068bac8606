"""Finished adapters on a generator: several at once, put on and taken off again without a trace."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from mentor.adapters.editing import Editors
from mentor.adapters.files import Adapter, Applied
from mentor.adapters.lora import GatedLinear, PrefixGate, Update, linear, product, stacked, updates_of
from mentor.adapters.settings import AdapterConfig
from mentor.conditioning import Prefix
from mentor.errors import UserError
from mentor.models import Generator
from mentor.models.adaptation import Adaptation
from mentor.models.backbone import Backbone, Edit


class PromptAdaptation(Adaptation):
    """Edits, one adapter's after the other's, and the gate of updates that act on prompts alone.

    Args:
        editors: of each adapter that has some.
        strengths: of each of these adapters.
        gate: opened while a prompt is read; None where no update has one.
        trained: settings of the adapter that is being trained, if one is.
    """

    def __init__(
        self,
        editors: Sequence[Editors],
        strengths: Sequence[float],
        gate: PrefixGate | None,
        trained: AdapterConfig | None = None,
    ) -> None:
        super().__init__()
        self.trained = trained
        self.editors = nn.ModuleList(editors)
        self.strengths = list(strengths)
        self.gate = gate

    @contextmanager
    def reading(self, prefix: Prefix, tokens: int) -> Iterator[Edit | None]:
        """Within, the backbone reads the prefix and so many image tokens behind it; gives the edits."""
        opened = nullcontext()
        if self.gate is not None:
            opened = self.gate.reading(prefix.mask.shape[1], tokens, prefix.embeddings)
        with opened:
            yield self._edit(prefix, tokens) if len(self.editors) else None

    def _edit(self, prefix: Prefix, tokens: int) -> Edit:
        edits: list[Edit] = []
        for editors, strength in zip(self.editors, self.strengths, strict=True):
            assert isinstance(editors, Editors)
            edits.append(editors.edit(prefix, tokens, strength))

        def apply(layer: int, x: Tensor) -> Tensor:
            for edit in edits:
                x = edit(layer, x)
            return x

        return apply


class Attached:
    """Adapters that are on a generator, from `attach` to `detach`.

    Attributes:
        merged: whether all that they do is in the weights.
    """

    def __init__(self, generator: Generator, weights: dict[str, Tensor], gated: Sequence[str]) -> None:
        self.merged = generator.adaptation is None
        self._generator = generator
        self._weights = weights
        self._gated = gated

    @torch.no_grad()
    def detach(self) -> None:
        """Take them off: every weight has the bits it had before."""
        backbone = self._generator.backbone
        for name in self._gated:
            layer = backbone.get_submodule(name)
            assert isinstance(layer, GatedLinear)
            backbone.set_submodule(name, layer.base)
        for name, weight in self._weights.items():
            linear(backbone, name).weight.copy_(weight)
        self._generator.adaptation = None
        self._weights, self._gated = {}, ()


@torch.no_grad()
def attach(generator: Generator, applied: Sequence[Applied]) -> Attached:
    """Put adapters on a generator, in place.

    Updates of weights are added to the weights, so that drawing takes no longer with them; the sum is formed in float64
    and rounded once, so it does not depend on their order. Updates that act on prompts alone and edits act while
    prompts are read.

    Args:
        generator: of the release that the adapters were trained on, in float32, not packed.
        applied: the adapters.

    Raises:
        UserError: there are adapters on it already.
    """
    if generator.adaptation is not None:
        raise UserError("the generator has adapters already: take them off first, or give all of them together")
    updates: dict[bool, dict[str, list[tuple[Update, float]]]] = {False: {}, True: {}}
    editors, strengths = [], []
    for each in applied:
        config = each.adapter.config
        if config.lora is not None:
            gated = config.lora.preset == "prefix_attn"
            for name, update in updates_of(each.adapter.weights).items():
                scale = each.strength * config.lora.scaling
                updates[gated].setdefault(name, []).append((update, scale))
        if config.edits is not None:
            editors.append(_editors(generator.backbone, each.adapter))
            strengths.append(each.strength)
    kept = {name: _merge(generator.backbone, name, own) for name, own in updates[False].items()}
    gate = PrefixGate() if updates[True] else None
    for name, own in updates[True].items():
        assert gate is not None
        _gate(generator.backbone, name, own, gate)
    if editors or gate is not None:
        generator.adaptation = PromptAdaptation(editors, strengths, gate).eval().requires_grad_(False)
    return Attached(generator, kept, list(updates[True]))


def _merge(backbone: Backbone, name: str, updates: list[tuple[Update, float]]) -> Tensor:
    """Add the updates to a layer's weight; the weight as it was."""
    weight = linear(backbone, name).weight
    before = weight.detach().clone()
    weight.copy_(weight.double() + product(updates).to(weight.device))
    return before


def _gate(backbone: Backbone, name: str, updates: list[tuple[Update, float]], gate: PrefixGate) -> None:
    base = linear(backbone, name)
    down, up = (factor.to(base.weight) for factor in stacked(updates))
    backbone.set_submodule(name, GatedLinear(base, (down, up), gate))


def _editors(backbone: Backbone, adapter: Adapter) -> Editors:
    assert adapter.config.edits is not None
    editors = Editors(adapter.config.edits, len(backbone.blocks), backbone.config.width)
    weights = {name.removeprefix("edits."): tensor for name, tensor in adapter.weights.items()}
    editors.load_state_dict({name: weights[name] for name in editors.state_dict()})
    return editors.to(backbone.norm.weight.device)
