"""What an evaluation measures, on how many examples, and how its pictures are drawn."""

from pydantic import Field

from mentor.config import Config
from mentor.data.tasks import TASKS
from mentor.sampling import SamplingConfig


class Counts(Config):
    """Held-out examples of each task; 0 leaves the task out. `tokenizer` counts pictures."""

    tokenizer: int = Field(default=1000, ge=0)
    reconstruct: int = Field(default=96, ge=0)
    segment: int = Field(default=96, ge=0)
    text_to_image: int = Field(default=128, ge=0)
    recover: int = Field(default=96, ge=0)
    subject: int = Field(default=128, ge=0)


class TaskSampling(Config):
    """How the pictures of each task are drawn.

    A task with one right answer is answered greedily; guidance is for those where the prompt leaves a choice.
    """

    reconstruct: SamplingConfig = SamplingConfig(guidance=1.0, temperature=0.0)
    segment: SamplingConfig = SamplingConfig(guidance=1.0, temperature=0.0)
    text_to_image: SamplingConfig = SamplingConfig(guidance=2.0, temperature=0.7)
    recover: SamplingConfig = SamplingConfig(guidance=1.0, temperature=0.0)
    subject: SamplingConfig = SamplingConfig(guidance=2.0, temperature=0.7)


class EvaluationConfig(Config):
    """Settings of `mentor.evaluate`.

    Attributes:
        model: release folder of a generator, or of an image tokenizer alone.
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
    """

    model: str
    data: str
    output: str
    runs: list[str] | None = None
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=32, gt=0)
    candidates: int = Field(default=16, ge=2)
    image_only: float = Field(default=0.1, ge=0, le=1)
    recover_min_scale: float = Field(default=0.2, gt=0, le=1)
    recover_distort: float = Field(default=0.5, ge=0, le=1)
    recover_distractors: bool = True
    counts: Counts = Counts()
    sampling: TaskSampling = TaskSampling()
    shown: int = Field(default=12, ge=0)
    extremes: int = Field(default=4, ge=0)
    device: str = "cpu"

    @property
    def tasks(self) -> list[str]:
        """The tasks that are measured, in the order of `TASKS`."""
        return [task for task in TASKS if getattr(self.counts, task)]

    def sampling_of(self, task: str) -> SamplingConfig:
        """How a task's pictures are drawn."""
        return getattr(self.sampling, task)
