"""What a training run may be told: the classes behind configs/train.yaml."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mentor.adapters import AdapterConfig
from mentor.config import Config
from mentor.data.settings import DataConfig
from mentor.models import GeneratorConfig
from mentor.tokenizers import ImageTokenizerConfig
from mentor.training.image_tokenizer_module import LossConfig
from mentor.training.optim import OptimizerConfig


class RunConfig(Config):
    """Where a run keeps its things.

    Attributes:
        dir: folder of config.yaml, checkpoints/, logs/, samples/ and, at the end, release/.
    """

    dir: str


class EMAConfig(Config):
    """The running average of the weights, which validation and the release use.

    Attributes:
        decay: share of the average that stays at each update; less in the first updates.
    """

    decay: float = Field(default=0.999, ge=0, lt=1)


class TrainerConfig(Config):
    """How long to train, on what, and how often to look.

    Attributes:
        accelerator: cpu, gpu or auto.
        devices: processes, one for each device; more than one trains with DDP.
        nodes: machines.
        strategy: how several processes share the work: "ddp" gives each of them the whole model, "fsdp" a share of it.
        precision: of the forward pass; weights stay float32.
        max_steps: optimizer updates in all.
        accumulate: batches that are summed up for one update.
        validate_every: updates between validations; 0 for never.
        validation_batches: batches a validation takes at most; 0 for all.
        checkpoint_every: updates between checkpoints; 0 for none but the timed and the last one.
        checkpoint_minutes: minutes between checkpoints at most.
        keep: the newest checkpoints that are kept; with one alone there is nothing to go back to if it is damaged.
        keep_every: checkpoints of a multiple of so many updates are kept for ever; 0 for none.
        log_every: updates between two rows of the logs.
        samples: pictures of each task that a validation draws; 0 for none.
        threads: processor threads of each process; 0 shares out what there is.
        timeout: seconds after which processes that wait for each other give up, and all end.
        deterministic: refuse operations whose result varies from run to run.
    """

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    max_steps: int = Field(gt=0)
    accumulate: int = Field(default=1, ge=1)
    validate_every: int = Field(default=500, ge=0)
    validation_batches: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=0, ge=0)
    checkpoint_minutes: float = Field(default=2.0, gt=0)
    keep: int = Field(default=2, ge=1)
    keep_every: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, ge=1)
    samples: int = Field(default=4, ge=0)
    threads: int = Field(default=0, ge=0)
    timeout: float = Field(default=300.0, gt=0)
    deterministic: bool = False


class GuardConfig(Config):
    """What to do when training goes wrong. Whatever is done is logged, and counted in the run's summary.

    `stop` ends the run before the update; `skip` leaves the update out and goes on; `rollback` goes back to the last
    checkpoint and leaves those samples out; `report` only tells.

    Attributes:
        nonfinite: of a loss or a gradient that is not a number or infinite.
        spike: of a loss far above what its task had of late.
        spike_sigmas: so many standard deviations above the running mean is a spike; 0 looks for none.
        spike_window: updates of a task that mean and deviation look back, about; half as many come before the first
            judgement.
        in_a_row: after so many skips or rollbacks without a good update in between the run stops.
        full_disk: of a checkpoint for which there is no room: `skip` goes on without it, and tries again next time.
        exhausted: of a learning rate that is 0 before the last update.
        max_epochs: how often training may see a sample of any task, on average; null for any number.
    """

    nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    spike: Literal["report", "stop", "skip", "rollback"] = "report"
    spike_sigmas: float = Field(default=6.0, ge=0)
    spike_window: int = Field(default=100, ge=4)
    in_a_row: int = Field(default=5, ge=1)
    full_disk: Literal["stop", "skip"] = "stop"
    exhausted: Literal["report", "stop"] = "report"
    max_epochs: float | None = Field(default=None, gt=0)


class GuidanceConfig(Config):
    """How often a prompt loses parts in training, so that guidance has something to push away from.

    Attributes:
        everything: share of prompts of which nothing is left.
        text: share of which only the images are left.
        images: share of which only the text is left.
    """

    everything: float = Field(default=0.1, ge=0, le=1)
    text: float = Field(default=0.05, ge=0, le=1)
    images: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check_sum(self) -> "GuidanceConfig":
        if self.everything + self.text + self.images > 1:
            raise ValueError("everything + text + images must not exceed 1")
        return self


class ObjectiveConfig(Config):
    """The generator's loss.

    Attributes:
        focus_weight: a cell that the named object fills weighs 1 + focus_weight times one without it. Most cells are
            background, and without this they make up nearly all of the loss.
        label_smoothing: share of the target's probability that is spread over all codes.
    """

    focus_weight: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    guidance: GuidanceConfig = GuidanceConfig()


class TrainBase(Config):
    """What all stages share.

    Attributes:
        name: the experiment's name.
        seed: of all chance in the run.
        resume: go on where an earlier run in the same folder was; False puts that one aside and starts over.
        guard: what to do when training goes wrong.
        freeze: glob patterns of parameters that are not trained.
        ema: null keeps no average.
    """

    name: str
    seed: int = 0
    resume: bool = True
    run: RunConfig
    data: DataConfig
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    ema: EMAConfig | None = EMAConfig()
    guard: GuardConfig = GuardConfig()
    freeze: tuple[str, ...] = ()

    @field_validator("data", mode="before")
    @classmethod
    def _drop_unused_tasks(cls, data: Any) -> Any:
        """Leave tasks of weight 0 or null out, so that an override can take a task away."""
        if isinstance(data, dict) and isinstance(data.get("mixture"), dict):
            return data | {"mixture": {task: weight for task, weight in data["mixture"].items() if weight}}
        return data


class ImageTokenizerTraining(TrainBase):
    """Stage `tokenizer`. `init_from` is a release folder to start from; null starts with fresh weights."""

    stage: Literal["tokenizer"]
    image_tokenizer: ImageTokenizerConfig
    loss: LossConfig = LossConfig()
    init_from: str | None = None


class AlignmentTraining(TrainBase, GeneratorConfig):
    """Stage 1, or stage `diffusion` for a diffusion transformer: the same task for either.

    Attributes:
        image_tokenizer_from: release folder of the image tokenizer.
        init_from: release folder of a generator with the same parts, to start from; null starts with fresh weights.
    """

    stage: Literal["1", "diffusion"]
    image_tokenizer_from: str
    init_from: str | None = None
    objective: ObjectiveConfig = ObjectiveConfig()

    @property
    def generator(self) -> GeneratorConfig:
        """The generator's own part of these settings."""
        return GeneratorConfig(**{name: getattr(self, name) for name in GeneratorConfig.model_fields})

    @property
    def command(self) -> str:
        """What trains the release that `init_from` names."""
        return f"stage={self.stage} experiment={self.name}"


class TuningTraining(TrainBase):
    """Stage 2, or `diffusion_2`. The model, its image tokenizer and its text tokenizer are those of `init_from`.

    Attributes:
        init_from: release folder.
        adapter: what is trained in the model's place, which stays as it is; null trains the model.
    """

    stage: Literal["2", "diffusion_2"]
    init_from: str
    adapter: AdapterConfig | None = None
    objective: ObjectiveConfig = ObjectiveConfig()

    @property
    def command(self) -> str:
        """What trains the release that `init_from` names."""
        return f"stage={'1' if self.stage == '2' else 'diffusion'} experiment={self.name}"


GeneratorTraining = AlignmentTraining | TuningTraining
TrainConfig = Annotated[ImageTokenizerTraining | AlignmentTraining | TuningTraining, Field(discriminator="stage")]
