"""Training with loaders that come and go, in a process of its own: `python soaking.py DATA` prints what it holds."""

import functools
import gc
import json
import os
import sys
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tiny import tiny_generator, tiny_image_tokenizer

from mentor.data.datamodule import DataModule
from mentor.data.settings import DataConfig
from mentor.training.config import ObjectiveConfig
from mentor.training.generator_module import GeneratorModule
from mentor.training.optim import OptimizerConfig, build_optimizer

STEPS, OPENED_FOR = 2000, 250
SIZE = 32
LEARN_EVERY = 20
MIXTURE = {"reconstruct": 1.0, "segment": 1.0, "text_to_image": 1.0, "recover": 1.0, "subject": 1.0}


class Use(NamedTuple):
    """What the process holds: bytes by Python's own count, resident bytes, open files, live children."""

    python: int
    resident: int
    files: int
    children: int


def measure() -> Use:
    """What is held now, less garbage and what caches with a bound have come to hold."""
    for one in gc.get_objects():
        if isinstance(one, functools._lru_cache_wrapper) and one.cache_parameters()["maxsize"]:
            one.cache_clear()
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = len(list(Path("/proc/self/fd").iterdir()))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return Use(tracemalloc.get_traced_memory()[0], resident, files, len(children))


def soak(root: Path) -> dict[int, Use]:
    """What is held after so many steps on the data set in `root`."""
    config = DataConfig(root=str(root), mixture=MIXTURE, batch_size=1, image_size=SIZE, workers=1)
    image_tokenizer, optimizing = tiny_image_tokenizer(), OptimizerConfig(lr=1e-3)
    generator = tiny_generator(image_tokenizer, SIZE)
    uses: dict[int, Use] = {}
    tracemalloc.start()
    try:
        data = DataModule(config, seed=0)
        module = GeneratorModule(generator, image_tokenizer, ObjectiveConfig(), optimizing, STEPS, config.tasks, 0)
        optimizer = build_optimizer(generator, optimizing)
        while data.consumed < STEPS:
            for batch in islice(data.train_dataloader(), OPENED_FOR):
                if data.consumed % LEARN_EVERY == 0:
                    losses = module.example_scores(module.drop(batch, data.consumed), batch, data.consumed)["loss"]
                    losses.mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
            uses[data.consumed] = measure()
    finally:
        tracemalloc.stop()
    return uses


if __name__ == "__main__":
    print(json.dumps({step: use._asdict() for step, use in soak(Path(sys.argv[1])).items()}))
