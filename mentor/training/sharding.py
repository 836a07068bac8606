"""Training with the model shared out to all processes (FSDP2), for generators too large to stand whole on each device.

Weights, gradients, optimizer states and the average are sharded by rows. The linear layers of a block are gathered
while the block computes and let go of afterwards; all the rest (embeddings, norms, conditioner, head: 6 % of `xl`)
is gathered for a whole step. The image tokenizer is small and stays whole.

In mixed precision the linear layers are gathered in bfloat16, their gradients are added up in float32. That is what
autocast computes from whole float32 weights, rounding included, with half the traffic and without the copies in
bfloat16 that autocast keeps until the backward pass; all the rest is gathered in float32 and left to autocast.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mentor.adapters import PromptAdaptation, begin_adapter
from mentor.errors import UserError
from mentor.models import AnyGenerator, build_generator
from mentor.training.checkpoint_files import PARTIAL, STATE, Facts, begin, finish, read_state, write_state
from mentor.training.checkpoints import cannot_write
from mentor.training.config import ImageTokenizerTraining, TrainConfig
from mentor.training.generator_module import GeneratorModule
from mentor.training.sharded_files import map_tensors, put_back, share_out, take_out, write_rows


def check_sharding(config: TrainConfig) -> None:
    """Nothing, where the settings can be trained as they say.

    Raises:
        UserError: they ask for FSDP together with what it does not do here.
    """
    if config.trainer.strategy != "fsdp":
        return
    again = "or say trainer.strategy=ddp"
    if isinstance(config, ImageTokenizerTraining):
        raise UserError(
            "trainer.strategy=fsdp shards generators, and stage=tokenizer trains an image tokenizer, which is small: "
            "say trainer.strategy=ddp"
        )
    if config.optimizer.kind == "muon":
        raise UserError(
            "trainer.strategy=fsdp does not go with optimizer.kind=muon, which needs each matrix whole: "
            f"say optimizer.kind=adamw, {again}"
        )
    if config.trainer.precision == "16-mixed":
        raise UserError(
            "trainer.strategy=fsdp does not go with trainer.precision=16-mixed: "
            f"say trainer.precision=bf16-mixed or 32-true, {again}"
        )
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise UserError(f"trainer.strategy=fsdp needs torch 2.13, found {torch.__version__}: update torch, {again}")


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for sharded generators, with checkpoints that any number of processes can go on from.

    Args:
        world: processes in all.
        settings: of the run, which go into checkpoints.
        backend: of the process group; it must serve tensors on the CPU too.
        timeout: after which processes that wait for each other give up.
    """

    # Weights and optimizer states are restored by Lightning's plain code, from sharded tensors.
    lightning_restore_optimizer = True  # type: ignore[assignment]
    lightning_module_state_dict = Strategy.lightning_module_state_dict  # type: ignore[assignment]
    load_model_state_dict = Strategy.load_model_state_dict  # type: ignore[assignment]
    optimizer_state = Strategy.optimizer_state  # type: ignore[assignment]

    def __init__(self, world: int, settings: Mapping[str, Any], backend: str, timeout: timedelta) -> None:
        super().__init__(world, 1, process_group_backend=backend, timeout=timeout)
        self._settings = settings
        self._reach: Reach | None = None

    @property
    def shards(self) -> DeviceMesh:
        """The processes, one after another."""
        return self.device_mesh["data_parallel"]

    def setup(self, trainer: lightning.Trainer) -> None:
        """Shard the module, and make its optimizer (Lightning's hook)."""
        module = self.lightning_module
        assert self.accelerator is not None and isinstance(module, GeneratorModule)
        self.accelerator.setup(trainer)
        if self._reach is None:  # validation after training sets up once more
            shard(module.generator, self.shards, self.precision_plugin.precision == "bf16-mixed")
            self._reach = Reach(module.generator)
        self.model_to_device()
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if fitting:
            _optimizers_to_device(self.optimizers, self.root_device)
        # Weights gathered in inference mode could not be trained afterwards.
        for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop):
            loop.inference_mode = False

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Begin to watch which parameters get a gradient (Lightning's hook)."""
        assert self._reach is not None
        self._reach.begin()

    def post_backward(self, closure_loss: Tensor) -> None:
        """Take gradients away that are none (Lightning's hook)."""
        assert self._reach is not None
        self._reach.end()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write the folder `filepath`, whole or not at all; every process has to call.

        Raises:
            UserError: one of them cannot write; all of them say so.
        """
        target = Path(self.broadcast(str(filepath)))
        plain, sharded = take_out(checkpoint)
        rank, world = self.global_rank, self.world_size
        partial: Path = self._together(target, lambda: None if rank else begin(target))[0]
        written = self._together(target, lambda: write_rows(partial, sharded, rank, world))

        def conclude() -> None:
            files = {name: entry for one in written for name, entry in one.items()}
            files[STATE] = write_state(partial / STATE, plain)
            finish(partial, target, Facts(int(plain["global_step"]), self._settings, files, world))

        self._together(target, lambda: None if rank else conclude())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint in the folder, sharded for these processes, whatever wrote it. Nothing in it is executed.

        Raises:
            UserError: it is missing or damaged.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        state = put_back(read_state(path), path, self.shards)
        assert self.lightning_module is not None
        parameters = sharded_parameters(self.lightning_module)

        def share(place: str, value: Tensor) -> Tensor:
            # The name of a parameter has no slash in it, so it is all that comes after the last one.
            parameter = parameters.get(place.rpartition("/")[2])
            if isinstance(value, DTensor) or parameter is None or parameter.shape != value.shape:
                return value
            return share_out(value, self.shards)

        return map_tensors(state, share)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the optimizers, also from a checkpoint of whole tensors (Lightning's hook)."""
        Strategy.load_optimizer_state_dict(self, checkpoint)
        for optimizer in self.optimizers:
            share_out_states(optimizer, self.shards)

    def teardown(self) -> None:
        """Let go of weights gathered last (Lightning's hook)."""
        if self.lightning_module is not None:
            reshard(self.lightning_module)
        super().teardown()

    def _together(self, target: Path, action: Callable[[], Any]) -> list[Any]:
        """What the action gives in each process.

        Raises:
            UserError: it failed in one of them; what there is of the checkpoint has been removed.
        """
        result, told = None, ""
        try:
            result = action()
        except (OSError, RuntimeError) as error:
            told = cannot_write(target, error)
        results: list[Any] = [None] * self.world_size
        distributed.all_gather_object(results, (result, told))
        failures = [told for _, told in results if told]
        if failures:
            if self.is_global_zero:
                shutil.rmtree(target.with_name(target.name + PARTIAL), ignore_errors=True)
            raise UserError(failures[0])
        return [result for result, _ in results]


class Reach:
    """Notices which parameters a backward pass reaches in any process.

    A prompt without references does not use the projector. Where one process has references and another has none, FSDP
    must be told to take zeros for the gradient that is missing (or the processes would add up gradients of different
    parameters); but where none has references, one process alone would give no gradient at all, and an optimizer moves
    a parameter whose gradient is zero. So those zeros are taken away again.
    """

    def __init__(self, generator: nn.Module) -> None:
        assert isinstance(generator, FSDPModule)
        reshard(generator)
        sharded = dict(generator.named_parameters())
        self._parameters: list[Tensor] = []
        self._before: list[bool] = []
        self._reached: set[int] = set()
        generator.set_reduce_scatter_unused_params(True, recurse=False)
        generator.unshard()
        # The linear layers of the blocks, which are used in every pass, have units of their own and stay sharded.
        for name, parameter in generator.named_parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.register_post_accumulate_grad_hook(self._hook(len(self._parameters)))
                self._parameters.append(sharded[name])
        generator.reshard()

    def begin(self) -> None:
        """Before the backward pass: note which parameters have a gradient from batches before."""
        self._before = [parameter.grad is not None for parameter in self._parameters]
        self._reached.clear()

    def end(self) -> None:
        """After it: take away what is no gradient. Every process has to call."""
        reached = torch.zeros(len(self._parameters), dtype=torch.int32)
        reached[list(self._reached)] = 1
        distributed.all_reduce(reached, distributed.ReduceOp.MAX)
        for parameter, before, now in zip(self._parameters, self._before, reached.tolist(), strict=True):
            if not before and not now:
                parameter.grad = None

    def _hook(self, number: int) -> Callable[[Tensor], None]:
        return lambda _: self._reached.add(number)


def shard(generator: AnyGenerator, mesh: DeviceMesh, low_precision: bool) -> None:
    """Shard the generator's parameters over the processes of `mesh`, in place.

    Args:
        generator: whole in each process; each keeps its rows of every parameter.
        mesh: the processes.
        low_precision: gather the linear layers of the blocks in bfloat16.
    """
    policy = MixedPrecisionPolicy()
    if low_precision:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in generator.backbone.blocks:
        # Both have weights of linear layers only, so that the policy rounds nothing that autocast would not.
        fully_shard([block.attention, block.feed_forward], mesh=mesh, mp_policy=policy)  # type: ignore[list-item]
    fully_shard(generator, mesh=mesh)


def reshard(module: nn.Module) -> None:
    """Let go of all gathered weights, so that the parameters are the sharded ones; needs no other process."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def sharded_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's parameters that are sharded, by name; whatever was gathered is let go of."""
    reshard(module)
    return {name: parameter for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)}


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its shard, or all of it. Shares memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Within, the first process's module has a generator that is whole, to draw with or to save.

    It computes in float32 without asking other processes, and is gone afterwards. Every process has to enter. Nothing
    is done to a module that is not sharded.
    """
    sharded = getattr(module, "generator", None)
    if not isinstance(sharded, FSDPModule):
        yield
        return
    assert isinstance(module, GeneratorModule) and isinstance(sharded, AnyGenerator)
    plain = gather_generator(sharded)
    if plain is not None:
        module.generator = plain.to(module.device)
    try:
        yield
    finally:
        module.generator = sharded


def gather_weights(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters and buffers, whole and on the CPU, in the first process; nothing in all others.

    Every process has to call.
    """
    reshard(module)
    weights = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast(dict[str, Tensor], weights)  # torch's type allows for extra states, which no module here has


def gather_generator(generator: AnyGenerator) -> AnyGenerator | None:
    """The generator as one that is not sharded, on the CPU, in the first process; None in all others.

    Every process has to call. A generator that is not sharded is given back as it is.
    """
    if not isinstance(generator, FSDPModule):
        return generator
    weights = gather_weights(generator)
    if distributed.get_rank():
        return None
    with torch.device("meta"):
        codebook = torch.empty(generator.spec.vocab_size, generator.spec.code_width, device="meta")
        plain = build_generator(generator.config, generator.material, generator.spec, codebook)
        if isinstance(generator.adaptation, PromptAdaptation) and generator.adaptation.trained is not None:
            begin_adapter(plain, generator.adaptation.trained)
    plain.load_state_dict(weights, assign=True)
    return plain.train(generator.training)


def share_out_states(optimizer: Optimizer, mesh: DeviceMesh) -> None:
    """Shard the states of sharded parameters that are still whole."""
    for parameter, states in optimizer.state.items():
        for name, value in states.items():
            if isinstance(parameter, DTensor) and not isinstance(value, DTensor) and value.shape == parameter.shape:
                states[name] = share_out(value, mesh)
