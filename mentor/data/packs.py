"""A pack: many examples of one task as image codes. One sample of a shard holds one pack.

    KEY.features.npy    float16, `r d gy gx`: the encoder's features of the references; only where a data set has them
    KEY.focus.npy       float16, `n gy gx`: share of each cell that the named object fills
    KEY.json            {"task", "keys": n, "prompts": n lists of text and {"image": row}, "captions": of the records}
    KEY.references.npy  `r gy gx`: ids of the pictures that the prompts show
    KEY.targets.npy     `n gy gx`: ids of the pictures that are asked for

Ids take 16 bits, or 32 where there are more codes than that. A code's vector follows from its id, so it is not stored.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pydantic import Field

from mentor.config import Config
from mentor.data.storage.decoding import BadSample, Limits, decode_array, decode_json
from mentor.types import ImageSegment, Prompt, TextSegment

# Stands for the pixels of a picture of which only codes are known.
NO_PIXELS = torch.empty(3, 0, 0)
# Larger packs would make batches of few shards; smaller ones would be opened too often.
LARGEST_PACK = 512
# Of the arrays in memory, and of the features in a shard.
_PACK_BYTES, _FEATURE_BYTES = 2 << 20, 32 << 20
# How deep json may nest follows from what `decode_pack` accepts; to ask before would take a walk over all of it.
_LIMITS = Limits(text_bytes=64 << 20, json_depth=1 << 30)
_NPY_HEADER = 128
_FOCUS = np.dtype("<f2")
_ONE = 0x3C00


class CodeLayout(Config):
    """What a data set of codes was made of and how; stands in its manifest.

    Attributes:
        tokenizer: fingerprint of the image tokenizer's weights.
        image_size: side in pixels of the pictures.
        grid: rows and columns of codes a picture has.
        vocabulary: how many different codes there are.
        feature_width: channels of the stored features; 0 when there are none.
        tasks: that there are examples of.
        variants: how often each training record was made an example of each task, with other random choices.
        seed: of those choices.
        image_only, recover_min_scale, recover_distort, recover_distractors: see `settings.DataConfig`.
    """

    tokenizer: str
    image_size: int = Field(gt=0)
    grid: tuple[int, int]
    vocabulary: int = Field(gt=0, le=2**31)
    feature_width: int = Field(ge=0)
    tasks: tuple[str, ...]
    variants: int = Field(gt=0)
    seed: int
    image_only: float
    recover_min_scale: float
    recover_distort: float
    recover_distractors: bool

    @property
    def members(self) -> tuple[str, ...]:
        """The extensions of a pack's members in the order in which a shard stores them."""
        features = ("features.npy",) if self.feature_width else ()
        return (*features, "focus.npy", "json", "references.npy", "targets.npy")

    @property
    def cells(self) -> int:
        """Codes of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def ids(self) -> np.dtype:
        """The type of stored ids."""
        return np.dtype("<u2" if self.vocabulary <= 1 << 16 else "<u4")

    @property
    def examples(self) -> int:
        """How many examples make up a full pack."""
        each = self.cells * (2 * self.ids.itemsize + _FOCUS.itemsize)
        fitting = _PACK_BYTES // each
        if self.feature_width:
            fitting = min(fitting, _FEATURE_BYTES // (2 * self.cells * self.feature_width))
        return max(1, min(LARGEST_PACK, fitting))

    def sizes(self, target_bytes: np.ndarray) -> np.ndarray | None:
        """How many examples packs hold, from the sizes of their targets' files; None where these cannot be."""
        sizes, rest = np.divmod(target_bytes.astype(np.int64) - _NPY_HEADER, self.cells * self.ids.itemsize)
        return sizes if not rest.any() and (sizes > 0).all() else None


@dataclass(frozen=True, eq=False)
class Pack:
    """Examples of one task.

    Attributes:
        task: see `tasks.TASKS`.
        keys: of the records that they came from.
        prompts: their pictures have no pixels.
        images: for each prompt the rows of `references` that it shows, in order.
        targets: ids, `n gy gx`.
        focus: share of each cell that the named object fills, `n gy gx`.
        references: ids, `r gy gx`.
        captions: of records that no earlier pack of the shard has told of.
    """

    task: str
    keys: list[str]
    prompts: list[Prompt]
    images: list[tuple[int, ...]]
    targets: np.ndarray
    focus: np.ndarray
    references: np.ndarray
    captions: list[str]

    def __len__(self) -> int:
        return len(self.keys)


def encode_pack(pack: Pack, features: np.ndarray | None, layout: CodeLayout) -> dict[str, bytes]:
    """The members of a pack by extension, the same bytes for the same pack on every machine.

    Raises:
        ValueError: features are missing, or they do not fit 16 bits.
    """
    described = {
        "task": pack.task,
        "keys": pack.keys,
        "prompts": [_described(prompt, rows) for prompt, rows in zip(pack.prompts, pack.images, strict=True)],
        "captions": pack.captions,
    }
    members = {
        "focus.npy": _npy(pack.focus.astype(_FOCUS)),
        "json": json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode(),
        "references.npy": _npy(pack.references.astype(layout.ids)),
        "targets.npy": _npy(pack.targets.astype(layout.ids)),
    }
    if layout.feature_width:
        with np.errstate(over="ignore"):
            half = np.empty(0) if features is None else features.astype(_FOCUS)
        if features is None or not np.isfinite(half).all():
            raise ValueError(f"the features of a pack of {pack.task!r} are missing or too large for 16 bits")
        members = {"features.npy": _npy(half), **members}
    return members


def decode_pack(members: Mapping[str, bytes], layout: CodeLayout, size: int) -> Pack:
    """The pack of `size` examples that `encode_pack` was given, everything about it checked.

    Raises:
        BadSample: a member is damaged, or does not fit the layout or the others.
    """
    described = decode_json(members["json"], _LIMITS)
    try:
        task, keys, captions = described["task"], described["keys"], described["captions"]
        prompts, images = _read_prompts(described["prompts"])
        words = [task, *keys, *captions, *(s.text for p in prompts for s in p if isinstance(s, TextSegment))]
        if not all(type(word) is str for word in words):
            raise TypeError("not text")
    except (TypeError, KeyError, AttributeError) as error:
        raise BadSample("damaged pack", f"its json is not that of a pack ({error})") from None
    if len(keys) != size or len(prompts) != size:
        raise BadSample("damaged pack", f"{len(keys)} keys and {len(prompts)} prompts where {size} were announced")
    shown = [row for rows in images for row in rows]
    count = max(shown, default=-1) + 1
    if any(row < 0 for row in shown):
        raise BadSample("damaged pack", "a prompt shows a reference of a negative row")
    focus = _array(members, "focus", (size, *layout.grid), _FOCUS)
    # Of 0 to 1 the bits, read as a number, are at most those of 1; comparing halves as such takes ten times as long.
    if focus.size and int(focus.view("<u2").max()) > _ONE:
        raise BadSample("damaged pack", "a share of focus lies outside 0 to 1")
    targets = _ids(members, "targets", size, layout)
    references = _ids(members, "references", count, layout)
    if layout.feature_width:
        _array(members, "features", (count, layout.feature_width, *layout.grid), _FOCUS)
    return Pack(task, keys, prompts, images, targets, focus, references, captions)


def decode_captions(content: bytes) -> list[str]:
    """The captions in a pack's json.

    Raises:
        BadSample: it is damaged.
    """
    try:
        return [caption for caption in decode_json(content, _LIMITS)["captions"] if isinstance(caption, str)]
    except (TypeError, KeyError) as error:
        raise BadSample("damaged pack", f"its json is not that of a pack ({error})") from None


def _described(prompt: Prompt, rows: Sequence[int]) -> list[Any]:
    images = iter(rows)
    return [
        segment.text
        if isinstance(segment, TextSegment)
        else {"image": int(next(images))} | ({"name": segment.name} if segment.name else {})
        for segment in prompt
    ]


def _read_prompts(described: Any) -> tuple[list[Prompt], list[tuple[int, ...]]]:
    """The prompts, and the rows that each shows; whoever calls checks that text is text."""
    prompts: list[Prompt] = []
    images: list[tuple[int, ...]] = []
    for parts in described:
        rows: list[int] = []
        segments: list[TextSegment | ImageSegment] = []
        for part in parts:
            if type(part) is str:
                segments.append(TextSegment(part))
                continue
            row, name = part["image"], part.get("name", "")
            if type(row) is not int or type(name) is not str:
                raise TypeError("a reference's row is no number, or its name no text")
            rows.append(row)
            segments.append(_stand_in(len(rows), name))
        prompts.append(tuple(segments))
        images.append(tuple(rows))
    return prompts, images


@lru_cache(maxsize=1024)
def _stand_in(number: int, name: str) -> ImageSegment:
    """The picture of that number in any prompt: thousands of prompts share it, and no prompt has it twice."""
    return ImageSegment(NO_PIXELS, name)


def _ids(members: Mapping[str, bytes], name: str, count: int, layout: CodeLayout) -> np.ndarray:
    ids = _array(members, name, (count, *layout.grid), layout.ids)
    if ids.size and int(ids.max()) >= layout.vocabulary:
        raise BadSample("damaged pack", f"its {name} hold the id {ids.max()}, codes end at {layout.vocabulary - 1}")
    return ids


def _array(members: Mapping[str, bytes], name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = decode_array(members[f"{name}.npy"], _LIMITS)
    if array.shape != shape or array.dtype != dtype:
        raise BadSample("damaged pack", f"its {name} are {array.shape} of {array.dtype}, not {shape} of {dtype}")
    return array


def _npy(array: np.ndarray) -> bytes:
    """The array as a `.npy` file; NumPy's own header varies in length from release to release."""
    described = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    length = _NPY_HEADER - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + f"{described:<{length - 1}}\n".encode() + array.tobytes()
