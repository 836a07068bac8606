"""The processes of a training: which of them this one is, how they find each other, and how they end together."""

import atexit
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import active_children
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from mentor.errors import UserError
from mentor.training.config import TrainerConfig
from mentor.training.launching import LAUNCHED

# A thread of each process asks this often whether another one has failed.
_INTERVAL = 1.0
# Time for the main thread to find out by itself, after which the thread ends the process.
_PATIENCE = 3.0
# Time by which a process that ends because of another one is the later of the two under torchrun.
_LATER = 1.5
_FAILED = "mentor/failed"
_DONE = "mentor/done"


@dataclass(frozen=True)
class Place:
    """Which process of how many this is.

    Attributes:
        rank: number among all processes.
        local_rank: number among those of this machine.
        world: how many processes there are.
        local_world: how many of them this machine has.
        launcher: who started them: "mentor", "torchrun" or "slurm"; empty for one process.
    """

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    local_world: int = 1
    launcher: str = ""

    @property
    def nodes(self) -> int:
        """How many machines there are."""
        return self.world // self.local_world

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


def find_place(trainer: TrainerConfig, environment: Mapping[str, str] = os.environ) -> Place | None:
    """Where a launcher has put this process; None if none has and the settings ask for more than one.

    torchrun and SLURM decide how many processes there are, whatever the settings say.

    Raises:
        UserError: several machines without a launcher, or processes that are spread unevenly.
    """
    if "TORCHELASTIC_RUN_ID" in environment or LAUNCHED in environment:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        launcher = "mentor" if LAUNCHED in environment else "torchrun"
        rank, local, world, local_world = (int(environment[name]) for name in names)
        place = Place(rank, local, world, local_world, launcher)
    elif int(environment.get("SLURM_NTASKS") or 1) > 1 and SLURMEnvironment.detect():
        if "SLURM_NTASKS_PER_NODE" not in environment:
            raise UserError("SLURM was told the number of tasks in all: say --ntasks-per-node=N, see docs/clusters.md")
        world, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES") or 1)
        rank, local = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        if world % nodes:
            raise UserError(f"SLURM has {world} tasks on {nodes} nodes: give each node as many, --ntasks-per-node=N")
        place = Place(rank, local, world, world // nodes, "slurm")
    elif trainer.devices * trainer.nodes == 1:
        return Place()
    elif trainer.nodes > 1:
        raise UserError(
            f"trainer.nodes={trainer.nodes} needs a launcher on each machine, torchrun or srun: see docs/clusters.md"
        )
    else:
        return None
    if place.world % place.local_world:
        raise UserError(
            f"{place.world} processes, {place.local_world} on this machine: start as many on each, see docs/clusters.md"
        )
    return place


def on_cpu(trainer: TrainerConfig) -> bool:
    """Whether the settings mean the processor here."""
    return trainer.accelerator == "cpu" or not torch.cuda.is_available()


@contextmanager
def joined(place: Place, trainer: TrainerConfig) -> Iterator["Watch | None"]:
    """The group of all processes, which ends for all of them when it ends for one.

    A process that leaves it by an exception ends at its next exit without taking the interpreter down, since threads
    inside libraries may still be in the middle of something with the others.

    Raises:
        UserError: the processes do not find each other in time.
    """
    if place.world == 1:
        yield None
        return
    if place.launcher == "slurm":
        environment = SLURMEnvironment(auto_requeue=False)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    timeout = timedelta(seconds=trainer.timeout)
    more: dict[str, Any] = {}
    backend = "gloo"
    if not on_cpu(trainer):
        # What processes tell each other about themselves need not wait for the device's queue.
        backend = "cpu:gloo,cuda:nccl"
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
        more["device_id"] = device
    try:
        distributed.init_process_group(backend, rank=place.rank, world_size=place.world, timeout=timeout, **more)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {place.rank} of {place.world} does not find the others within {trainer.timeout:g} s at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({_first_line(error)})"
        ) from error
    watch = Watch(place)
    watch.start()
    # torchrun's own report at the end then has the error of the process that failed first.
    elastic = get_error_handler() if place.launcher == "torchrun" else None
    if elastic is not None:
        elastic.initialize()
    try:
        yield watch
        watch.wait_for_first()
        distributed.barrier()
    except BaseException as error:
        first = watch.fail(error)
        atexit.register(_end_at_once, _exit_code(error) if first is None else first)
        if first is not None:
            if elastic is not None:  # it counts whole seconds, and takes whoever ended first for the cause
                time.sleep(_LATER)
            raise SystemExit(first) from None
        if elastic is not None and not isinstance(error, SystemExit):
            elastic.record_exception(error)
        raise
    finally:
        watch.stop()
    distributed.destroy_process_group()


class Watch(threading.Thread):
    """Ends this process soon after another one has failed, whatever the main thread is waiting for.

    The first failure is kept where all processes started to meet, so everyone knows whose it was: that process tells
    its error, the others, whose errors only follow from it, end in silence.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(daemon=True, name="watch")
        self._place = place
        store = distributed.distributed_c10d._get_default_store()
        self._own, self._shared = store.clone(), store.clone()  # type: ignore[attr-defined]
        self._over = threading.Event()

    def fail(self, error: BaseException) -> int | None:
        """Tell the others that this process has failed; the exit code of another one that has failed before."""
        mine = f"{self._place.rank} {_exit_code(error)}"
        try:
            first = self._own.compare_set(_FAILED, "", mine).decode()
        except RuntimeError:  # the process that kept the store has ended
            if isinstance(error, SystemExit):  # in order, like this one: both were asked to
                return None
            first = "0 1"
        if first == mine:
            return None
        code = int(first.split()[1])
        if not isinstance(error, SystemExit):  # which has been told
            self._tell_stop(code)
        return code

    def _tell_stop(self, code: int) -> None:
        """Say what another process, which a signal has reached, leaves to the first one to say."""
        if code >= 128 and self._place.first:
            print("stopped; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)

    def wait_for_first(self) -> None:
        """Wait for the first process, which may have more to do in the end than an operation's time limit allows."""
        if self._place.first:
            self._own.set(_DONE, "1")
        else:
            self._own.wait([_DONE], timedelta(days=1))

    def stop(self) -> None:
        """No longer watch."""
        self._over.set()
        self.join(_PATIENCE)

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(_INTERVAL):
            try:
                if not self._shared.check([_FAILED]):
                    continue
                rank, code = self._shared.get(_FAILED).decode().split()
            except RuntimeError:  # see above
                rank, code = "0", "1"
            if int(rank) != self._place.rank and not self._over.wait(_PATIENCE):
                if int(code) in (1, 2):
                    print(f"process {self._place.rank} was here meanwhile:\n{_main_stack()}", file=sys.stderr)
                self._tell_stop(int(code))
                sys.stderr.flush()
                os._exit(int(code))
            return


def _main_stack() -> str:
    """The innermost places of the main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)[-4:]).rstrip() if frame else "nowhere"


def _exit_code(error: BaseException) -> int:
    """What a process ends with that this has ended."""
    code = error.code if isinstance(error, SystemExit) else 2 if isinstance(error, UserError) else 1
    return code if isinstance(code, int) else 1


def _end_at_once(code: int) -> None:
    """End the process, and the loader processes that it has started."""
    for child in active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # its reader may have gone away
            stream.flush()
    os._exit(code)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
