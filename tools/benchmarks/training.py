"""Training: what guards and checkpoints cost, step by step in turn with the same training without them."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from benchmarks.rows import Row, single, timed
from mentor.config import compose, validate
from mentor.data.making.building import build_dataset
from mentor.data.making.recipes import load_recipe
from mentor.data.streammodule import open_data
from mentor.models.checkpoint import Card, save_image_tokenizer
from mentor.tokenizers import ImageTokenizerConfig, build_image_tokenizer
from mentor.training.build import build_module
from mentor.training.checkpoint_files import newest_good, read_state, write_checkpoint
from mentor.training.config import TrainConfig
from mentor.training.folder import RunFolder
from mentor.training.guards import Guard
from mentor.training.processes import Place
from mentor.training.signals import StopSignals
from mentor.training.trainer import build_session, quieten

ROOT = Path(__file__).resolve().parent.parent.parent
MOST = 0.02


def measure_training(work: Path, quick: bool) -> list[Row]:
    """All rows."""
    quieten()
    try:
        rows = [guarding(work, 60 if quick else 240), *checkpointing(work, 20 if quick else 200)]
    finally:
        shutil.rmtree(work / "training", ignore_errors=True)
    for row in rows:
        Console(stderr=True).print(f"{row.case}: {row.value:,.4g} {row.unit} (goal: {row.goal})", highlight=False)
    return rows


class Clock(Callback):
    """Adds up the time inside a guard's hooks, and that of whole steps.

    The guard clips the gradient too, which any training does: the same clipping by itself is taken off.
    """

    def __init__(self, guard: Guard) -> None:
        self.hooks: list[float] = []
        self.steps: list[float] = []
        self._began = self._spent = 0.0
        for name in ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step"):
            setattr(guard, name, self._timed(getattr(guard, name)))

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a step (Lightning's hook)."""
        self._began, self._spent = time.perf_counter(), 0.0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """End it, and see how long clipping alone takes (Lightning's hook)."""
        self.steps.append(time.perf_counter() - self._began)
        before = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(pl_module.parameters(), 1e9)
        self.hooks.append(self._spent - (time.perf_counter() - before))

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object) -> None:
            before = time.perf_counter()
            hook(*arguments)
            self._spent += time.perf_counter() - before

        return run


def guarding(work: Path, steps: int) -> Row:
    """What the guard takes of a step of the demo's stage 1, beyond the clipping that training does anyway."""
    folder = work / "training"
    root, release = folder / "shapes", folder / "tokenizer"
    if not root.exists():
        build_dataset(load_recipe("shapes", ["limit=400"], ROOT / "data_recipes"), root, 1)
    overrides = ["experiment=demo", f"data.root={root}", f"run.dir={folder / 'run'}", "trainer.devices=1"]
    config = validate(TrainConfig, compose("train", ["stage=tokenizer", *overrides]))
    torch.manual_seed(0)
    assert isinstance(config.image_tokenizer, ImageTokenizerConfig)
    save_image_tokenizer(release, build_image_tokenizer(config.image_tokenizer).eval(), 64, Card("benchmark"))
    mixture = [f"data.mixture.{task}=1" for task in ("reconstruct", "segment", "text_to_image")]
    more = [f"trainer.max_steps={steps}", "trainer.validate_every=0", "trainer.checkpoint_minutes=1000", *mixture]
    stage = ["stage=1", f"image_tokenizer_from={release}", *overrides, *more]
    config = validate(TrainConfig, compose("train", stage))
    data = open_data(config.data, 0, print)
    module = build_module(config, data)
    settings = config.model_dump(mode="json")
    session = build_session(config, settings, RunFolder(folder / "run"), module, Place(), StopSignals(), print)
    clock = Clock(session.guard)
    session.trainer.callbacks.insert(0, clock)  # type: ignore[attr-defined]
    session.trainer.fit(session.module, datamodule=data)
    hooks, whole = clock.hooks[10:], clock.steps[10:]
    shares = sorted(max(0.0, hook) / step for hook, step in zip(hooks, whole, strict=True))
    share = statistics.median(shares)
    note = f"{1e3 * statistics.median(hooks):.2f} ms of {1e3 * statistics.median(whole):.0f} ms a step, {steps} steps"
    return Row(
        "guard of loss and gradient, stage 1 of the demo",
        "the same step",
        f"under {MOST:.0%} of a step",
        100 * share,
        100 * shares[len(shares) // 10],
        100 * shares[-len(shares) // 10],
        "%",
        share < MOST,
        note,
    )


def checkpointing(work: Path, megabytes: int) -> list[Row]:
    """Writing and verifying checkpoints, against plain `torch.save` and `torch.load`, both to the disk."""
    folder = work / "training" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": 1, "weights": [torch.randn(250_000) for _ in range(megabytes)]}
    times: dict[str, list[float]] = {"ours": [], "plain": [], "read": [], "plain read": []}

    def write() -> None:
        write_checkpoint(folder / "step-0000001", state, {})

    def read() -> None:
        assert newest_good(folder, print) is not None
        read_state(folder / "step-0000001")

    for _ in range(5):
        times["ours"].append(timed(write))
        times["plain"].append(timed(lambda: torch.save(state, folder / "plain.ckpt")))
        times["read"].append(timed(read))
        times["plain read"].append(timed(lambda: torch.load(folder / "plain.ckpt", weights_only=True)))
    median = {name: statistics.median(taken) for name, taken in times.items()}
    told = f"a checkpoint of {megabytes:,} MB"
    return [
        single(
            f"{told}, written, flushed, hashed", "-", median["ours"], "s", None, f"torch.save: {median['plain']:.2f} s"
        ),
        single(
            f"{told}, verified and read", "-", median["read"], "s", None, f"torch.load: {median['plain read']:.2f} s"
        ),
    ]
