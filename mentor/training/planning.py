"""What a training run would be: everything that can be known without training, for this machine or for another one."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from mentor.data.mixture import PERIOD, thousandths
from mentor.data.order import check_share
from mentor.data.streammodule import StreamModule, TrainingData, open_data
from mentor.errors import check_output
from mentor.memory import free_memory
from mentor.training.blueprint import Blueprint, draw_blueprint
from mentor.training.config import TrainBase, TrainConfig
from mentor.training.demand import Demand, Load, estimate_demand, process_load
from mentor.training.folder import RunFolder, inspect_folder, refuse_used
from mentor.training.memory import States, checkpoint_bytes, count_states, release_bytes
from mentor.training.processes import Place
from mentor.training.rehearsal import bare_trainer, measure_step
from mentor.training.run import say_anywhere
from mentor.training.sharding import check_sharding
from mentor.training.trainer import set_threads

# Up to so many floating-point operations a step is tried out.
SMALL = 2e12


class Share(NamedTuple):
    """What a data module asks its trainer: which process this is, of how many."""

    global_rank: int
    world_size: int


@dataclass(frozen=True)
class TaskPlan:
    """How a task gets on in the whole run; `usable` is None where that is not known."""

    name: str
    batches: int
    examples: int
    usable: int | None


@dataclass(frozen=True)
class Plan:
    """All that is known beforehand.

    Attributes:
        config: the settings.
        folder: the run folder as it is.
        world: processes.
        data: what is trained on, in a few words.
        tasks: see there.
        batch_seconds: of making a process's batch.
        blueprint: what is trained.
        states: of a process.
        load: of a process.
        demand: of a process.
        checkpoint: bytes of one on the disk.
        release: likewise.
        disk: bytes free where the run folder is or would be.
        memory: bytes free here; 0 where that is not known or does not matter, since the run is meant for elsewhere.
        step_seconds: of an update, measured; None where it was not.
        unmeasured: why not.
    """

    config: TrainConfig
    folder: RunFolder
    world: int
    data: str
    tasks: list[TaskPlan]
    batch_seconds: float
    blueprint: Blueprint
    states: States
    load: Load
    demand: Demand
    checkpoint: int
    release: int
    disk: int
    memory: int
    step_seconds: float | None
    unmeasured: str

    @property
    def steps_left(self) -> int:
        """Updates from where the run folder is."""
        return self.config.trainer.max_steps - self.folder.step

    @property
    def needed_disk(self) -> int:
        """Bytes that the run folder grows to, about: the checkpoints kept, one in the making, the release."""
        own = self.config.trainer
        forever = own.max_steps // own.keep_every if own.keep_every else 0
        return (own.keep + forever + 1) * self.checkpoint + self.release

    @property
    def update_seconds(self) -> float | None:
        """Of an update with its batches, as far as these are not made meanwhile."""
        if self.step_seconds is None:
            return None
        making = self.batch_seconds * self.config.trainer.accumulate
        workers = self.config.data.workers
        return max(self.step_seconds, making / workers) if workers else self.step_seconds + making


def open_folder(config: TrainConfig) -> RunFolder:
    """The run folder as it is.

    Raises:
        UserError: a run could not use it.
    """
    path = Path(config.run.dir)
    folder = inspect_folder(path, config.model_dump(mode="json"), say_anywhere) if config.resume else RunFolder(path)
    check_output(path)
    refuse_used(path)
    return folder


def make_plan(config: TrainConfig, folder: RunFolder, world_size: int | None) -> Plan:
    """What a run in this folder would be.

    Raises:
        UserError: what a run would refuse.
    """
    own = config.trainer
    world = own.devices * own.nodes if world_size is None else world_size
    check_share("data.batch_size", config.data.batch_size, world)
    check_share("data.validation_batch_size", config.data.validation_batch_size, world)
    check_sharding(config)
    if world_size is None and own.nodes == 1:
        bare_trainer(config, own.devices, [])
    # Batches are made in this process, so that their time is that of one process.
    datamodule = open_data(config.data.model_copy(update={"workers": 0}), config.seed, say_anywhere)
    batch_seconds = time_batch(datamodule, world)
    blueprint = draw_blueprint(config, datamodule)
    states = count_states(blueprint, config.ema is not None, world, own.strategy == "fsdp")
    load = process_load(config, blueprint, world, codes=datamodule.codes is not None)
    accelerator = own.accelerator == "gpu" or (own.accelerator == "auto" and torch.cuda.is_available())
    demand = estimate_demand(config, blueprint, load, accelerator)
    memory = free_memory(accelerator) if world_size is None else 0
    unmeasured = _why_not(config, world, states, demand, accelerator)
    return Plan(
        config=config,
        folder=folder,
        world=world,
        data=datamodule.summary,
        tasks=plan_tasks(config, datamodule),
        batch_seconds=batch_seconds,
        blueprint=blueprint,
        states=states,
        load=load,
        demand=demand,
        checkpoint=checkpoint_bytes(blueprint, config.ema is not None),
        release=release_bytes(blueprint),
        disk=shutil.disk_usage(_existing(folder.path)).free,
        memory=memory,
        step_seconds=None if unmeasured else _measured(config, datamodule),
        unmeasured=unmeasured,
    )


def time_batch(datamodule: TrainingData, world: int) -> float:
    """Seconds in which a process makes its share of a batch; the first one, which opens files, is not timed.

    Raises:
        UserError: a batch cannot be made.
    """
    datamodule.trainer = cast(Any, Share(0, world))
    batches = iter(datamodule.train_dataloader())
    next(batches)
    began = time.perf_counter()
    next(batches)
    return time.perf_counter() - began


def plan_tasks(config: TrainBase, datamodule: TrainingData) -> list[TaskPlan]:
    """What each task gets of the run's batches."""
    data = config.data
    batches = config.trainer.max_steps * config.trainer.accumulate
    warm = min(batches, data.warmup_steps)
    usable = {} if isinstance(datamodule, StreamModule) else datamodule.usable
    mixed = sorted(data.mixture)
    shares = dict(zip(mixed, thousandths({task: data.mixture[task] for task in mixed}), strict=True))
    plans = []
    for task in data.tasks:
        own = round((batches - warm) * shares.get(task, 0) / PERIOD) + (warm if task == data.warmup_task else 0)
        plans.append(TaskPlan(task, own, own * data.batch_size, usable[task][0] if usable else None))
    return plans


def _why_not(config: TrainConfig, world: int, states: States, demand: Demand, accelerator: bool) -> str:
    """Why a step is not tried out here; empty if it is."""
    if world > 1:
        return f"{world} processes are planned (trainer.devices=1, without --world-size, measures one by itself)"
    if accelerator and not torch.cuda.is_available():
        return "there is no accelerator here"
    if (work := demand.flops * config.trainer.accumulate) > SMALL:
        return f"it takes {work / 1e12:,.3g} TFLOP, and up to {SMALL / 1e12:g} are tried out"
    if states.total + demand.most > (free_memory(accelerator) or float("inf")):
        return "it takes more memory than is free here"
    return ""


def _measured(config: TrainConfig, datamodule: TrainingData) -> float:
    set_threads(config.trainer, Place())
    return measure_step(config, datamodule)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.exists())
