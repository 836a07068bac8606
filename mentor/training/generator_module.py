"""Training of a generator of any kind: pixels to codes or latents (if they are not yet), and these to the loss."""

import random
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mentor.adapters import Base
from mentor.conditioning import Condition, drop_condition, encode_condition
from mentor.errors import UserError
from mentor.models import AnyGenerator
from mentor.models.checkpoint import weights_fingerprint
from mentor.sampling import SamplingConfig, sample
from mentor.tokenizers import ImageTokenizer
from mentor.training.config import ObjectiveConfig
from mentor.training.meters import TaskMeans
from mentor.training.objectives import Target, example_seeds, quantities, score
from mentor.training.optim import OptimizerConfig, configure_optimizers
from mentor.types import Batch, BatchCodes, Codes, ImageSegment, Prompt, prompt_images, prompt_text


class Frozen:
    """Holds a module that is used but neither trained, averaged, copied nor kept in checkpoints."""

    def __init__(self, module: ImageTokenizer) -> None:
        self.module = module.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        return self


class GeneratorModule(lightning.LightningModule):
    """A generator and the frozen image tokenizer that turns its pixels into codes.

    Args:
        generator: what is trained.
        image_tokenizer: gives the codes of targets and references.
        objective: the loss and the dropping of conditions.
        optimizer: settings of the optimizer.
        updates: optimizer updates that the training takes in all.
        tasks: every task that a batch may have.
        seed: of the dropping of conditions, and of noise.
        null_before: whether what the generator starts from has met the null condition in its own training.

    Attributes:
        base: the release that the generator starts from in stage 2.
    """

    def __init__(
        self,
        generator: AnyGenerator,
        image_tokenizer: ImageTokenizer,
        objective: ObjectiveConfig,
        optimizer: OptimizerConfig,
        updates: int,
        tasks: Sequence[str],
        seed: int,
        null_before: bool = False,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.objective = objective
        self.base: Base | None = None
        self.null_trained = null_before or objective.guidance.everything > 0
        self.metrics: dict[str, float] = {}
        self._frozen = Frozen(image_tokenizer)
        self._optimizer = optimizer
        self._updates = updates
        self._seed = seed
        self._fingerprint = weights_fingerprint(image_tokenizer)
        self._train_means = TaskMeans(tasks, quantities(generator))
        self._validation_means = TaskMeans(tasks, quantities(generator))

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """The frozen image tokenizer, in eval mode."""
        return self._frozen.module

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with warm-up and cosine (Lightning's hook)."""
        return configure_optimizers(self.generator, self._optimizer, self._updates)

    def on_fit_start(self) -> None:
        """Bring the image tokenizer, which Lightning does not see, to the device (Lightning's hook)."""
        self.image_tokenizer.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """The batch's mean loss (Lightning's hook)."""
        step = self.trainer.global_step
        scores = self.example_scores(self.drop(batch, step), batch, step)
        self._train_means.add(batch.tasks, batch.valid, scores)
        return scores["loss"].mean()

    def write_row(self, outputs: Any) -> None:
        """Write a row of the logs: means since the last one, over all processes."""
        self._write({f"train/{name}": value for name, value in self._train_means.take().items()})

    def changed_by_forward(self) -> list[Tensor]:
        """Tensors that a forward pass changes, as a guard may have to take the change back: none."""
        return []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the losses of the batch's valid examples; nothing is dropped from their prompts (Lightning's hook)."""
        self._validation_means.add(batch.tasks, batch.valid, self.example_scores(batch.prompts, batch, "validation"))

    def on_validation_epoch_end(self) -> None:
        """Write the validation's means (Lightning's hook)."""
        self._write({f"val/{name}": value for name, value in self._validation_means.take().items()})

    def drop(self, batch: Batch, step: int) -> list[Prompt]:
        """The batch's prompts, some of them without text, images or anything.

        What an example loses depends on the seed, the update's number and the example's key, not on the processes.
        """
        shares = self.objective.guidance
        kept = []
        for key, prompt in zip(batch.keys, batch.prompts, strict=True):
            rng = random.Random(f"{self._seed}/{step}/{key}")
            kept.extend(drop_condition([prompt], rng, shares.everything, shares.text, shares.images))
        return kept

    def example_scores(
        self, prompts: Sequence[Prompt], batch: Batch, moment: int | str
    ) -> dict[str, Float[Tensor, "b"]]:
        """What is counted of each example, its loss among it; see `score`.

        Args:
            prompts: what is left of the batch's prompts.
            batch: see there.
            moment: the update's number, or another name of the occasion; noise depends on it.
        """
        if batch.codes is None:
            codes, condition = self.encode_batch(prompts, batch.targets)
        else:
            codes, condition = self.look_up(prompts, batch, batch.codes)
        target = Target(codes.ids, self.latents(codes), batch.focus, example_seeds(self._seed, moment, batch.keys))
        smoothing = self.objective.label_smoothing if self.training else 0.0
        return score(self.generator, condition, target, self.objective.focus_weight, smoothing)

    @torch.no_grad()
    def latents(self, codes: Codes) -> Float[Tensor, "b c gy gx"] | None:
        """What a generator that draws latents is to draw; None for one that draws codes."""
        match self.generator.draws:
            case "codes":
                return None
            case "quantised":
                return codes.latents
            case "continuous":
                with torch.autocast(self.device.type, enabled=False):
                    return self.image_tokenizer.continuous(codes.features)

    def encode_batch(self, prompts: Sequence[Prompt], targets: Float[Tensor, "b c y x"]) -> tuple[Codes, Condition]:
        """The targets' codes, and the prompts with their references' codes, from one pass of the image tokenizer.

        A reference that is its own prompt's target, as in reconstruction, is encoded once.
        """
        rows = [row for row, prompt in enumerate(prompts) for _ in prompt_images(prompt)]
        if not rows or not self.generator.conditioner.reads_codes:
            return self.encode(targets), Condition(prompts, None)
        references = torch.stack([image for prompt in prompts for image in prompt_images(prompt)])
        repeated = (references == targets[rows]).flatten(start_dim=1).all(dim=1)
        codes = self.encode(torch.cat((targets, references[~repeated])))
        own = len(targets) + (~repeated).cumsum(dim=0) - 1
        places = torch.where(repeated, torch.tensor(rows, device=own.device), own)
        condition = Condition(prompts, Codes(codes.ids[places], codes.latents[places], codes.features[places]))
        return codes.select(range(len(targets))), condition

    @torch.no_grad()
    def look_up(self, prompts: Sequence[Prompt], batch: Batch, codes: BatchCodes) -> tuple[Codes, Condition]:
        """What `encode_batch` gives, of a batch that has codes in place of pictures: no picture is encoded.

        The targets have no features, so they have no continuous latents either.
        """
        ids = codes.target_ids.to(self.device)
        vectors = self.image_tokenizer.quantize.lookup(ids)
        targets = Codes(ids, vectors, vectors.new_empty(len(ids), 0, *ids.shape[1:]))
        rows = shown_references(batch.prompts, prompts)
        if not rows:
            return targets, Condition(prompts, None)
        places = torch.tensor(rows, device=self.device)
        references = codes.reference_ids.to(self.device)[places]
        latents = self.image_tokenizer.quantize.lookup(references)
        if codes.reference_features is None:
            features = latents.new_empty(len(rows), 0, *references.shape[1:])
        else:
            features = codes.reference_features.to(self.device)[places].float()
        return targets, Condition(prompts, Codes(references, latents, features))

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c y x"]) -> Codes:
        """The codes of pictures, in full precision whatever the generator is trained in."""
        with torch.autocast(self.device.type, enabled=False):
            return self.image_tokenizer.encode(images.to(self.device, torch.float32))

    @torch.no_grad()
    def illustrate(self, batch: Batch) -> list[tuple[str, list[Float[Tensor, "c y x"]]]]:
        """For each example its prompt, and: reference (or black), target, the target's round trip, output.

        Of codes, reference and target are what the codes show.
        """
        if batch.codes is None:
            needed = self.generator.conditioner.reads_codes
            condition = encode_condition(batch.prompts, self.encode, self.device, needed)
            targets, ceilings = batch.targets, self.image_tokenizer.decode_ids(self.encode(batch.targets).ids)
            shown = [prompt_images(prompt) for prompt in batch.prompts]
        else:
            codes, condition = self.look_up(batch.prompts, batch, batch.codes)
            targets = ceilings = self.image_tokenizer.decode_ids(codes.ids)
            references = iter(() if condition.codes is None else self.image_tokenizer.decode_ids(condition.codes.ids))
            shown = [[next(references) for _ in prompt_images(prompt)] for prompt in batch.prompts]
        drawn = sample(self.generator, condition, range(len(batch.prompts)), SamplingConfig())
        outputs = self.image_tokenizer.picture(drawn, self.generator.draws == "quantised")
        rows = []
        for row, prompt in enumerate(batch.prompts):
            reference = (shown[row] or [-torch.ones_like(targets[row])])[0]
            rows.append((prompt_text(prompt), [reference, targets[row], ceilings[row], outputs[row]]))
        return rows

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the codes came from and what it began with, and the means that the next row goes on with (hook)."""
        checkpoint["image_tokenizer_fingerprint"] = self._fingerprint
        checkpoint["base_fingerprint"] = self.base.fingerprint if self.base else None
        checkpoint["train_means"] = self._train_means.joined()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose codes came from another image tokenizer, or whose base was another (hook).

        Raises:
            UserError: they did, or it was.
        """
        found = checkpoint.get("image_tokenizer_fingerprint")
        if found != self._fingerprint:
            raise UserError(
                f"cannot resume: the checkpoint belongs to image tokenizer {found}, and now there is "
                f"{self._fingerprint}: put the old image tokenizer back, say resume=false to start over, or "
                "begin another run.dir with init_from=RELEASE"
            )
        base = checkpoint.get("base_fingerprint")
        # An adapter belongs to the very weights that it was trained on. Checkpoints of earlier versions do not say.
        if self.base is not None and base is not None and base != self.base.fingerprint:
            raise UserError(
                f"cannot resume: the checkpoint began with model {base}, and {self.base.name} is now "
                f"{self.base.fingerprint}: put the old model back, or say resume=false to start over"
            )
        self._train_means.restore(checkpoint["train_means"])

    def _write(self, metrics: dict[str, float]) -> None:
        self.metrics.update(metrics)
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)


def shown_references(whole: Sequence[Prompt], kept: Sequence[Prompt]) -> list[int]:
    """Which of the pictures in whole prompts, counted over all of them, are still in what was kept of each."""
    rows, number = [], 0
    for before, after in zip(whole, kept, strict=True):
        for segment in before:
            if isinstance(segment, ImageSegment):
                if any(segment is left for left in after):
                    rows.append(number)
                number += 1
    return rows
