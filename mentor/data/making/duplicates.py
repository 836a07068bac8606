"""Which pictures come twice: fingerprints of all items in a first pass, then one search over them in their order.

Exact duplicates have the same bytes. Perceptual ones look alike: 64-bit hashes by `imagehash` that differ in few bits.
Pictures of hardly more than one colour have a hash that says nothing, and count as alike only when they are exact.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mentor.config import Config
from mentor.data.sources.items import Item
from mentor.data.storage.decoding import LIMITS, BadSample, Limits, decode_image
from mentor.errors import UserError

# Hashes see 32 x 32 pixels of grey at most: JPEGs need not be decoded in full.
_SEEN = 128
# Standard deviation of the grey values, of 255, below which a picture counts as flat.
_FLAT = 2.0
# So many pairs are compared at once.
_PAIRS = 1 << 22
_BLOCK = 1024


class Duplicates(Config):
    """Drops every picture that came before, in the order of the sources: the first one stays.

    A picture is compared with those that stay, so that of three in a row, each like its neighbour only, the first and
    the last stay. Pictures are compared as they are found, before any step changed or dropped one: when a
    later step drops the one that stays, its duplicates do not take its place.

    Attributes:
        exact: by the bytes of the files.
        perceptual: the most bits, of 64, in which the hashes of pictures that look alike differ; None: not looked for.
            Copies that were resized or encoded anew differ in 0 to 2, slightly cropped ones in up to 7. Among 100,000
            pictures, chance alone makes some of them alike from 8 on, and most of them at 16.
        hash: "phash" (of frequencies, the more robust one) or "dhash" (of differences between neighbours).
    """

    step: Literal["duplicates"] = "duplicates"
    exact: bool = True
    perceptual: int | None = Field(default=None, ge=0, le=16)
    hash: Literal["phash", "dhash"] = "phash"

    @model_validator(mode="after")
    def _looks_for_something(self) -> "Duplicates":
        if not self.exact and self.perceptual is None:
            raise ValueError("looks for nothing: set exact to true or perceptual to a number of bits")
        return self

    @property
    def kind(self) -> str:
        """The hash that fingerprints need for this: "phash", "dhash" or "none"."""
        return "none" if self.perceptual is None else self.hash


@dataclass(frozen=True)
class Fingerprints:
    """What is remembered of `n` pictures.

    Attributes:
        exact: uint8 `n 16`, of the file's bytes.
        perceptual: uint64 `n`, the hash of the look; 0 where there is none.
        readable: bool `n`; what cannot be read is nobody's duplicate and is left to the later steps to drop.
        telling: bool `n`, whether the hash of the look says something.
        kind: "phash", "dhash" or "none".
    """

    exact: np.ndarray
    perceptual: np.ndarray
    readable: np.ndarray
    telling: np.ndarray
    kind: str = "none"

    def __len__(self) -> int:
        return len(self.readable)


def scan(items: Iterable[Item], config: Duplicates, limits: Limits = LIMITS) -> Fingerprints:
    """The fingerprints of the items' pictures, in order; views are not looked at."""
    exact, hashes, readable, telling = [], [], [], []
    for item in items:
        digest, look, legible = bytes(16), None, True
        try:
            content = item.picture.read()
            digest = hashlib.sha256(content).digest()[:16]
            look = _look(content, config.kind, limits)
        except (OSError, BadSample):
            legible = False
        exact.append(digest)
        hashes.append(look or 0)
        readable.append(legible)
        telling.append(look is not None)
    return Fingerprints(
        np.frombuffer(b"".join(exact), np.uint8).reshape(-1, 16),
        np.array(hashes, np.uint64),
        np.array(readable, bool),
        np.array(telling, bool),
        config.kind,
    )


def join_fingerprints(parts: Sequence[Fingerprints]) -> Fingerprints:
    """The fingerprints of several scans, one after the other.

    Raises:
        ValueError: there are none, or of different hashes.
    """
    kinds = {part.kind for part in parts}
    if len(kinds) != 1:
        raise ValueError(f"fingerprints of one kind are needed, got {sorted(kinds) or 'none'}")
    return Fingerprints(
        np.concatenate([part.exact for part in parts]),
        np.concatenate([part.perceptual for part in parts]),
        np.concatenate([part.readable for part in parts]),
        np.concatenate([part.telling for part in parts]),
        kinds.pop(),
    )


def save_fingerprints(fingerprints: Fingerprints) -> bytes:
    """The content of a safetensors file that `load_fingerprints` reads."""
    return save(
        {
            "exact": np.ascontiguousarray(fingerprints.exact),
            fingerprints.kind: np.ascontiguousarray(fingerprints.perceptual),
            "readable": np.ascontiguousarray(fingerprints.readable),
            "telling": np.ascontiguousarray(fingerprints.telling),
        }
    )


def load_fingerprints(content: bytes) -> Fingerprints:
    """What `save_fingerprints` was given.

    Raises:
        UserError: the content is damaged.
    """
    damaged = UserError("a file of fingerprints is damaged: delete it, and the pictures are read again")
    try:
        arrays = load(content)
        (kind,) = arrays.keys() - {"exact", "readable", "telling"}
        loaded = Fingerprints(arrays["exact"], arrays[kind], arrays["readable"], arrays["telling"], kind)
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise damaged from None
    count = len(loaded)
    shapes = (
        (loaded.exact, np.uint8, (count, 16)),
        (loaded.perceptual, np.uint64, (count,)),
        (loaded.readable, np.bool_, (count,)),
        (loaded.telling, np.bool_, (count,)),
    )
    if any(array.dtype != dtype or array.shape != shape for array, dtype, shape in shapes):
        raise damaged
    if kind not in ("phash", "dhash", "none"):
        raise damaged
    return loaded


def find_duplicates(fingerprints: Fingerprints, config: Duplicates) -> dict[int, str]:
    """Index -> "exact duplicate" or "perceptual duplicate" for all that do not stay.

    Raises:
        ValueError: the fingerprints were taken with another hash.
    """
    if config.perceptual is not None and fingerprints.kind != config.hash:
        raise ValueError(f"the fingerprints hold {fingerprints.kind} hashes, {config.hash} is asked for")
    found: dict[int, str] = {}
    left = np.flatnonzero(fingerprints.readable)
    if config.exact and len(left):
        keys = np.ascontiguousarray(fingerprints.exact[left]).view("V16").ravel()
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        again = first[inverse] != np.arange(len(left))
        found.update(dict.fromkeys(left[again].tolist(), "exact duplicate"))
        left = left[~again]
    if config.perceptual is not None:
        left = left[fingerprints.telling[left]]
        alike = alike_before(fingerprints.perceptual[left], config.perceptual)
        found.update(dict.fromkeys(left[alike].tolist(), "perceptual duplicate"))
    return dict(sorted(found.items()))


def alike_before(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Bool `n`: whether a hash differs in at most `distance` bits from an earlier one for which this is False.

    The search is exact. Hashes that agree but for few bits agree in whole bands of them; only such pairs are compared,
    unless so many do that comparing everything with what stays is quicker.
    """
    # Every later copy of a hash is alike: to the first one, or to what that one is alike to.
    _, first = np.unique(hashes, return_index=True)
    places = np.sort(first)
    different = np.ascontiguousarray(hashes[places])
    bands = _bands(different, distance)
    pairs = sum(band.pairs for band in bands)
    # Comparing a pair found in bands costs several times as much as one in a full table.
    quick = pairs < len(different) ** 2 / 16
    dropped = _search_bands(different, distance, bands) if quick else _search_all(different, distance)
    alike = np.ones(len(hashes), bool)
    alike[places] = dropped
    return alike


@dataclass(frozen=True)
class _Band:
    """A table of the hashes that share some bits: `order` sorts them by these, earlier ones first.

    `before[i]` counts the earlier hashes that share hash i's bits; they end at `place[i]` in `order`.
    """

    order: np.ndarray
    place: np.ndarray
    before: np.ndarray

    @property
    def pairs(self) -> int:
        return int(self.before.sum())


def _bands(hashes: np.ndarray, distance: int) -> list[_Band]:
    """One table for each of `distance + 1` bands of bits: two hashes within the distance share at least one of them."""
    borders = np.linspace(0, 64, distance + 2).astype(int)
    made = []
    for low, high in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        values = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
        position = np.arange(len(order))
        start = np.repeat(begins, np.diff(np.r_[begins, len(order)]))
        place, before = np.empty_like(order), np.empty_like(order)
        place[order], before[order] = position, position - start
        made.append(_Band(order, place, before))
    return made


def _search_bands(hashes: np.ndarray, distance: int, bands: Sequence[_Band]) -> np.ndarray:
    dropped = np.zeros(len(hashes), bool)
    work = np.cumsum(np.sum([band.before for band in bands], axis=0))
    begin = 0
    while begin < len(hashes):
        done = work[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(work, done + _PAIRS, side="right")))
        later, earlier = _candidates(bands, begin, end)
        kept = ~dropped[earlier]
        later, earlier = later[kept], earlier[kept]
        close = np.bitwise_count(hashes[later] ^ hashes[earlier]) <= distance
        later, earlier = later[close], earlier[close]
        # What is settled already decides first; the rest is a chain within the stretch, followed in order.
        settled = earlier < begin
        dropped[later[settled]] = True
        later, earlier = later[~settled], earlier[~settled]
        for index in np.argsort(later, kind="stable").tolist():
            if not dropped[earlier[index]]:
                dropped[later[index]] = True
        begin = end
    return dropped


def _candidates(bands: Sequence[_Band], begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a hash in `begin` to `end` and an earlier one that share a band; some occur twice."""
    later, earlier = [], []
    for band in bands:
        counts = band.before[begin:end]
        ones = np.repeat(np.arange(begin, end), counts)
        back = np.arange(len(ones)) - np.repeat(np.cumsum(counts) - counts, counts)
        later.append(ones)
        earlier.append(band.order[band.place[ones] - 1 - back])
    return np.concatenate(later), np.concatenate(earlier)


def _search_all(hashes: np.ndarray, distance: int) -> np.ndarray:
    dropped = np.zeros(len(hashes), bool)
    kept = np.empty(len(hashes), np.uint64)
    count = 0
    for begin in range(0, len(hashes), _BLOCK):
        block = hashes[begin : begin + _BLOCK]
        alike = np.zeros(len(block), bool)
        for start in range(0, count, _BLOCK):
            alike |= _close(block, kept[start : min(start + _BLOCK, count)], distance).any(axis=1)
        among = _close(block, block, distance)
        for index in range(len(block)):
            if not alike[index]:
                alike[index + 1 :] |= among[index, index + 1 :]
        dropped[begin : begin + len(block)] = alike
        stay = block[~alike]
        kept[count : count + len(stay)] = stay
        count += len(stay)
    return dropped


def _close(some: np.ndarray, others: np.ndarray, distance: int) -> np.ndarray:
    return np.bitwise_count(some[:, None] ^ others[None, :]) <= distance


def _look(content: bytes, kind: str, limits: Limits) -> int | None:
    """The hash of the picture's look; None where it says nothing or none is asked for."""
    if kind == "none":
        return None
    picture = Image.fromarray(decode_image(content, limits, fit=_SEEN)).convert("L")
    if np.asarray(picture.resize((32, 32), Image.Resampling.BOX)).std() < _FLAT:
        return None
    bits = _hash_function(kind)(picture).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _hash_function(kind: str) -> Callable[[Image.Image], Any]:
    try:
        import imagehash
    except ImportError:
        raise UserError("perceptual duplicates need a further package: pip install imagehash") from None
    return imagehash.phash if kind == "phash" else imagehash.dhash
