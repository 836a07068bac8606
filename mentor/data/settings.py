"""What training may be told of its data."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from mentor.config import Config
from mentor.data.streaming import StreamConfig
from mentor.data.tasks import TASKS


class DatasetConfig(Config):
    """One of several data sets.

    Attributes:
        root: folder or URL with `manifest.json`.
        weight: how often it is drawn from, in any unit; kept to in whole thousandths for every task.
        tasks: the only tasks that draw from it; empty: all that its records can serve.
    """

    root: str
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    tasks: tuple[str, ...] = ()

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if task not in TASKS:
                raise ValueError(f"unknown task {task!r}: known are {', '.join(TASKS)}")
        return tasks


class DataConfig(Config):
    """Which shards, which tasks, how many at once.

    Attributes:
        root: folder or URL with `manifest.json`, as tools/make_shards.py writes it; null where `datasets` are given.
        datasets: several data sets, mixed by weight, instead of one `root`.
        stream: unknown tars that are read in sequence instead, with weaker promises (see `mentor.data.streaming`).
        mixture: task -> weight, above 0, in any unit; kept to in whole thousandths of the steps.
        batch_size: examples in a step over all processes together (before accumulation).
        lanes: from how many places an epoch is read at once. A multiple of the number of processes lets these read
            shards of their own.
        workers: loader processes per training process; 0 loads in the training process itself.
        image_size: side of references and targets in pixels.
        image_only: share of reconstruction prompts that are the bare `<image>`.
        recover_min_scale: least size of recovery's object, as a share of its size in the target.
        recover_distort: share of recovery's objects that are stretched, sheared, rotated and tilted as well.
        recover_distractors: False lets recovery paste only on pictures without labelled objects, so that nothing else
            in the reference could be meant.
        warmup_steps: this many first steps are all of `warmup_task`.
        warmup_task: see there.
        validation_batch_size: examples in a validation step over all processes together.
        validation_limit: held-out records per task at most; 0 for all.
        max_bad: share of samples that may be unusable (damaged, or without what the task needs) before the run stops;
            each is counted and named, and the next in order takes its place. 0 stops at the first.
        skip_bad_shards: leave shards out that are missing or have another size, instead of refusing to start.
        cache_dir: where shards from elsewhere are kept; null: `mentor/shards` in the user's cache folder.
        cache_gigabytes: what they may take there.
    """

    root: str | None = None
    datasets: tuple[DatasetConfig, ...] = ()
    stream: StreamConfig | None = None
    mixture: dict[str, float]
    batch_size: int = Field(gt=0)
    lanes: int = Field(default=8, gt=0)
    workers: int = Field(default=1, ge=0)
    image_size: int = Field(default=64, gt=0)
    image_only: float = Field(default=0.1, ge=0, le=1)
    recover_min_scale: float = Field(default=0.2, gt=0, le=1)
    recover_distort: float = Field(default=0.5, ge=0, le=1)
    recover_distractors: bool = True
    warmup_steps: int = Field(default=0, ge=0)
    warmup_task: str = "reconstruct"
    validation_batch_size: int = Field(default=32, gt=0)
    validation_limit: int = Field(default=256, ge=0)
    max_bad: float = Field(default=0.0, ge=0, lt=1)
    skip_bad_shards: bool = False
    cache_dir: str | None = None
    cache_gigabytes: float = Field(default=50.0, gt=0)

    @field_validator("mixture")
    @classmethod
    def _known_tasks(cls, mixture: dict[str, float]) -> dict[str, float]:
        if not mixture:
            raise ValueError(f"the mixture is empty: give weights to some of {', '.join(TASKS)}")
        for task, weight in mixture.items():
            if task not in TASKS:
                raise ValueError(f"unknown task {task!r} in the mixture: known are {', '.join(TASKS)}")
            if not 0 < weight < float("inf"):
                raise ValueError(f"the weight of {task!r} is {weight:g}: give one above 0 or leave the task out")
        return mixture

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps and self.warmup_task not in TASKS:
            raise ValueError(f"unknown warmup_task {self.warmup_task!r}: known are {', '.join(TASKS)}")
        given = [name for name in ("root", "datasets", "stream") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"say one of root, datasets and stream, found {found} (root=null takes a root away)")
        return self

    @property
    def tasks(self) -> list[str]:
        """All tasks that training will meet, in the order of `TASKS`."""
        return [task for task in TASKS if task in self.mixture or (self.warmup_steps and task == self.warmup_task)]

    @property
    def sources(self) -> tuple[DatasetConfig, ...]:
        """The data sets, also where there is one."""
        return self.datasets or (DatasetConfig(root=self.root or ""),)

    @property
    def places(self) -> str:
        """The data sets' folders, or the stream's tars, for messages."""
        if self.stream is not None:
            return ", ".join(self.stream.urls)
        return ", ".join(source.root for source in self.sources)
