"""Duplicates: which picture stays, that the quick search is the pairwise one, and what fingerprints survive."""

import sys
import time
from dataclasses import dataclass

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import saved
from PIL import Image

from mentor.data.making import duplicates
from mentor.data.making.duplicates import (
    Duplicates,
    Fingerprints,
    alike_before,
    find_duplicates,
    join_fingerprints,
    load_fingerprints,
    save_fingerprints,
    scan,
)
from mentor.data.sources.items import Item
from mentor.data.storage.decoding import Limits
from mentor.errors import UserError

BOTH = Duplicates(exact=True, perceptual=4)


@dataclass(frozen=True)
class Bytes:
    content: bytes | None

    def read(self) -> bytes:
        if self.content is None:
            raise OSError("gone")
        return self.content


def natural(seed: int, side: int = 160) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def items(*contents: bytes | None) -> list[Item]:
    return [Item(str(index), Bytes(content)) for index, content in enumerate(contents)]


def pairwise(hashes: np.ndarray, distance: int) -> list[bool]:
    """The search as one would describe it."""
    stay: list[int] = []
    alike = []
    for one in hashes.tolist():
        alike.append(any((one ^ other).bit_count() <= distance for other in stay))
        if not alike[-1]:
            stay.append(one)
    return alike


def hashes_like(kind: str, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    random = rng.integers(0, 2**64, count, dtype=np.uint64, endpoint=False)
    if kind == "random":
        return random
    hashes = random[rng.integers(0, {"families": count // 10, "one family": 1}[kind], count)]
    for _ in range(4):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64))
    return hashes


def test_the_first_of_the_same_files_stays() -> None:
    first, second = saved(natural(1)), saved(natural(2))
    found = find_duplicates(scan(items(first, second, first, second, first), Duplicates()), Duplicates())
    assert found == {2: "exact duplicate", 3: "exact duplicate", 4: "exact duplicate"}


@pytest.mark.parametrize("kind", ["phash", "dhash"])
def test_copies_of_another_size_or_format_look_alike(kind: str) -> None:
    picture = natural(1, 600)
    copies = [
        saved(picture, quality=95),
        saved(natural(2, 600)),
        saved(picture, "PNG"),
        saved(picture.resize((100, 100)), quality=60),
        saved(picture, "WEBP"),
        saved(picture, quality=95),
    ]
    config = Duplicates(perceptual=4, hash=kind)
    assert find_duplicates(scan(items(*copies), config), config) == {
        2: "perceptual duplicate",
        3: "perceptual duplicate",
        4: "perceptual duplicate",
        5: "exact duplicate",
    }
    alone = Duplicates(perceptual=4, hash=kind, exact=False)
    assert set(find_duplicates(scan(items(*copies), alone), alone).values()) == {"perceptual duplicate"}
    exact = Duplicates()
    assert find_duplicates(scan(items(*copies), config), exact) == {5: "exact duplicate"}


@pytest.mark.parametrize("kind", ["phash", "dhash"])
def test_hashes_are_those_of_imagehash(kind: str) -> None:
    config = Duplicates(perceptual=0, hash=kind)
    found = scan(items(*(saved(natural(seed), "PNG") for seed in range(5))), config).perceptual
    assert found.tolist() == [int(str(getattr(imagehash, kind)(natural(seed))), 16) for seed in range(5)]


@pytest.mark.parametrize("kind", ["phash", "dhash"])
def test_flat_pictures_look_like_nothing(kind: str) -> None:
    flat = [saved(Image.new("RGB", (64, 64), colour)) for colour in ("white", "black", "red", "white")]
    noisy = np.random.default_rng(0).integers(199, 202, (64, 64, 3), dtype=np.uint8)
    flat.append(saved(Image.fromarray(noisy), "PNG"))
    config = Duplicates(perceptual=16, hash=kind)
    fingerprints = scan(items(*flat), config)
    assert not fingerprints.telling.any() and fingerprints.readable.all()
    assert find_duplicates(fingerprints, config) == {3: "exact duplicate"}
    drawn = np.full((64, 64, 3), 255, np.uint8)
    drawn[20:40, 20:40] = 0
    assert scan(items(saved(Image.fromarray(drawn))), config).telling.all()


def test_what_cannot_be_read_is_left_to_the_other_steps() -> None:
    broken = saved(natural(1))[:-50]
    contents = (None, None, b"<html>", b"<html>", broken, broken, saved(natural(1)))
    fingerprints = scan(items(*contents), BOTH)
    assert fingerprints.readable.tolist() == [False] * 6 + [True]
    assert find_duplicates(fingerprints, BOTH) == {}
    assert not scan(items(saved(natural(1))), BOTH, Limits(pixels=100)).readable.any()


def test_pictures_are_compared_with_those_that_stay() -> None:
    chain = np.array([0b000000, 0b000111, 0b111111, 0b1111111], np.uint64)
    assert alike_before(chain, 3).tolist() == [False, True, False, True]
    assert alike_before(chain[::-1], 3).tolist() == [False, True, False, True]
    assert alike_before(chain, 0).tolist() == [False] * 4
    assert alike_before(np.zeros(0, np.uint64), 4).tolist() == []


@pytest.mark.parametrize("kind", ["random", "families", "one family"])
@pytest.mark.parametrize("distance", [0, 1, 4, 7, 12, 16])
def test_the_search_equals_the_pairwise_one(kind: str, distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Few pairs at once, so that stretches end within families.
    monkeypatch.setattr(duplicates, "_PAIRS", 300)
    monkeypatch.setattr(duplicates, "_BLOCK", 100)
    hashes = hashes_like(kind, 2000)
    expected = pairwise(hashes, distance)
    assert alike_before(hashes, distance).tolist() == expected
    assert distance < 4 or kind == "random" or sum(expected) > 100
    unique = hashes[np.sort(np.unique(hashes, return_index=True)[1])]
    bands = duplicates._bands(unique, distance)
    both = duplicates._search_bands(unique, distance, bands), duplicates._search_all(unique, distance)
    for found in both:
        assert found.tolist() == pairwise(unique, distance)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 255), max_size=30), st.integers(0, 16))
def test_any_few_hashes_are_searched_like_pairwise(hashes: list[int], distance: int) -> None:
    array = np.array(hashes, np.uint64)
    expected = pairwise(array, distance)
    assert alike_before(array, distance).tolist() == expected
    assert duplicates._search_bands(array, distance, duplicates._bands(array, distance)).tolist() == expected


@pytest.mark.parametrize("kind", ["random", "families", "one family"])
def test_a_hundred_thousand_pictures_take_seconds(kind: str) -> None:
    hashes = hashes_like(kind, 100_000)
    before = time.process_time()
    alike_before(hashes, 4)
    assert time.process_time() - before < 5


def test_fingerprints_survive_their_file_and_their_parts() -> None:
    contents = (saved(natural(1)), None, saved(natural(2)), saved(Image.new("RGB", (9, 9))), saved(natural(1), "PNG"))
    for config in (BOTH, Duplicates(), Duplicates(perceptual=2, hash="dhash")):
        whole = scan(items(*contents), config)
        parts = [scan(items(*some), config) for some in (contents[:2], (), contents[2:])]
        joined = join_fingerprints([load_fingerprints(save_fingerprints(part)) for part in parts])
        assert joined.kind == whole.kind and len(joined) == 5
        for name in ("exact", "perceptual", "readable", "telling"):
            np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name), strict=True)
        assert find_duplicates(joined, config) == find_duplicates(whole, config)


def test_fingerprints_of_another_hash_are_refused() -> None:
    taken = scan(items(saved(natural(1))), BOTH)
    with pytest.raises(ValueError, match="hold phash hashes, dhash is asked for"):
        find_duplicates(taken, Duplicates(perceptual=4, hash="dhash"))
    with pytest.raises(ValueError, match="hold none hashes"):
        find_duplicates(scan(items(saved(natural(1))), Duplicates()), BOTH)
    with pytest.raises(ValueError, match="of one kind"):
        join_fingerprints([taken, scan((), Duplicates())])
    with pytest.raises(ValueError, match="of one kind"):
        join_fingerprints([])


def test_a_damaged_file_of_fingerprints_is_refused() -> None:
    whole = scan(items(saved(natural(1)), saved(natural(2))), BOTH)
    content = save_fingerprints(whole)
    short = Fingerprints(whole.exact, whole.perceptual[:1], whole.readable, whole.telling, "phash")
    strange = Fingerprints(whole.exact, whole.perceptual, whole.readable, whole.telling, "shash")
    for damaged in (b"", content[:-1], content[:40], save_fingerprints(short), save_fingerprints(strange)):
        with pytest.raises(UserError, match="delete it"):
            load_fingerprints(damaged)


def test_exact_duplicates_need_neither_pixels_nor_imagehash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    fingerprints = scan(items(b"no picture at all", b"no picture at all"), Duplicates())
    assert find_duplicates(fingerprints, Duplicates()) == {1: "exact duplicate"}
    with pytest.raises(UserError, match="pip install imagehash"):
        scan(items(saved(natural(1))), BOTH)
