"""Caches: what is stored where, who may look at it, and what may not be done."""

import pytest
import torch

from mentor.nn.attention import attend
from mentor.nn.cache import BlockCache, KVCache, PrefixCache

LAYERS, HEADS, WIDTH = 2, 2, 4


def make_prefix(length: int, seed: int) -> PrefixCache:
    generator, prefix = torch.Generator().manual_seed(seed), PrefixCache()
    for layer in range(LAYERS):
        x = torch.randn(1, HEADS, length, WIDTH, generator=generator)
        prefix.attend(layer, x, x, -x)
    return prefix


def expected(prefix: PrefixCache, keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """What one row gathers, by plain attention over all it has."""
    all_keys = torch.cat((prefix.keys[1], keys), dim=2)
    all_values = torch.cat((prefix.values[1], values), dim=2)
    return attend(queries, all_keys, all_values, None)


@pytest.mark.parametrize("shared", [0, 3])
def test_rows_see_their_prefix_and_their_own_tokens(shared: int) -> None:
    prefixes = [make_prefix(5, 0), make_prefix(2, 1)]
    rows = [prefix for prefix in prefixes for _ in range(3)]
    cache = KVCache(prefixes if shared else rows, 4, shared)
    k, v, q = (torch.randn(6, HEADS, 4, WIDTH) for _ in range(3))
    for at in range(4):
        cache.place(at, 1, at + 1)
        out = cache.attend(1, *(x[:, :, at : at + 1] for x in (q, k, v)))
        for row in range(6):
            so_far = (x[row : row + 1, :, : at + 1] for x in (k, v))
            torch.testing.assert_close(
                out[row : row + 1], expected(rows[row], *so_far, q[row : row + 1, :, at : at + 1])
            )


@pytest.mark.parametrize("shared", [0, 2])
def test_rows_may_be_at_places_of_their_own_and_write_several_tokens(shared: int) -> None:
    prefix = make_prefix(3, 0)
    cache = KVCache([prefix] if shared else [prefix, prefix], 6, shared)
    k, v, q = (torch.randn(2, HEADS, 6, WIDTH) for _ in range(3))
    cache.place(0, 3, 3)
    cache.attend(1, q[:, :, :3], k[:, :, :3], v[:, :, :3])
    # The first row takes back its third token, the second goes on behind it.
    places = torch.tensor([2, 3])
    cache.place(places, 2, 5)
    chosen = [torch.stack([x[row, :, at : at + 2] for row, at in enumerate(places.tolist())]) for x in (q, -k, v)]
    out = cache.attend(1, *chosen)
    for row, at in enumerate(places.tolist()):
        for ahead in range(2):
            keys = torch.cat((k[row, :, :at], -k[row, :, at : at + ahead + 1]), dim=1).unsqueeze(0)
            wanted = expected(prefix, keys, v[row : row + 1, :, : at + ahead + 1], q[row : row + 1, :, [at + ahead]])
            torch.testing.assert_close(out[row : row + 1, :, [ahead]], wanted)


@pytest.mark.parametrize("together", [False, True])
def test_rows_are_selected_copied_and_taken_by_others(together: bool) -> None:
    parts = [[make_prefix(length, seed + length) for length in (4, 2, 3)] for seed in (0, 10)]
    blocks = [KVCache(parts[0] + parts[1], 2)] if together else [KVCache(part, 2) for part in parts]
    cache = BlockCache(blocks, 2)
    cache.select(torch.tensor([2, 0, 2]))
    for part in range(2):
        cache.enter(part, 1, parts[part][1])
    assert cache.fits([4, 4]) and not cache.fits([4, 5])
    order = [prefixes[place] for prefixes in parts for place in (2, 1, 2)]
    cache.place(0, 1, 1)
    k, v, q = (torch.randn(6, HEADS, 1, WIDTH) for _ in range(3))
    out = cache.attend(1, q, k, v)
    for row in range(6):
        one = slice(row, row + 1)
        torch.testing.assert_close(out[one], expected(order[row], k[one], v[one], q[one]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(IndexError, match="holds 2 tokens and 3 were asked for"):
        KVCache([make_prefix(3, 0)], 2).place(2, 1, 3)
    with pytest.raises(ValueError, match="shared=0"):
        KVCache([make_prefix(3, 0)], 2, shared=2).select(torch.tensor([0]))


def test_what_lies_behind_the_filled_part_is_not_read() -> None:
    cache = KVCache([make_prefix(3, 0)], 5)
    for stored in (*cache.keys, *cache.values):
        stored[:, :, 4:] = float("nan")
    cache.place(0, 1, 1)
    x = torch.randn(1, HEADS, 1, WIDTH)
    assert cache.attend(0, x, x, x).isfinite().all()
