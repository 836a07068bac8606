"""Train a stage: python -m mentor.train stage=S [experiment=E key=value ...]."""

import os
import sys
from collections.abc import Mapping

from mentor.config import compose_with_options, validate
from mentor.errors import UserError, run_main

USAGE = """python -m mentor.train stage=S [experiment=E key=value ...]

Trains stage S of experiment E (demo if left out) and writes the model to `release/` in the run folder
`run.dir` (runs/E/S if left out). The same command goes on where an earlier start of it was; resume=false
puts the earlier run aside.
  --cfg             print the settings and end
  --dry-run         do everything but train: print parameters, memory, steps, samples and time, and end
  --world-size N    with --dry-run: plan for N processes on other machines, not for this one"""

OPTIONS = {"--dry-run": False, "--world-size": True}


def main() -> None:
    """Compose the settings from the command line and run."""
    settings, options = compose_with_options("train", sys.argv[1:], USAGE, OPTIONS)
    world_size = planned_world_size(options)
    # Torch's C++ part says on every start that batches with references leave no parameter unused, which is known.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Imported late, so that help and mistakes in settings do not wait for torch.
    from mentor.training.config import TrainConfig

    config = validate(TrainConfig, settings)
    if "--dry-run" in options:
        from mentor.training.dry_run import dry_run

        dry_run(config, world_size)
        return
    from mentor.training.run import train

    train(config)


def planned_world_size(options: Mapping[str, str]) -> int | None:
    """The number of processes to plan for; None where it was not given.

    Raises:
        UserError: it is no positive number, or there is nothing to plan.
    """
    given = options.get("--world-size")
    if given is None:
        return None
    if "--dry-run" not in options:
        raise UserError(
            "--world-size belongs to --dry-run: say trainer.devices and trainer.nodes to train on several processes"
        )
    if not given.isdecimal() or not int(given):
        raise UserError(f"--world-size {given}: give a whole number of processes, 1 or more")
    return int(given)


if __name__ == "__main__":
    run_main(main)
