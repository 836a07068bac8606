"""A training run from its settings to its release folder."""

import contextlib
import math
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, assert_never

import lightning
from torch import distributed

from mentor.adapters import adapter_weights, save_adapter
from mentor.config import flatten
from mentor.data.order import check_share
from mentor.data.streammodule import TrainingData, open_data
from mentor.errors import UserError
from mentor.models import count_parameters
from mentor.models.checkpoint import Card, save_generator, save_image_tokenizer
from mentor.training.averaging import Averaging
from mentor.training.build import TrainingModule, build_module
from mentor.training.callbacks import clock
from mentor.training.checkpoint_files import restore
from mentor.training.config import TrainBase, TrainConfig, TuningTraining
from mentor.training.folder import RunFolder, find_checkpoint, inspect_folder, locked, put_aside, save_config, tidy
from mentor.training.generator_module import GeneratorModule
from mentor.training.grids import draw_grid
from mentor.training.guards import RollBack
from mentor.training.image_tokenizer_module import ImageTokenizerModule
from mentor.training.launching import Launcher, follow_launcher
from mentor.training.processes import Place, find_place, joined
from mentor.training.requeue import requeue, under_slurm
from mentor.training.sharding import check_sharding, whole
from mentor.training.signals import Stopped, StopSignals
from mentor.training.summary import Summary
from mentor.training.trainer import Session, build_session, quieten, set_threads

T = TypeVar("T")
# What torch's ways between processes say when another process is gone or does not come.
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|broken pipe|TCPStore", re.IGNORECASE)


def train(config: TrainConfig) -> None:
    """Train a stage and write `release/` into the run folder; goes on where an earlier start of the same run was.

    Where the settings ask for several processes and no launcher has made them, this starts and watches them.

    Raises:
        UserError: something that the run needs is missing or does not fit; nothing has been written then.
        SystemExit: a signal stopped the run, and there is a checkpoint to go on from; or a process of it failed.
    """
    quieten()
    check_sharding(config)
    place = find_place(config.trainer)
    world = config.trainer.devices if place is None else place.world
    check_share("data.batch_size", config.data.batch_size, world)
    check_share("data.validation_batch_size", config.data.validation_batch_size, world)
    if place is None:
        Launcher(config.trainer.devices, say_anywhere).run()
        return
    follow_launcher()
    signals = StopSignals(requeue=under_slurm(), say=say_anywhere)
    say = say_anywhere if place.first else _say_nothing
    with signals.listening(), joined(place, config.trainer):
        Run(config, place, signals, say).run()


class Run:
    """One start of a run, in one of its processes.

    Args:
        config: the settings.
        place: which process this is.
        signals: what may come from outside.
        say: takes lines that one process tells for all.
    """

    def __init__(self, config: TrainConfig, place: Place, signals: StopSignals, say: Callable[[str], None]) -> None:
        self._config, self._place, self._signals, self._say = config, place, signals, say
        self._settings = config.model_dump(mode="json")
        self._session: Session | None = None
        self._summary: Summary | None = None

    def run(self) -> None:
        """From the run folder as it is to the release."""
        started = time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                folder = self._from_first(lambda: self._open_folder(stack))
                if folder.finished:
                    self._say(
                        f"{title(self._config)}: finished already, the model is in {folder.release} "
                        "(resume=false trains anew)"
                    )
                    return
                self._train(folder, stack)
        except Stopped as stop:
            self._on_stop(stop)
            raise
        except BaseException as error:
            self._write_summary("failed", reason=" ".join(str(error).split())[:500] or type(error).__name__)
            raise
        self._write_summary("finished")
        release = RunFolder(Path(self._config.run.dir)).release
        self._say(
            f"{title(self._config)}: done in {clock(time.monotonic() - started)}, the model is in {release}"
            f"{self._guarded()}"
        )

    def _open_folder(self, stack: contextlib.ExitStack) -> RunFolder:
        """Look at the run folder and keep other runs out of it."""
        path = Path(self._config.run.dir)
        if not self._config.resume:
            stack.enter_context(locked(path))
            return RunFolder(path)
        folder = inspect_folder(path, self._settings)
        if folder.finished:
            return folder
        stack.enter_context(locked(path))
        restore(folder.checkpoints)
        return inspect_folder(path, self._settings, self._say)

    def _train(self, folder: RunFolder, stack: contextlib.ExitStack) -> None:
        config = self._config
        set_threads(config.trainer, self._place)
        datamodule = open_data(config.data, config.seed, say_anywhere)
        session = self._session = self._prepare(folder, datamodule, None)
        if self._place.world > 1:
            distributed.barrier()  # nothing is written or announced before all of them are ready
        if self._place.first:
            self._claim(folder, stack)
        announce(config, folder, datamodule, session.module, self._say)
        while (request := self._fit(session, datamodule)) is not None:
            folder = self._from_first(self._newest)
            event = request.event
            self._say(
                f"guard: {event['what']} at update {event['step']} (task {event['task']}; samples "
                f"{', '.join(event['samples'][:4])}): rolled back to step {folder.step}, leaving these samples out"
            )
            datamodule.leave_out(request.positions)
            if folder.checkpoint is None:
                datamodule.from_the_beginning()
            again = self._prepare(folder, datamodule, session)
            again.guard.carry(session.guard, event)
            session = self._session = again
        conclude(config, session, datamodule)
        session.frozen.check(session.module)
        with whole(session.module):
            if self._place.first:
                write_release(config, session, datamodule)

    def _newest(self) -> RunFolder:
        return find_checkpoint(RunFolder(Path(self._config.run.dir)), self._settings, self._say)

    def _prepare(self, folder: RunFolder, datamodule: TrainingData, earlier: Session | None) -> Session:
        """Module and trainer; the same weights to begin with in every process and at every start."""
        lightning.seed_everything(self._config.seed, verbose=False)
        if earlier is not None:
            earlier.release_memory()
        module = build_module(self._config, datamodule)
        return build_session(self._config, self._settings, folder, module, self._place, self._signals, self._say)

    def _claim(self, folder: RunFolder, stack: contextlib.ExitStack) -> None:
        """Make the run folder this run's: put an earlier run aside if asked to, tidy up, and write config.yaml."""
        if not self._config.resume and (aside := put_aside(folder.path)):
            self._say(f"{title(self._config)}: the earlier run is now in {aside}")
            stack.enter_context(locked(folder.path))
        tidy(folder)
        save_config(folder.path, self._settings)
        self._summary = Summary(folder.path)
        self._summary.begin(resumed=folder.step > 0)

    def _fit(self, session: Session, datamodule: TrainingData) -> RollBack | None:
        """Train to the last step, from the folder's checkpoint if it has one; a request to go back, if one came."""
        checkpoint = session.folder.checkpoint
        try:
            session.trainer.fit(
                session.module, datamodule=datamodule, ckpt_path=str(checkpoint) if checkpoint else None
            )
        except RollBack as request:
            return request
        except UserError as error:
            # A loader process wraps the error's text in its traceback.
            raise UserError(str(error).rsplit("UserError: ", 1)[-1]) from error
        except RuntimeError as error:
            if self._place.world > 1 and _LOST.search(str(error)):
                # Without the place in the library that it begins with.
                reason = re.sub(r"^\[\S*\] ", "", next(iter(str(error).strip().splitlines()), ""))
                raise UserError(
                    f"process {self._place.rank} of {self._place.world} lost another one, or waited for it for more "
                    f"than trainer.timeout={self._config.trainer.timeout:g} s ({reason[:160]}); the same command goes "
                    "on from the last checkpoint"
                ) from error
            raise
        return None

    def _from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes; all others get it from there."""
        if self._place.world == 1:
            return make()
        made: list[Any] = [make() if self._place.first else None]
        distributed.broadcast_object_list(made)
        return made[0]

    def _on_stop(self, stop: Stopped) -> None:
        step = self._step()
        if self._session is None or not (folder := self._session.folder).checkpoints.is_dir():
            self._say("stopped before the first step; the same command starts again")
        else:
            self._say(f"stopped at step {step}; the same command goes on from {folder.checkpoints}")
        self._write_summary("stopped", reason=signal.Signals(stop.number).name)
        if stop.number == signal.SIGUSR1 and self._place.first:
            requeue(self._say)

    def _step(self) -> int:
        return self._session.trainer.global_step if self._session is not None else 0

    def _guarded(self) -> str:
        """What the guard did, for the last line; nothing if it had nothing to do."""
        counts = self._session.guard.counts if self._session is not None else {}
        kinds = {"skipped": "updates skipped", "rolled_back": "times rolled back", "spike": "spikes"}
        told = [f"{counts[kind]} {words}" for kind, words in kinds.items() if counts.get(kind)]
        return f" (guard: {', '.join(told)}; see summary.json)" if told else ""

    def _write_summary(self, status: str, **facts: Any) -> None:
        """Write the run's summary, if this process does and there is a run."""
        session = self._session
        if self._summary is None or session is None:
            return
        config, step, data = self._config, self._step(), session.trainer.datamodule  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):  # a full disk has been told about already
            self._summary.write(
                status,
                **({"reason": None} | facts),
                step=step,
                max_steps=config.trainer.max_steps,
                samples=step * config.data.batch_size * config.trainer.accumulate,
                processes=self._place.world,
                guard={"counts": dict(session.guard.counts), "events": session.guard.events},
                data={
                    "left_out_batches": sorted(data.left_out) if data else [],
                    "unusable_samples": dict(data.skipped) if data else {},
                },
                checkpoints={"left_out_for_want_of_room": session.checkpoints.skipped},
                **({"frozen": session.frozen.facts} if session.frozen.facts else {}),
                metrics={name: value for name, value in session.module.metrics.items() if math.isfinite(value)},
            )


def conclude(config: TrainBase, session: Session, datamodule: TrainingData) -> None:
    """Put the averaged weights into the module and validate them, if the last step did not."""
    for callback in session.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Averaging):
            callback.finish(session.module)
    if config.trainer.validate_every and session.samples.step != config.trainer.max_steps:
        session.trainer.validate(session.module, datamodule=datamodule, verbose=False)
    session.module.eval()


def write_release(config: TrainBase, session: Session, datamodule: TrainingData) -> None:
    """Write the run's release folder, whole or not at all."""
    module = session.module
    rows = session.samples.rows(module)
    settings = flatten(config.model_dump(mode="json"))
    facts = {name: value for name, value in settings.items() if name not in ("run.dir", "resume")}
    if isinstance(module, GeneratorModule):
        facts["null_condition_trained"] = module.null_trained
    data = {"root": config.data.places, "fingerprint": ", ".join(datamodule.fingerprints)}
    if datamodule.licence:
        data["licence"] = datamodule.licence
    card = Card(
        title=title(config),
        training=facts,
        metrics=module.metrics,
        data=data,
        samples=draw_grid(rows) if rows else None,
    )
    size = config.data.image_size
    release = session.folder.release
    adapter = config.adapter if isinstance(config, TuningTraining) else None
    match module:
        case GeneratorModule(base=base) if adapter is not None:
            assert base is not None
            save_adapter(release, adapter, adapter_weights(module.generator), base, size, card)
        case GeneratorModule():
            save_generator(release, module.generator, module.image_tokenizer, size, card)
        case ImageTokenizerModule():
            save_image_tokenizer(release, module.tokenizer, size, card)
        case _:
            assert_never(module)


def announce(
    config: TrainBase, folder: RunFolder, datamodule: TrainingData, module: TrainingModule, say: Callable[[str], None]
) -> None:
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


def say_anywhere(line: str) -> None:
    """One line on standard error from whichever process has something to tell."""
    print(line, file=sys.stderr, flush=True)


def _say_nothing(line: str) -> None:
    """Take a line that another process tells."""
