"""A training run from its settings to its release folder."""

import logging
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_never

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mentor.config import flatten
from mentor.data.streammodule import TrainingData, open_data
from mentor.errors import UserError
from mentor.models import count_parameters
from mentor.models.checkpoint import Card, save_generator, save_image_tokenizer
from mentor.training.averaging import Averaging
from mentor.training.build import TrainingModule, build_module
from mentor.training.callbacks import FiniteGuard, Progress, Samples, StepSeeds, clock
from mentor.training.checkpoints import AtomicCheckpointIO, Checkpoints, Stopped
from mentor.training.config import TrainBase, TrainConfig
from mentor.training.folder import RunFolder, inspect_folder, put_aside, save_config
from mentor.training.generator_module import GeneratorModule
from mentor.training.grids import draw_grid
from mentor.training.image_tokenizer_module import ImageTokenizerModule
from mentor.training.logs import MetricsTable


def train(config: TrainConfig) -> None:
    """Train a stage and write `release/` into the run folder; goes on where an earlier start of the same run was.

    Raises:
        UserError: something that the run needs is missing or does not fit; nothing has been written then.
        SystemExit: a signal stopped the run, and there is a checkpoint to go on from.
    """
    quieten()
    settings = config.model_dump(mode="json")
    path = Path(config.run.dir)
    folder = inspect_folder(path, settings) if config.resume else RunFolder(path)
    if folder.finished:
        say(f"{title(config)}: finished already, the model is in {folder.release} (resume=false trains anew)")
        return
    set_threads(config)
    lightning.seed_everything(config.seed, verbose=False)
    datamodule = open_data(config.data, config.seed, say_anywhere)
    module = build_module(config, datamodule)
    checkpoints = Checkpoints(folder.checkpoints, config.trainer.checkpoint_every, config.trainer.checkpoint_minutes)
    samples = Samples(folder.path / "samples", config.trainer.samples)
    trainer = build_trainer(config, folder, [samples, checkpoints])
    if trainer.is_global_zero:
        claim(folder, config, settings)
    started = time.monotonic()
    announce(config, folder, datamodule, module)
    try:
        fit(trainer, module, datamodule, folder, checkpoints)
        conclude(config, trainer, module, datamodule, samples)
        if trainer.is_global_zero:
            write_release(config, folder, trainer, module, datamodule, samples)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    say(f"{title(config)}: done in {clock(time.monotonic() - started)}, the model is in {folder.release}")


def build_trainer(config: TrainBase, folder: RunFolder, callbacks: list[Callback]) -> lightning.Trainer:
    """Lightning's trainer with the run's callbacks and loggers; makes no files yet.

    Raises:
        UserError: the machine has not what the settings ask for.
    """
    settings = config.trainer
    # Samples stand before the averaging, which takes the averaged weights out again when validation ends.
    own: list[Callback] = [StepSeeds(config.seed), FiniteGuard(), *callbacks]
    if config.ema is not None:
        own.append(Averaging(config.ema.decay))
    own.append(Progress(title(config), config.data.batch_size * settings.accumulate))
    loggers: list[Logger] = [
        MetricsTable(folder.path / "logs", folder.step),
        TensorBoardLogger(str(folder.path / "logs"), name="", version="", default_hp_metric=False),
    ]
    try:
        return lightning.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=build_strategy(config),
            precision=settings.precision,
            max_steps=settings.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=config.optimizer.clip or None,
            val_check_interval=validation_interval(config) * settings.accumulate,
            check_val_every_n_epoch=None,
            limit_val_batches=(settings.validation_batches or 1.0) if settings.validate_every else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=settings.log_every,
            use_distributed_sampler=False,
            deterministic=settings.deterministic,
            logger=loggers,
            callbacks=own,
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder.path,
        )
    except MisconfigurationException as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"trainer.accelerator={settings.accelerator} with trainer.devices={settings.devices} does not work here "
            f"({reason}): choose what the machine has, such as trainer=cpu"
        ) from error


def build_strategy(config: TrainBase) -> DDPStrategy | str:
    """DDP where there is more than one process. A batch without reference images leaves parameters unused."""
    if config.trainer.devices * config.trainer.nodes == 1:
        return "auto"
    on_cpu = config.trainer.accelerator == "cpu" or not torch.cuda.is_available()
    return DDPStrategy(
        find_unused_parameters=True,
        process_group_backend="gloo" if on_cpu else None,
        timeout=timedelta(seconds=config.trainer.timeout),
    )


def validation_interval(config: TrainBase) -> int:
    """Updates between validations; the whole training when there are none."""
    return min(config.trainer.validate_every or config.trainer.max_steps, config.trainer.max_steps)


def fit(
    trainer: lightning.Trainer,
    module: TrainingModule,
    datamodule: TrainingData,
    folder: RunFolder,
    checkpoints: Checkpoints,
) -> None:
    """Train to the last step, from the folder's checkpoint if it has one."""
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=str(folder.checkpoint) if folder.checkpoint else None)
    except Stopped as stop:
        say(f"stopped at step {trainer.global_step}; the same command goes on from {checkpoints.path}")
        raise SystemExit(stop.code) from None
    except SIGTERMException:  # it came before the first step
        raise SystemExit(143) from None
    except UserError as error:
        # A loader process wraps the error's text in its traceback.
        raise UserError(str(error).rsplit("UserError: ", 1)[-1]) from error
    except (RuntimeError, SystemExit) as error:
        # Lightning ends with 1 after a second Ctrl-C; and Ctrl-C reaches the loader's processes, which may end first.
        if checkpoints.requested:
            raise SystemExit(128 + checkpoints.requested) from None
        if isinstance(error.__context__, KeyboardInterrupt):  # it came before the first step
            signal.signal(signal.SIGINT, interrupt)  # Lightning ignores it from the first one on
            raise KeyboardInterrupt from None
        raise


def conclude(
    config: TrainBase, trainer: lightning.Trainer, module: TrainingModule, datamodule: TrainingData, samples: Samples
) -> None:
    """Put the averaged weights into the module and validate them, if the last step did not."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Averaging):
            callback.finish(module)
    if config.trainer.validate_every and samples.step != config.trainer.max_steps:
        trainer.validate(module, datamodule=datamodule, verbose=False)
    module.eval()


def write_release(
    config: TrainBase,
    folder: RunFolder,
    trainer: lightning.Trainer,
    module: TrainingModule,
    datamodule: TrainingData,
    samples: Samples,
) -> None:
    """Write the run's release folder, whole or not at all."""
    rows = samples.rows(module)
    settings = flatten(config.model_dump(mode="json"))
    card = Card(
        title=title(config),
        training={name: value for name, value in settings.items() if name not in ("run.dir", "resume")},
        metrics=module.metrics,
        data={"root": config.data.places, "fingerprint": ", ".join(datamodule.fingerprints)},
        samples=draw_grid(rows) if rows else None,
    )
    size = config.data.image_size
    match module:
        case GeneratorModule():
            save_generator(folder.release, module.generator, module.image_tokenizer, size, card)
        case ImageTokenizerModule():
            save_image_tokenizer(folder.release, module.tokenizer, size, card)
        case _:
            assert_never(module)


def claim(folder: RunFolder, config: TrainBase, settings: dict[str, Any]) -> None:
    """Make the run folder this run's: put an earlier run aside if asked to, and write config.yaml."""
    if not config.resume and (aside := put_aside(folder.path)):
        say(f"{title(config)}: the earlier run is now in {aside}")
    save_config(folder.path, settings)


def announce(config: TrainBase, folder: RunFolder, datamodule: TrainingData, module: TrainingModule) -> None:
    """One line on what is going to be trained."""
    counts = count_parameters(module)
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count and name != "total")
    where = f"from step {folder.step} of" if folder.step else "for"
    say(
        f"{title(config)}: training {where} {config.trainer.max_steps} steps of "
        f"{config.data.batch_size * config.trainer.accumulate} on {datamodule.summary}; "
        f"parameters: {parts}; run folder {folder.path}"
    )


def title(config: TrainBase) -> str:
    """The run's name in messages and on its card, such as `demo stage 1`."""
    stage = getattr(config, "stage", "")
    return f"{config.name} {stage if stage == 'tokenizer' else f'stage {stage}'}"


def set_threads(config: TrainBase) -> None:
    """Share the processor out to this machine's processes, unless the environment has decided already."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available // config.trainer.devices))


@rank_zero_only
def say(line: str) -> None:
    """One line on standard error, from the first process only."""
    print(line, file=sys.stderr, flush=True)


def say_anywhere(line: str) -> None:
    """One line on standard error from whichever process has something to tell."""
    print(line, file=sys.stderr, flush=True)


def quieten() -> None:
    """Silence what Lightning says about choices that were made on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    # The data module keeps its own place in the data, which Lightning looks for in the loader.
    for text in ("your dataloader is not resumable", "isinstance.treespec, LeafSpec", "GPU available but not used"):
        warnings.filterwarnings("ignore", message=f".*{text}.*")
