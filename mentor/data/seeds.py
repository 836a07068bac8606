"""Chance that is the same on every machine: seeds from names and numbers, and what is drawn with them."""

import hashlib
import random

import numpy as np


def seed_from(*parts: object) -> int:
    """A 64-bit seed from names and numbers, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def sample_rng(seed: int, epoch: int, key: str, task: str) -> random.Random:
    """The one source of chance for a sample: what is drawn for it depends on these four alone."""
    return random.Random(seed_from("sample", seed, epoch, key, task))


def permutation(length: int, *parts: object) -> np.ndarray:
    """A permutation of `length` numbers, seeded by the parts."""
    seed = seed_from(*parts)
    # NumPy guarantees this legacy generator's output for good; the newer ones may change between releases.
    return np.random.RandomState([seed >> 32, seed & 0xFFFFFFFF]).permutation(length)
