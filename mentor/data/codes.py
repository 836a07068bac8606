"""A split of a data set of image codes, opened: its examples by pack and position, gathered into batches.

A pack plays the part of a shard in the order of samples. The packs in use are kept in memory, decoded and checked; of
features, which are a hundred times as large, only the rows of a batch are read.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from mentor.data.order import Sample, Samples, Usable
from mentor.data.packs import CodeLayout, Pack, decode_captions, decode_pack
from mentor.data.records import UnusableSample
from mentor.data.storage.decoding import BadSample
from mentor.data.storage.files import CacheSettings
from mentor.data.storage.index import ABSENT, Place
from mentor.data.storage.opened import OpenedSplit
from mentor.errors import UserError
from mentor.types import Batch, BatchCodes, Prompt

KIND = "codes"


class CodeSet(OpenedSplit):
    """One split of a data set of codes, opened.

    Attributes:
        layout: what the codes are.
        sizes: examples in each pack.

    Args:
        root: the data set's folder or URL.
        split: "train" or "heldout".
        cache: for files from elsewhere.
        skip_bad: leave missing shards and those of another size out instead of refusing them.
        room: packs of each task that are kept in memory.

    Raises:
        UserError: the data set is missing, empty or holds no codes, or a shard's size is not the manifest's.
    """

    def __init__(
        self,
        root: Path | str,
        split: str,
        cache: CacheSettings | None = None,
        skip_bad: bool = False,
        room: int = 64,
    ) -> None:
        super().__init__(root, split, cache, skip_bad)
        self._room = room
        self.layout, self.sizes = self._describe()
        self._ends = np.cumsum(self._index.counts)
        # A pack that cannot be read is remembered too, with its fault.
        self._kept: dict[int, OrderedDict[int, Pack | UnusableSample]] = {}

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def usable(self, task: str) -> Usable | None:
        """The examples of a task as packs and positions; None if there are none."""
        contents = self._index.contents
        sizes = np.where(contents.meant_for(task) & (contents.tasks != 0), self.sizes, 0)
        return Usable(sizes, lambda pack: np.arange(sizes[pack])) if sizes.any() else None

    def pack(self, number: int) -> Pack:
        """A pack.

        Raises:
            UnusableSample: it cannot be read; the message names the shard and the pack.
        """
        kept = self._kept.setdefault(int(self._index.arrays["tasks"][number]), OrderedDict())
        found = kept.get(number)
        if found is None:
            found = kept[number] = self._load(number)
            if len(kept) > self._room:
                kept.popitem(last=False)
        else:
            kept.move_to_end(number)
        if isinstance(found, UnusableSample):
            # A new one each time: an error that is raised grows by its traceback.
            raise UnusableSample(str(found), found.shard, found.key, found.reason)
        return found

    def read_features(self, number: int, row: int, into: np.ndarray) -> None:
        """Put the features of a pack's reference into an array, float16 `d gy gx`.

        Raises:
            UnusableSample: they cannot be read.
        """
        shard, place = self._place(number)
        at, size = place.fields["features.npy"]
        header = size - len(self.pack(number).references) * into.nbytes
        try:
            content = self._read(shard, place.start + at + header + row * into.nbytes, into.nbytes)
        except BadSample as error:
            raise self._damage(shard, place.key, error) from None
        into[...] = np.frombuffer(content, into.dtype).reshape(into.shape)

    def shard_name(self, number: int) -> str:
        """What messages call the shard of a pack: its path or URL."""
        return self._source.name(self._rows[int(np.searchsorted(self._ends, number, side="right"))])

    def captions(self, limit: int) -> list[str]:
        """Up to `limit` captions of records, in the order of the packs, but damaged ones."""
        captions: list[str] = []
        for number in range(len(self.sizes)):
            if len(captions) >= limit:
                break
            shard, place = self._place(number)
            try:
                captions.extend(decode_captions(self._field(shard, place, "json")))
            except BadSample:
                continue
        return captions[:limit]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": {}}

    @property
    def _command(self) -> str:
        return codes_command(output=self.root)

    def _check_kind(self) -> None:
        if self.manifest["kind"] != KIND:
            raise UserError(
                f"{self.root} holds pictures, not image codes: make codes of it with `{codes_command(self.root)}`"
            )

    def _describe(self) -> tuple[CodeLayout, np.ndarray]:
        """What the codes are, and how many examples each pack holds."""
        damage = UserError(f"the codes in {self.root} are damaged (manifest or index): run `{self._command}`")
        try:
            layout = CodeLayout.model_validate(self.manifest["layout"])
        except ValidationError:
            raise damage from None
        if self._index.fields != layout.members:
            raise damage
        stored = self._index.arrays["places"][:, :, 1]
        sizes = layout.sizes(stored[:, layout.members.index("targets.npy")])
        if sizes is None or (stored == ABSENT).any():
            raise damage
        return layout, sizes

    def _place(self, number: int) -> tuple[int, Place]:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, self._index.place(shard, number - int(self._ends[shard] - self._index.counts[shard]))

    def _load(self, number: int) -> Pack | UnusableSample:
        shard, place = self._place(number)
        try:
            return decode_pack(self._members(shard, place), self.layout, int(self.sizes[number]))
        except BadSample as error:
            return self._damage(shard, place.key, error)


def codes_command(data: Path | str = "DATA", output: Path | str = "DIR") -> str:
    """The command that makes codes of a data set."""
    return f"python tools/make_shards.py codes {data} --tokenizer RELEASE --output {output}"


def gather(sets: Sequence[CodeSet], task: str, samples: Samples, valid: Sequence[bool] | None = None) -> Batch:
    """The samples as a batch, in order.

    Args:
        sets: the opened data sets; all have codes of one kind.
        task: that all samples are of.
        samples: their `shard` is a pack.
        valid: False for padding rows; all True if left out.

    Raises:
        UnusableSample: a pack cannot be read.
    """
    layout, count = sets[0].layout, len(samples.shard)
    targets = np.empty((count, *layout.grid), layout.ids)
    focus = np.empty((count, *layout.grid), np.float16)
    keys: list[str] = []
    prompts: list[Prompt] = []
    shown: list[np.ndarray] = []
    places: list[tuple[CodeSet, int, int]] = []
    opened: dict[tuple[int, int], Pack] = {}
    visits = zip(samples.dataset.tolist(), samples.shard.tolist(), samples.position.tolist(), strict=True)
    for row, (dataset, number, position) in enumerate(visits):
        pack = opened.get((dataset, number))
        if pack is None:
            pack = opened[dataset, number] = sets[dataset].pack(number)
        targets[row] = pack.targets[position]
        focus[row] = pack.focus[position]
        keys.append(pack.keys[position])
        prompts.append(pack.prompts[position])
        for reference in pack.images[position]:
            shown.append(pack.references[reference])
            if layout.feature_width:
                places.append((sets[dataset], number, reference))
    features = None
    if layout.feature_width:
        features = np.empty((len(places), layout.feature_width, *layout.grid), np.float16)
        for row, (code_set, number, reference) in enumerate(places):
            code_set.read_features(number, reference, features[row])
    references = np.stack(shown) if shown else np.empty((0, *layout.grid), layout.ids)
    return Batch(
        tasks=[task] * count,
        prompts=prompts,
        targets=torch.empty(count, 3, 0, 0),
        focus=torch.from_numpy(focus).float(),
        keys=keys,
        valid=torch.tensor([True] * count if valid is None else list(valid)),
        facts=[{}] * count,
        codes=BatchCodes(
            torch.from_numpy(targets.astype(np.int64)),
            torch.from_numpy(references.astype(np.int64)),
            None if features is None else torch.from_numpy(features),
        ),
    )


def samples_of(samples: Sequence[Sample]) -> Samples:
    """The samples as arrays."""
    return Samples(*(np.array([getattr(sample, name) for sample in samples]) for name in Samples._fields))


def check_alike(sets: Sequence[CodeSet]) -> CodeLayout:
    """The layout that all sets have, but for how their examples were drawn.

    Raises:
        UserError: their codes cannot be mixed.
    """
    first = sets[0]
    for other in sets[1:]:
        for name in ("tokenizer", "image_size", "grid", "vocabulary", "feature_width"):
            one, two = getattr(first.layout, name), getattr(other.layout, name)
            if one != two:
                raise UserError(
                    f"the codes in {first.root} have {name} {one}, those in {other.root} {two}: make one of them "
                    f"again with `{codes_command()}`, with the same image tokenizer and settings"
                )
    return first.layout
