"""A split of a data set of image codes, opened: its examples by pack and position, gathered into batches.

A pack plays the part of a shard in the order of samples. The packs in use are kept in memory, decoded and checked; of
features, which are a hundred times as large, only the rows of a batch are read.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from mentor.data.order import Sample, Samples, Usable
from mentor.data.packs import CodeLayout, Pack, decode_captions, decode_pack
from mentor.data.records import UnusableSample
from mentor.data.storage.decoding import BadSample
from mentor.data.storage.files import CacheSettings, DataFiles
from mentor.data.storage.index import ABSENT, Index, Place, checksum
from mentor.errors import UserError
from mentor.types import Batch, BatchCodes, Prompt

KIND = "codes"
_OPEN_FILES = 64


class CodeSet:
    """One split of a data set of codes, opened.

    Attributes:
        root: the data set's folder or URL.
        split: "train" or "heldout".
        sizes: int64, examples in each pack.
        layout: what the codes are.
        fingerprint: changes when any shard of the data set changes.
        manifest: as in `manifest.json`.
        skipped: shards that are left out because they are missing or have another size.

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
        self.root, self.split = root, split
        self._source = DataFiles(root, cache)
        self._room = room
        self.manifest = self._source.manifest
        self.fingerprint: str = self.manifest["fingerprint"]
        if self.manifest["kind"] != KIND:
            raise UserError(f"{root} holds pictures, not image codes: make codes of it with `{codes_command(root)}`")
        self._rows = [row for row in self.manifest["files"] if row["split"] == split]
        if not sum(row["samples"] for row in self._rows):
            raise UserError(f"the codes in {root} have no {split} examples: make them again with `{self._command}`")
        self._index = self._open_index()
        self.skipped: tuple[str, ...] = self._check_shards(skip_bad)
        self.layout, self.sizes = self._describe()
        self._ends = np.cumsum(self._index.counts)
        self._files: dict[int, int] = {}
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
            at, size = place.fields["json"]
            try:
                captions.extend(decode_captions(self._read(shard, place.start + at, size)))
            except BadSample:
                continue
        return captions[:limit]

    def digests(self) -> Iterator[tuple[int, bool]]:
        """Each shard, and whether its sha256 is the manifest's."""
        for shard, row in enumerate(self._rows):
            with os.fdopen(self._source.open(row), "rb") as file:
                yield shard, hashlib.file_digest(file, "sha256").hexdigest() == row["sha256"]

    def close(self) -> None:
        """Close the shards' files; they open again when needed."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_kept": {}}

    @property
    def _command(self) -> str:
        return codes_command(output=self.root)

    def _open_index(self) -> Index:
        row = next((row for row in self.manifest["indexes"] if row["split"] == self.split), None)
        index = None if row is None else self._source.index(row)
        if index is None or index.counts.tolist() != [row["samples"] for row in self._rows]:
            raise UserError(f"the index of {self.root} does not fit its manifest: run `{self._command}`")
        return index

    def _check_shards(self, skip_bad: bool) -> tuple[str, ...]:
        """Refuse, or leave out, local shards that are missing or have another size; the names of those left out."""
        bad = []
        for number, row in enumerate(self._rows):
            fault = self._source.fault(row)
            if fault and not skip_bad:
                raise UserError(
                    f"shard {self._source.name(row)} {fault}: run `{self._command}` to make it again, "
                    "or leave such shards out with data.skip_bad_shards=true"
                )
            if fault:
                bad.append(number)
        names = tuple(self._source.name(self._rows[number]) for number in bad)
        if bad and len(bad) == len(self._rows):
            raise UserError(f"every {self.split} shard of {self.root} is missing or damaged, {names[0]} among them")
        if bad:
            self._index = self._index.without(bad)
            self._rows = [row for number, row in enumerate(self._rows) if number not in bad]
        return names

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
            members = {name: self._read(shard, place.start + at, size) for name, (at, size) in place.fields.items()}
            if checksum(members.values()) != place.checksum:
                raise BadSample("checksum differs", "its bytes are not those that were indexed")
            return decode_pack(members, self.layout, int(self.sizes[number]))
        except BadSample as error:
            return self._damage(shard, place.key, error)

    def _damage(self, shard: int, key: str, error: BadSample) -> UnusableSample:
        name = self._source.name(self._rows[shard])
        message = f"shard {name} is damaged (pack {key}: {error}): delete it and make it again with `{self._command}`"
        return UnusableSample(message, name, key, error.reason)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            try:
                self._files[shard] = self._source.open(self._rows[shard])
            except OSError as error:
                raise BadSample("unreadable shard", error.strerror or str(error)) from None
        try:
            # pread has no file position, so a descriptor inherited by a forked worker is safe to use.
            content = os.pread(self._files[shard], size, offset)
        except OSError as error:
            raise BadSample("unreadable shard", error.strerror or str(error)) from None
        if len(content) != size:
            raise BadSample("truncated shard", "the file ends before it")
        return content


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
