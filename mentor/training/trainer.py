"""Lightning's trainer as our runs use it: callbacks, loggers, strategy."""

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from mentor.errors import UserError
from mentor.training.averaging import Averaging
from mentor.training.build import TrainingModule
from mentor.training.callbacks import DueValidation, Progress, Rows, Samples, StepSeeds
from mentor.training.checkpoints import AtomicCheckpointIO, Checkpoints
from mentor.training.config import TrainBase, TrainerConfig
from mentor.training.folder import RunFolder
from mentor.training.freeze import FrozenWatch
from mentor.training.generator_module import GeneratorModule
from mentor.training.guards import Guard
from mentor.training.logs import MetricsTable
from mentor.training.processes import Place, on_cpu
from mentor.training.sharding import ShardedStrategy
from mentor.training.signals import StopSignals


@dataclass
class Session:
    """A module, its trainer, and the callbacks that others ask something of."""

    folder: RunFolder
    module: TrainingModule
    trainer: lightning.Trainer
    guard: Guard
    samples: Samples
    checkpoints: Checkpoints
    frozen: FrozenWatch

    def release_memory(self) -> None:
        """Let go of weights and optimizer states; the session is over."""
        self.trainer.optimizers = []
        self.module.to("meta")


def build_session(
    config: TrainBase,
    settings: Mapping[str, Any],
    folder: RunFolder,
    module: TrainingModule,
    place: Place,
    signals: StopSignals,
    say: Callable[[str], None],
) -> Session:
    """A trainer for the module, with the run's callbacks and loggers; makes no files yet.

    Raises:
        UserError: the machine has not what the settings ask for.
    """
    own = config.trainer
    guard = Guard(config.guard, config.optimizer.clip, say)
    samples = Samples(folder.path / "samples", own.samples)
    checkpoints = Checkpoints(
        folder.checkpoints,
        own.checkpoint_every,
        own.checkpoint_minutes,
        own.keep,
        own.keep_every,
        config.guard.full_disk == "skip",
        signals,
        say,
    )
    table = MetricsTable(folder.path / "logs", folder.step)
    due = DueValidation(own.validate_every, table)
    callbacks: list[Callback] = [StepSeeds(config.seed), guard, Rows(guard, own.log_every), samples]
    if config.ema is not None:
        # After the samples: it takes the averaged weights out again when validation ends.
        callbacks.append(Averaging(config.ema.decay))
    stage = getattr(config, "stage", "")
    name = f"{config.name} {stage if stage == 'tokenizer' else f'stage {stage}'}"
    frozen = FrozenWatch({"image_tokenizer": module.image_tokenizer} if isinstance(module, GeneratorModule) else {})
    callbacks += [due, Progress(name, config.data.batch_size * own.accumulate), frozen, checkpoints]
    trainer = _build_trainer(config, settings, folder, place, table, callbacks)
    return Session(folder, module, trainer, guard, samples, checkpoints, frozen)


def _build_trainer(
    config: TrainBase,
    settings: Mapping[str, Any],
    folder: RunFolder,
    place: Place,
    table: MetricsTable,
    callbacks: list[Callback],
) -> lightning.Trainer:
    own = config.trainer
    loggers: list[Logger] = [
        table,
        TensorBoardLogger(str(folder.path / "logs"), name="", version="", default_hp_metric=False),
    ]
    try:
        trainer = lightning.Trainer(
            accelerator=own.accelerator,
            devices=place.local_world,
            num_nodes=place.nodes,
            strategy=build_strategy(own, settings, place),
            precision=own.precision,
            max_steps=own.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=own.accumulate,
            val_check_interval=validation_interval(own) * own.accumulate,
            check_val_every_n_epoch=None,
            limit_val_batches=(own.validation_batches or 1.0) if own.validate_every else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=own.log_every,
            use_distributed_sampler=False,
            deterministic=own.deterministic,
            logger=loggers,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(settings), build_environment(place)],
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder.path,
        )
    except MisconfigurationException as error:
        raise wrong_machine(own, place.local_world, error) from error
    # Its handlers talk to other processes from wherever the main thread is, and it asks all of them before every batch
    # whether to stop; `signals` and `checkpoints` do both.
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def wrong_machine(trainer: TrainerConfig, processes: int, error: Exception) -> UserError:
    """What to say when Lightning does not find here what the settings ask for."""
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"trainer.accelerator={trainer.accelerator} with {processes} process(es) does not work here ({reason}): choose "
        "what the machine has, such as trainer=cpu (--dry-run --world-size N plans for other machines)"
    )


def build_strategy(trainer: TrainerConfig, settings: Mapping[str, Any], place: Place) -> Strategy | str:
    """How processes share the work. A batch without reference images leaves parameters without a gradient."""
    if place.world == 1:
        return "auto"
    backend = "gloo" if on_cpu(trainer) else "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=trainer.timeout)
    if trainer.strategy == "fsdp":
        return ShardedStrategy(place.world, settings, backend, timeout)
    return DDPStrategy(find_unused_parameters=True, process_group_backend=backend, timeout=timeout)


def build_environment(place: Place) -> ClusterEnvironment:
    """Where Lightning finds which process this is; never by guessing."""
    match place.launcher:
        case "slurm":
            return SLURMEnvironment(auto_requeue=False)
        case "":
            return LightningEnvironment()
        case _:
            return TorchElasticEnvironment()


def validation_interval(trainer: TrainerConfig) -> int:
    """Updates between validations; the whole training when there are none."""
    return min(trainer.validate_every or trainer.max_steps, trainer.max_steps)


def set_threads(trainer: TrainerConfig, place: Place) -> None:
    """Share the processor out to this machine's processes, unless the environment has decided already."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available // place.local_world))


def quieten() -> None:
    """Silence what Lightning says about choices that were made on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    # The data module keeps its own place in the data, which Lightning looks for in the loader.
    # Pretrained encoders stay in eval mode.
    known = ("your dataloader is not resumable", "isinstance.treespec, LeafSpec", "GPU available but not used")
    for text in (*known, "in eval mode at the start of training"):
        warnings.filterwarnings("ignore", message=f".*{text}.*")
