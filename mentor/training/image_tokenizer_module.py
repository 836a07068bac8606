"""Training of the image tokenizer: pictures to codes and back.

A step does not depend on how many processes share it: which pictures it takes, what noise they get and which vectors
become codes follows from the seed, the number of the update and a picture's place in the global batch; and each picture
weighs the same, however many its process has. What remains are sums in another order. They differ by a few float32
roundings, which the nearest of two codes equally near, or a restart of codes that hangs on it, may turn into more.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pydantic import Field
from torch import Tensor

from mentor.config import Config
from mentor.errors import UserError
from mentor.tokenizers import (
    AdversarialKind,
    AdversarialLossConfig,
    Discriminator,
    Draws,
    ImageTokenizer,
    PixelLoss,
    PixelLossConfig,
    code_usage,
    discriminator_loss,
    generator_loss,
    perplexity,
    psnr,
    sum_over_processes,
)
from mentor.training.optim import OptimizerConfig, configure_optimizers
from mentor.types import Batch, prompt_images

# Codes count as in use in training when they occurred within about this many steps.
USAGE_STEPS = 100
# As in VQGAN; a discriminator that pushes nowhere must not be followed any distance.
LARGEST_RATIO = 1e4


class LossConfig(Config):
    """What the image tokenizer learns from and when.

    Attributes:
        pixels: difference of drawn pictures and targets.
        delay: share of all updates in which latents stay continuous. Then k-means chooses the codes and quantisation
            begins. A tokenizer whose codes are already chosen, such as one loaded from a release, does not wait.
        images: pictures that all processes together learn from in a batch at most; 0 for all. Each example gives one
            of its pictures, the target or a reference, or some more or fewer of them so that the number comes out.
        adversarial: what a discriminator teaches; null trains without one.
    """

    pixels: PixelLossConfig = PixelLossConfig()
    delay: float = Field(default=0.15, ge=0, lt=1)
    images: int = Field(default=0, ge=0)
    adversarial: AdversarialLossConfig | None = None

    def check_images(self, world: int) -> None:
        """Nothing, where each of so many processes has a picture to learn from in a step.

        Raises:
            UserError: some have none.
        """
        if 0 < self.images < world:
            raise UserError(
                f"loss.images {self.images} leaves some of {world} processes without a picture: "
                f"say {world} or more, or 0 for all pictures"
            )


@dataclass(frozen=True)
class Pictures:
    """What a process learns from in a batch.

    Attributes:
        images: in [-1, 1].
        places: the number of each among the pictures of all processes: its example's row in the global batch, and a
            multiple of that batch's size on top for further pictures of the example.
    """

    images: Float[Tensor, "n c y x"]
    places: Sequence[int]


class ImageTokenizerModule(lightning.LightningModule):
    """An image tokenizer in training.

    Args:
        tokenizer: what is trained.
        loss: what it learns from and when.
        optimizer: settings of the optimizer.
        updates: optimizer updates that the training takes in all.
        seed: of the choice of pictures and of the quantizer's chance.

    Attributes:
        discriminator: None where the loss has no adversarial part. It is trained and kept in checkpoints, but belongs
            to no release. The running average of weights takes it along; nothing reads its average.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        updates: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.loss = loss
        self.metrics: dict[str, float] = {}
        self.pixel_loss = PixelLoss(loss.pixels)
        self.discriminator = Discriminator(loss.adversarial.discriminator) if loss.adversarial else None
        self._optimizer = optimizer
        self._updates = updates
        self._seed = seed
        self.restart_averaging = False
        codes = tokenizer.vocab_size
        # No buffers: distributed training would overwrite each process's with the first one's, and averaging exchanges
        # them with its own before the validation's last hook.
        self._recent = torch.zeros(codes)
        self._validation_counts = torch.zeros(codes)
        self._validation_psnr = torch.zeros(2)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with warm-up and cosine; the discriminator's is a part of it (Lightning's hook)."""
        others = []
        if self.discriminator is not None and (adversarial := self.loss.adversarial) is not None:
            others.append((self.discriminator, OptimizerConfig(lr=adversarial.lr, betas=adversarial.betas)))
        return configure_optimizers(self.tokenizer, self._optimizer, self._updates, others)

    def on_train_start(self) -> None:
        """Check that there are pictures for all (Lightning's hook).

        Raises:
            UserError: a step learns from fewer pictures than there are processes.
        """
        self.loss.check_images(self.trainer.world_size)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss over the batch's pictures, and what the logs want to know of it (Lightning's hook).

        The loss brings the gradients of image tokenizer and discriminator along, for one backward pass and one step.
        Its value is that of pixels and codes alone, so that it stays comparable when the adversarial part begins. All
        values are scaled so that their mean over the processes is the mean over the pictures of all processes.
        """
        step, parts = self.trainer.global_step, self.trainer.accumulate_grad_batches
        seed = f"{self._seed}/{step}/{batch_idx % parts}"
        quantise = bool(self.tokenizer.quantize.started)
        if not quantise and step >= self.loss.delay * self._updates:
            pictures = self._choose(batch, 0, seed)
            self.tokenizer.start_codes(pictures.images, Draws(seed, pictures.places))
            quantise = True
            # The average so far is of weights that knew no codes.
            self.restart_averaging = True
        pictures = self._choose(batch, self.loss.images, seed)
        images = pictures.images
        output = self.tokenizer(images, quantise, Draws(seed, pictures.places))
        counts = torch.bincount(output.codes.ids.flatten(), minlength=len(self._recent))
        self._recent = self._recent.to(counts.device) * (1 - 1 / USAGE_STEPS) + counts
        share = self._share(len(images))
        values = {
            "loss": self.pixel_loss(output.images, images) + output.quantizer_loss,
            "psnr": psnr(output.images.detach().clamp(-1, 1), images).mean(),
        }
        if self.discriminator is not None and (adversarial := self.loss.adversarial) is not None:
            self.discriminator.check_size(images)
            # The same in all processes, so that all of them have a gradient for the discriminator or none.
            if step >= adversarial.start * self._updates:
                values |= self.add_adversarial(
                    adversarial, self.discriminator, values["loss"], output.images, images, share
                )
        return {name: value * share for name, value in values.items()}

    def add_adversarial(
        self,
        adversarial: AdversarialLossConfig,
        discriminator: Discriminator,
        loss: Float[Tensor, ""],
        fake: Float[Tensor, "n c y x"],
        real: Float[Tensor, "n c y x"],
        share: Float[Tensor, ""],
    ) -> dict[str, Tensor]:
        """The loss with the gradients of the adversarial part, which leaves its value as it is, and values to log."""
        verdict = judge(discriminator, real, fake, adversarial.kind)
        weight = torch.tensor(adversarial.weight, device=fake.device)
        if adversarial.adaptive:
            (pull,) = torch.autograd.grad(loss, fake, retain_graph=True)
            squares = torch.stack((pull.float().square().sum(), verdict.push.float().square().sum()))
            pixels, pictures = sum_over_processes(squares * share.square()).sqrt()
            weight = weight * (pixels / pictures.clamp(min=1e-12)).clamp(max=LARGEST_RATIO)
        added = weight * (verdict.push * fake).sum() + verdict.d_loss
        values = {"loss": loss + (added - added.detach()), "g_weight": weight, "g_loss": verdict.g_loss}
        return values | {"d_loss": verdict.d_loss.detach(), "d_real": verdict.d_real, "d_fake": verdict.d_fake}

    def write_row(self, outputs: Any) -> None:
        """Write a row of the logs from the last step's values: means over all processes."""
        outputs = outputs | {"loss": outputs["loss"].detach() * self.trainer.accumulate_grad_batches}
        means = self.trainer.strategy.reduce(torch.stack(list(outputs.values())), reduce_op="mean")
        counts = self.trainer.strategy.reduce(self._recent.clone(), reduce_op="sum")
        row = {f"train/{name}": mean for name, mean in zip(outputs, means.tolist(), strict=True)}
        if self.tokenizer.quantize.started:
            # After USAGE_STEPS steps a count of one has shrunk to 1 / e.
            used = code_usage((counts > 0.36).float())
            row |= {"train/usage": float(used), "train/perplexity": float(perplexity(counts))}
        else:
            self._recent.zero_()
        self._write(row)

    def changed_by_forward(self) -> list[Tensor]:
        """Tensors that a forward pass changes, as a guard may have to take the change back: those of the codes."""
        return [*self.tokenizer.quantize.parameters(), *self.tokenizer.quantize.buffers()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how often codes occurred of late (Lightning's hook)."""
        checkpoint["recent_codes"] = sum_over_processes(self._recent.clone()).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back; the first process does, for all (Lightning's hook)."""
        recent = checkpoint["recent_codes"]
        self._recent = recent.clone() if self.trainer.is_global_zero else torch.zeros_like(recent)

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

    def _choose(self, batch: Batch, most: int, seed: str) -> Pictures:
        return training_pictures(batch, most, seed, self.trainer.global_rank, self.trainer.world_size)

    def _share(self, count: int) -> Float[Tensor, ""]:
        """What this process's pictures weigh: 1 where all processes have equally many."""
        counted = torch.tensor(float(count), device=self.device)
        return count * self.trainer.world_size / sum_over_processes(counted)

    def _write(self, metrics: dict[str, float]) -> None:
        self.metrics.update(metrics)
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)


def training_pictures(batch: Batch, most: int, seed: str, rank: int = 0, world: int = 1) -> Pictures:
    """The pictures of the process's examples that are learnt from: all, or about `most` of all processes together.

    An example's pictures are its target and the references that differ from it. With a limit each example gives equally
    many of them, chosen at random, and one more in a stretch of the global batch that begins anywhere and ends where
    there are enough. So the processes have equally many to do, and examples without further pictures leave the number
    below the limit.

    Args:
        batch: row j of it is row `rank` + j * `world` of the global batch.
        most: pictures of the global batch at most; 0 for all.
        seed: of the choice; the same in all processes.
        rank: of the process.
        world: how many processes there are.
    """
    size = len(batch.targets) * world
    begin = random.Random(seed).randrange(size)
    images: dict[int, Tensor] = {}
    for index, (prompt, target) in enumerate(zip(batch.prompts, batch.targets, strict=True)):
        row = rank + index * world
        own = [target, *(image for image in prompt_images(prompt) if not torch.equal(image, target))]
        order = list(range(len(own)))
        if most:
            random.Random(f"{seed}/{row}").shuffle(order)
            order = order[: most // size + ((row - begin) % size < most % size)]
        images |= {row + size * number: own[number] for number in order}
    places = sorted(images)
    return Pictures(torch.stack([images[place] for place in places]), places)


@dataclass(frozen=True)
class Verdict:
    """What a discriminator says of real and drawn pictures.

    Attributes:
        g_loss: the loss of whoever drew the pictures, a plain number.
        push: its gradient with respect to the drawn pictures.
        d_loss: the discriminator's, with a gradient for its weights and for nothing else.
        d_real: mean logit of the real pictures, a plain number.
        d_fake: mean logit of the drawn ones.
    """

    g_loss: Float[Tensor, ""]
    push: Float[Tensor, "n c y x"]
    d_loss: Float[Tensor, ""]
    d_real: Float[Tensor, ""]
    d_fake: Float[Tensor, ""]


def judge(
    discriminator: Discriminator,
    real: Float[Tensor, "n c y x"],
    fake: Float[Tensor, "n c y x"],
    kind: AdversarialKind,
) -> Verdict:
    """Both sides' losses of adversarial training: what two optimizers in turn would see, for one step of both.

    Args:
        discriminator: the judge.
        real: pictures to be taken for real.
        fake: drawn pictures.
        kind: of the losses.
    """
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    drawn = fake.detach().requires_grad_()
    g_loss = generator_loss(torch.func.functional_call(discriminator, frozen, (drawn,)), kind)
    (push,) = torch.autograd.grad(g_loss, drawn)
    on_real, on_fake = discriminator(torch.cat((real, fake.detach()))).float().chunk(2)
    d_loss = discriminator_loss(on_real, on_fake, kind)
    return Verdict(g_loss.detach(), push, d_loss, on_real.detach().mean(), on_fake.detach().mean())
