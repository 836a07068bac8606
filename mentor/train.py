"""Train a stage: python -m mentor.train stage=S [experiment=E key=value ...]."""

import os
import sys

from mentor.config import compose_command, validate
from mentor.errors import run_main

USAGE = """python -m mentor.train stage=S [experiment=E key=value ...]

Trains stage S of experiment E (demo if left out) and writes the model to `release/` in the run folder
`run.dir` (runs/E/S if left out). The same command goes on where an earlier start of it was; resume=false
puts the earlier run aside. --cfg prints the settings and ends."""


def main() -> None:
    """Compose the settings from the command line and run."""
    settings = compose_command("train", sys.argv[1:], USAGE)
    # Torch's C++ part says on every start that batches with references leave no parameter unused, which is known.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Imported late, so that help and mistakes in settings do not wait for torch.
    from mentor.training.config import TrainConfig
    from mentor.training.run import train

    train(validate(TrainConfig, settings))


if __name__ == "__main__":
    run_main(main)
