"""A generator that draws: prompts are prefilled, then tokens follow over a cache."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mentor.conditioning import Condition, Prefix
from mentor.models.building import AnyGenerator
from mentor.nn.cache import WORTHWHILE, BlockCache, KVCache, PrefixCache
from mentor.types import prompt_images

# Null conditions of different lengths that are kept; in a large model each takes some hundred megabytes.
_NULLS = 4


@dataclass(frozen=True)
class Prefilled:
    """A prompt that the model has read.

    Attributes:
        cache: keys and values of its prefix.
        first: what the generator reads out for the first image token: its logits, or the state that tells of it.
    """

    cache: PrefixCache
    first: Float[Tensor, "v"]


class Decoder:
    """What decoding needs of a generator, computed once; the generator's weights must stay as they are meanwhile.

    Args:
        generator: in eval mode; `mentor.models.packing.pack` makes it fast.
        compiled: whether the steps that a GPU records are compiled first: a minute once, for many pictures.
    """

    def __init__(self, generator: AnyGenerator, compiled: bool = False) -> None:
        self.generator = generator
        self.compiled = compiled
        self.spec = generator.spec
        weight = generator.backbone.norm.weight
        self.device, self.dtype = weight.device, weight.dtype
        cells = generator.token_cells(0, self.spec.tokens, self.device)
        with torch.no_grad():
            nowhere = torch.zeros(1, self.spec.tokens, generator.config.backbone.width, device=self.device)
            self.places = generator.place(nowhere, cells)[0]
            self.rotary = generator.turns(cells, 0)[0, 0]
        self._nulls: dict[int, Prefilled] = {}
        # On a GPU a batch records its steps, and the next one like it is drawn in the same tensors.
        self.records = self.device.type == "cuda"
        self.kept: object = None

    @torch.inference_mode()
    def null(self, beside: Prefilled) -> Prefilled:
        """The null condition that a prompt is compared with, kept for the next prompts that have the same."""
        conditioner = self.generator.conditioner
        length = beside.cache.length if conditioner.null_as_long else 0
        null = self._nulls.pop(length, None)
        if null is None:
            prefix = conditioner.null_prefix(length)
            (null,) = self._prefill(prefix, [0], prefix.embeddings.shape[1])
        # The one used last stands last; the first one goes.
        self._nulls[length] = null
        if len(self._nulls) > _NULLS:
            del self._nulls[next(iter(self._nulls))]
        return null

    @torch.inference_mode()
    def prefill(self, condition: Condition) -> list[Prefilled]:
        """The prompts of `condition`, read; one that occurs several times, as the same object, is read once.

        Prompts of one length are read together, so that there is no padding that rounding could depend on.
        """
        prefix = self.generator.conditioner(unique_prompts(condition))
        lengths = prefix.mask.sum(dim=1).tolist()
        groups: dict[int, list[int]] = defaultdict(list)
        for row, length in enumerate(lengths):
            groups[length].append(row)
        read: dict[int, Prefilled] = {}
        for length, rows in groups.items():
            read |= dict(zip(rows, self._prefill(prefix, rows, length), strict=True))
        order = {id(prompt): row for row, prompt in enumerate(_unique(condition.prompts))}
        return [read[order[id(prompt)]] for prompt in condition.prompts]

    def _prefill(self, prefix: Prefix, rows: list[int], length: int) -> list[Prefilled]:
        read = prefix.select(rows, length)
        x = self.generator.place(read.embeddings, read.cells).to(self.dtype)
        rotary = self.generator.turns(read.cells, length)
        cache = PrefixCache(self.generator.config.causal_prefix)
        with self.generator.reading(read, 0) as edit:
            hidden = self.generator.backbone(x, rotary, None, cache, tail=1, edit=edit)
        first = self.generator.read_out(hidden)[:, -1]
        return [Prefilled(cache.row(i), first[i]) for i in range(len(rows))]

    def make_cache(
        self, parts: Sequence[Sequence[Prefilled]], tokens: int, shared: Sequence[int], apart: bool = False
    ) -> BlockCache:
        """An empty cache for rows behind the given prompts, condition after condition.

        Args:
            parts: for each condition the prompt of each row, or of each group of rows that share one.
            tokens: how many tokens a row may get.
            shared: for each condition how many neighbouring rows share a prompt; 0: each has a copy.
            apart: whether conditions must be able to go without the others.
        """
        prefixes = [[prompt.cache for prompt in part] for part in parts]
        lengths = [max(prefix.length for prefix in part) for part in prefixes]
        if not apart and not any(shared) and max(lengths) - min(lengths) < WORTHWHILE:
            return BlockCache([KVCache([prefix for part in prefixes for prefix in part], tokens)], len(parts))
        blocks = [KVCache(part, tokens, sharing) for part, sharing in zip(prefixes, shared, strict=True)]
        return BlockCache(blocks, len(parts))

    def step(
        self,
        tokens: Int[Tensor, "b n"] | Float[Tensor, "b n c"],
        positions: int | Int[Tensor, "b"],
        cache: BlockCache,
        end: int,
        tail: int | None = None,
    ) -> Float[Tensor, "r n v"]:
        """What is read out for the tokens that follow, for every row of every block of the cache; adds `tokens` to it.

        Args:
            tokens: codes or continuous tokens that were drawn, the same for every block.
            positions: which token the first of them is: one number for all, or one a picture. Past the last token of
                a picture anything may stand.
            cache: the prompts, and the tokens before.
            end: how many tokens are read, at least `positions + n` for all pictures.
            tail: read out for the last `tail` tokens only.
        """
        count = tokens.shape[1]
        cache.place(positions, count, end)
        first = positions + self.generator.ahead
        if isinstance(first, int):
            where: slice | Tensor = slice(first, first + count)
            rotary = self.rotary[where].unsqueeze(0)
        else:
            where = first.unsqueeze(-1) + torch.arange(count, device=tokens.device)
            where = where.clamp(max=self.spec.tokens - 1)
            rotary = self.rotary[where].repeat(cache.parts, 1, 1, 1)
        x = (self.generator.embedding(tokens) + self.places[where]).to(self.dtype)
        x = x.repeat(cache.parts, 1, 1)
        hidden = self.generator.backbone(x, rotary.unsqueeze(1), None, cache, tail)
        return self.generator.read_out(hidden)


def unique_prompts(condition: Condition) -> Condition:
    """The condition with each prompt once, even if several rows have it."""
    rows, images, seen = [], 0, set()
    for prompt in condition.prompts:
        count = len(prompt_images(prompt))
        if id(prompt) not in seen:
            rows.extend(range(images, images + count))
        seen.add(id(prompt))
        images += count
    prompts = _unique(condition.prompts)
    if condition.codes is None or len(rows) == images:
        return Condition(prompts, condition.codes)
    return Condition(prompts, condition.codes.select(rows))


def _unique(prompts: Sequence) -> list:
    return list({id(prompt): prompt for prompt in prompts}.values())
