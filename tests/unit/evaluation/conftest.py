"""Scenes of emoji and of shapes made in memory, the same degraded, and a small untrained release."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from tiny import save_tiny_releases

from mentor.data.making.composing import Composer
from mentor.data.making.recipes import load_recipe
from mentor.data.records import Record
from mentor.evaluation.judges import readable

ROOT = Path(__file__).resolve().parents[3]
SCENES = 60


def scenes_of(recipe: str, count: int) -> list[Record]:
    """Held-out scenes of a recipe that the oracle can read."""
    composer = Composer(load_recipe(recipe, [], ROOT / "data_recipes"))
    records: list[Record] = []
    for position in range(len(composer.plan["heldout"])):
        record = composer.record("heldout", position)
        if readable(record.attributes):
            records.append(record)
        if len(records) == count:
            break
    return records


@pytest.fixture(scope="session", params=["emoji", "shapes"])
def scenes(request: pytest.FixtureRequest) -> list[Record]:
    """Held-out records with procedural backgrounds."""
    return scenes_of(request.param, SCENES)


@pytest.fixture(scope="session")
def blurred(scenes: list[Record]) -> list[Record]:
    """The same with pictures about as far off (24 dB) as a good round trip through codes leaves them."""
    return [dataclasses.replace(record, image=degrade(record.image, seed)) for seed, record in enumerate(scenes)]


def degrade(image: np.ndarray, seed: int) -> np.ndarray:
    """The picture blurred, with stains of 4 px, grain and a tint."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    stains = ndimage.zoom(rng.normal(size=(height // 4, width // 4, 3)), (4, 4, 1), order=1) * 9
    noisy = ndimage.gaussian_filter(image.astype(np.float64), (0.9, 0.9, 0)) + stains
    noisy += rng.normal(size=image.shape) * 5 + rng.normal(size=3) * 4
    return noisy.clip(0, 255).round().astype(np.uint8)


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the releases `tokenizer` and `model`, untrained and very small."""
    return save_tiny_releases(tmp_path_factory.mktemp("releases"), codes=64)
