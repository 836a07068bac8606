"""The optimizer and its learning rate, counted in optimizer updates whatever the accumulation."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, assert_never

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import Field
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mentor.config import Config
from mentor.training.joint import JointOptimizer


class OptimizerConfig(Config):
    """The optimizer, with warm-up and cosine.

    Attributes:
        kind: "adamw" for all parameters, or "muon": Muon (Jordan et al. 2024) for the matrices of linear layers, its
            steps scaled to the size of AdamW's (arXiv 2502.16982, section 2.2), and AdamW for all others.
        betas: AdamW's.
        lr: learning rate at the end of the warm-up.
        weight_decay: applied to the matrices of linear and convolution layers, not to embeddings, norms and biases.
        warmup: share of all updates in which the rate rises to `lr`.
        min_ratio: the rate of the last update as a share of `lr`.
        clip: largest norm of the gradient; 0 leaves it as it is.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    min_ratio: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, ge=0)


class TrainedParameters(NamedTuple):
    """The trainable parameters of a module, each in one list."""

    matrices: list[nn.Parameter]
    kernels: list[nn.Parameter]
    others: list[nn.Parameter]


def trained_parameters(module: nn.Module) -> TrainedParameters:
    """The matrices of linear layers, the kernels of convolutions and all other trainable parameters of `module`."""
    matrices = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}
    kernels = {id(part.weight) for part in module.modules() if isinstance(part, nn.modules.conv._ConvNd)}
    sorted_out = TrainedParameters([], [], [])
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in matrices:
            sorted_out.matrices.append(parameter)
        elif id(parameter) in kernels:
            sorted_out.kernels.append(parameter)
        else:
            sorted_out.others.append(parameter)
    return sorted_out


def rate_factor(update: int, updates: int, warmup: int, min_ratio: float) -> float:
    """Learning rate of update number `update` (from 0) of `updates`, as a share of its peak.

    It rises in a straight line over the first `warmup` updates and falls along a half cosine to `min_ratio`, which the
    last update has.
    """
    if update < warmup:
        return (update + 1) / (warmup + 1)
    progress = min(1.0, (update - warmup) / max(1, updates - 1 - warmup))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, others: Sequence[tuple[nn.Module, OptimizerConfig]] = ()
) -> JointOptimizer:
    """The optimizer of the settings' kind over the trainable parameters of `module`.

    Args:
        module: the model.
        config: its settings.
        others: models that are trained beside it, such as a discriminator, with settings of their own.
    """
    return JointOptimizer([_parts(one, settings) for one, settings in ((module, config), *others)])


def _parts(module: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    matrices, kernels, others = trained_parameters(module)
    match config.kind:
        case "adamw":
            return [_adamw(matrices + kernels, others, config)]
        case "muon":
            parts: list[Optimizer] = []
            if matrices:
                # With this scale of the step, rate and decay mean for a matrix what they mean for AdamW.
                parts.append(
                    Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
                )
            if kernels or others:
                parts.append(_adamw(kernels, others, config))
            return parts
        case _:
            assert_never(config.kind)


def _adamw(decayed: list[nn.Parameter], others: list[nn.Parameter], config: OptimizerConfig) -> AdamW:
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    # The fused kernel wants floating parameters on one kind of device; older accelerators do without it.
    devices = {parameter.device.type for parameter in decayed + others}
    fused = devices <= {"cpu"} or devices <= {"cuda"}
    optimizer = AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=fused)
    # A fused step could undo a loss scaler's scaling by itself, and Lightning then refuses to clip gradients in mixed
    # precision; float16 is scaled back before clipping like this, and bfloat16 has no scaler.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, updates: int) -> LambdaLR:
    """The learning rate over a training of `updates` optimizer updates; to be stepped once an update.

    Groups with rates of their own keep their ratio.
    """
    warmup = round(config.warmup * updates)
    return LambdaLR(optimizer, lambda update: rate_factor(update, updates, warmup, config.min_ratio))


def configure_optimizers(
    module: nn.Module,
    config: OptimizerConfig,
    updates: int,
    others: Sequence[tuple[nn.Module, OptimizerConfig]] = (),
) -> OptimizerLRSchedulerConfig:
    """What a Lightning module's hook of this name returns: optimizer and schedule, stepped with every update.

    Args:
        module: the model.
        config: its settings; the schedule is theirs, for the other models too.
        updates: optimizer updates that the training takes in all.
        others: see `build_optimizer`.
    """
    optimizer = build_optimizer(module, config, others)
    schedule = build_schedule(optimizer, config, updates)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1}}
