"""Training of the image tokenizer: pictures to codes and back."""

from typing import Any

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pydantic import Field
from torch import Tensor

from mentor.config import Config
from mentor.tokenizers import ImageTokenizer, PixelLoss, PixelLossConfig, code_usage, perplexity, psnr
from mentor.training.optim import OptimizerConfig, configure_optimizers
from mentor.types import Batch, prompt_images

# Codes count as in use in training when they occurred within about this many steps.
USAGE_STEPS = 100


class LossConfig(Config):
    """What the image tokenizer learns from and when.

    Attributes:
        pixels: difference of drawn pictures and targets.
        delay: share of all updates in which latents stay continuous. Then k-means chooses the codes and quantisation
            begins. A tokenizer whose codes are already chosen, such as one loaded from a release, does not wait.
        images: pictures a process learns from in a step at most, drawn from targets and references; 0 for all.
    """

    pixels: PixelLossConfig = PixelLossConfig()
    delay: float = Field(default=0.15, ge=0, lt=1)
    images: int = Field(default=0, ge=0)


class ImageTokenizerModule(lightning.LightningModule):
    """An image tokenizer in training.

    Args:
        tokenizer: what is trained.
        loss: what it learns from and when.
        optimizer: settings of the optimizer.
        updates: optimizer updates that the training takes in all.
        log_every: updates between two rows of the logs.
    """

    _recent: Float[Tensor, "v"]

    def __init__(
        self, tokenizer: ImageTokenizer, loss: LossConfig, optimizer: OptimizerConfig, updates: int, log_every: int = 20
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.loss = loss
        self.log_every = log_every
        self.metrics: dict[str, float] = {}
        self.pixel_loss = PixelLoss(loss.pixels)
        self._optimizer = optimizer
        self._updates = updates
        self._logged = 0
        self.restart_averaging = False
        codes = tokenizer.vocab_size
        self.register_buffer("_recent", torch.zeros(codes), persistent=False)
        # No buffers: averaging exchanges those with its own before the validation's last hook.
        self._validation_counts = torch.zeros(codes)
        self._validation_psnr = torch.zeros(2)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with warm-up and cosine (Lightning's hook)."""
        return configure_optimizers(self.tokenizer, self._optimizer, self._updates)  # type: ignore[return-value]

    def on_train_start(self) -> None:
        """Take up the count of log rows where a resumed run left it (Lightning's hook)."""
        self._logged = self.trainer.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss over the batch's pictures, and what the logs want to know of it (Lightning's hook)."""
        images = training_images(batch)
        quantise = bool(self.tokenizer.quantize.started)
        if not quantise and self.trainer.global_step >= self.loss.delay * self._updates:
            self.tokenizer.start_codes(images)
            quantise = True
            # The average so far is of weights that knew no codes.
            self.restart_averaging = True
        if self.loss.images and len(images) > self.loss.images:
            images = images[torch.randperm(len(images))[: self.loss.images].to(images.device)]
        output = self.tokenizer(images, quantize=quantise)
        loss = self.pixel_loss(output.images, images) + output.quantizer_loss
        counts = torch.bincount(output.codes.ids.flatten(), minlength=len(self._recent))
        self._recent.mul_(1 - 1 / USAGE_STEPS).add_(counts)
        return {"loss": loss, "psnr": psnr(output.images.detach().clamp(-1, 1), images).mean()}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Write a row of the logs when one is due: means over all processes (Lightning's hook)."""
        step = self.trainer.global_step
        if step == self._logged or step % self.log_every:
            return
        self._logged = step
        means = torch.stack((outputs["loss"].detach() * self.trainer.accumulate_grad_batches, outputs["psnr"]))
        means = self.trainer.strategy.reduce(means, reduce_op="mean")
        counts = self.trainer.strategy.reduce(self._recent.clone(), reduce_op="sum")
        row = {"train/loss": float(means[0]), "train/psnr": float(means[1])}
        if self.tokenizer.quantize.started:
            # After USAGE_STEPS steps a count of one has shrunk to 1 / e.
            used = code_usage((counts > 0.36).float())
            row |= {"train/usage": float(used), "train/perplexity": float(perplexity(counts))}
        else:
            self._recent.zero_()
        self._write(row)

    def on_validation_epoch_start(self) -> None:
        """Count anew (Lightning's hook)."""
        self._validation_counts = torch.zeros(len(self._recent), device=self.device)
        self._validation_psnr = torch.zeros(2, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the codes and the quality of the valid examples' targets (Lightning's hook)."""
        images = batch.targets[batch.valid]
        # A sum over no pictures is 0, so a process whose rows are all padding joins in all the same.
        if len(images):
            output = self.tokenizer(images, quantize=bool(self.tokenizer.quantize.started))
            quality = psnr(output.images.clamp(-1, 1), images)
            self._validation_psnr += torch.stack((quality.sum(), quality.new_tensor(len(quality))))
            self._validation_counts += torch.bincount(output.codes.ids.flatten(), minlength=len(self._recent))

    def on_validation_epoch_end(self) -> None:
        """Write mean PSNR, and usage and perplexity of the codes over all validation pictures (Lightning's hook)."""
        quality = self.trainer.strategy.reduce(self._validation_psnr, reduce_op="sum")
        counts = self.trainer.strategy.reduce(self._validation_counts, reduce_op="sum")
        row = {"val/psnr": float(quality[0] / quality[1].clamp(min=1))}
        if self.tokenizer.quantize.started:
            row |= {"val/usage": float(code_usage(counts)), "val/perplexity": float(perplexity(counts))}
        self._write(row)

    @torch.no_grad()
    def illustrate(self, batch: Batch) -> list[tuple[str, list[Float[Tensor, "c y x"]]]]:
        """For each example its key, the target and the target's round trip."""
        drawn = self.tokenizer(batch.targets, quantize=bool(self.tokenizer.quantize.started)).images
        rows = zip(batch.keys, batch.targets, drawn, strict=True)
        return [(key, [target, image.clamp(-1, 1)]) for key, target, image in rows]

    def _write(self, metrics: dict[str, float]) -> None:
        self.metrics.update(metrics)
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)


def training_images(batch: Batch) -> Float[Tensor, "n c y x"]:
    """The batch's targets and reference images; a reference that is its own example's target counts once."""
    references = [
        image
        for prompt, target in zip(batch.prompts, batch.targets, strict=True)
        for image in prompt_images(prompt)
        if not torch.equal(image, target)
    ]
    return torch.cat((batch.targets, torch.stack(references))) if references else batch.targets
