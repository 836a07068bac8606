"""Memory of a process that draws again and again, as JSON: bytes after the first calls, at the end, and at most.

Run by `serving.py` in a process that has loaded nothing else: python -m benchmarks.memory CALLS FIRST
"""

import json
import os
import random
import sys
from pathlib import Path

import torch

from benchmarks.models import random_generator, text_condition
from mentor.models import BackboneConfig
from mentor.models.packing import pack
from mentor.sampling import SamplingConfig, sample


def main() -> None:
    """Draw, and print the memory."""
    calls, first = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    generator = random_generator(BackboneConfig(layers=2, width=128, heads=2), grid=(8, 8), vocabulary=2048)
    generator = pack(generator, "fp32")
    rng = random.Random(0)
    resident = []
    for _ in range(calls):
        batch, guidance, words = rng.randint(1, 16), rng.choice([1.0, 3.0]), rng.randint(1, 60)
        condition = text_condition(batch, " ".join(["red"] * words))
        sample(generator, condition, range(batch), SamplingConfig(guidance=guidance))
        resident.append(resident_bytes())
    print(json.dumps({"first": resident[first - 1], "last": resident[-1], "most": max(resident)}))


def resident_bytes() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
