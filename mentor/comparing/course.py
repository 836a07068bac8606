"""How good a run was on the way: its kept checkpoints and releases, by the compute they had behind them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mentor.comparing.measuring import load, prepare
from mentor.comparing.runs import Stage, Trained
from mentor.errors import UserError
from mentor.evaluation.benchmarks import Contestant, load_contestant
from mentor.evaluation.config import EvaluationConfig
from mentor.models import AnyGenerator
from mentor.training.checkpoint_files import listed, read_state

PREFIX = "generator."


@dataclass(frozen=True)
class Snapshot:
    """A run as it once was.

    Attributes:
        stage: the training.
        step: updates of this training.
        seconds: of compute since the first training began.
        checkpoint: where the weights are; None for the training's release.
    """

    stage: Stage
    step: int
    seconds: float
    checkpoint: Path | None

    @property
    def label(self) -> str:
        """What it is called, such as `stage 1, step 300`."""
        what = f"step {self.step:,}" if self.checkpoint else f"release after step {self.step:,}"
        return f"stage {self.stage.settings.get('stage', '?')}, {what}"


def snapshots(run: Trained) -> list[Snapshot]:
    """All that is kept of a run in order of time, each training's release as its end."""
    found: list[Snapshot] = []
    before = 0.0
    for stage in run.stages:
        for step, path in sorted(listed(stage.folder / "checkpoints")):
            if 0 < step < stage.updates:
                found.append(Snapshot(stage, step, before + step / stage.updates * stage.seconds, path))
        before += stage.seconds
        found.append(Snapshot(stage, stage.updates, before, None))
    return found


def load_snapshot(run: Trained, snapshot: Snapshot, config: EvaluationConfig) -> Contestant:
    """The run as it was then, ready to be measured.

    Raises:
        UserError: the checkpoint is damaged, or its weights are not those of the run's model.
    """
    if snapshot.checkpoint is None:
        return load(snapshot.stage.release_folder, config)
    contestant = load_contestant(run.last.release_folder, config.device, config.adapters)
    assert contestant.generator is not None
    load_average(contestant.generator, read_state(snapshot.checkpoint)["state_dict"], snapshot.checkpoint)
    return prepare(contestant, config)


def load_average(generator: AnyGenerator, state: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Load the averaged weights of a checkpoint; what a pretrained encoder keeps apart may be missing there.

    Raises:
        UserError: names or shapes do not match.
    """
    own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    try:
        result = generator.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise unlike(checkpoint, str(error).strip().splitlines()[-1].strip()) from error
    apart = generator.kept_apart
    missing = [name for name in result.missing_keys if not (apart and name.startswith(apart))]
    if missing or result.unexpected_keys:
        first = (missing or result.unexpected_keys)[0]
        raise unlike(checkpoint, f"{first} is {'missing' if missing else 'unknown'}")


def unlike(checkpoint: Path, reason: str) -> UserError:
    """The refusal of a checkpoint that does not fit."""
    return UserError(
        f"the checkpoint {checkpoint} is not one of the run's model ({reason}): move it out of its folder, "
        "or say --curve-counts 0"
    )
