"""What an evaluation measures, on how many examples, and how its pictures are drawn."""

from pydantic import Field

from mentor.config import Config
from mentor.data.tasks import TASKS
from mentor.decoding.settings import SamplingConfig
from mentor.models.packing import PrecisionChoice


class Counts(Config):
    """Held-out examples of each task; 0 leaves the task out. `tokenizer` counts pictures."""

    tokenizer: int = Field(ge=0)
    reconstruct: int = Field(ge=0)
    segment: int = Field(ge=0)
    text_to_image: int = Field(ge=0)
    recover: int = Field(ge=0)
    subject: int = Field(ge=0)


class TaskSampling(Config):
    """How the pictures of each task are drawn."""

    reconstruct: SamplingConfig
    segment: SamplingConfig
    text_to_image: SamplingConfig
    recover: SamplingConfig
    subject: SamplingConfig


class EvaluationConfig(Config):
    """Settings of `mentor.evaluate`; their defaults stand in configs/evaluate.yaml.

    Attributes:
        model: release folder of a generator, or of an image tokenizer alone.
        adapters: release folders of adapters of that generator, FOLDER or FOLDER=STRENGTH.
        data: folder of the shards; their held-out split is used.
        output: gets metrics.json, report.html and samples/.
        runs: run folders whose loss curves the report shows; None takes those beside the model's run folder.
        seed: decides which examples are used and how pictures are drawn.
        batch_size: pictures drawn at once.
        candidates: how many held-out subjects the reference's own is to be found among.
        image_only, recover_min_scale, recover_distort, recover_distractors: as in training's `data`.
        counts: examples of each task.
        sampling: how each task's pictures are drawn.
        shown: examples of each task in the report, besides the best and the worst.
        extremes: best and worst examples of each task in the report.
        device: cpu or cuda.
        precision: of the generator's weights; fp32 is what was trained, the others are faster.
        seconds_before: time that was spent before, on training for example; `seconds/total` counts it in.
    """

    model: str
    adapters: list[str]
    data: str
    output: str
    runs: list[str] | None
    seed: int = Field(ge=0)
    batch_size: int = Field(gt=0)
    candidates: int = Field(ge=2)
    image_only: float = Field(ge=0, le=1)
    recover_min_scale: float = Field(gt=0, le=1)
    recover_distort: float = Field(ge=0, le=1)
    recover_distractors: bool
    counts: Counts
    sampling: TaskSampling
    shown: int = Field(ge=0)
    extremes: int = Field(ge=0)
    device: str
    precision: PrecisionChoice
    seconds_before: float = Field(ge=0)

    @property
    def tasks(self) -> list[str]:
        """The tasks that are measured, in the order of `TASKS`."""
        return [task for task in TASKS if getattr(self.counts, task)]

    def sampling_of(self, task: str) -> SamplingConfig:
        """How a task's pictures are drawn."""
        return getattr(self.sampling, task)
