"""What a training step takes beside what stays from step to step: memory and work, both found by tracing it.

In whole runs on the CPU (the demo's image tokenizer and stage 1, `backbone=b` at one example) torch's allocator gave
out 0.95 to 1.06 of this and the states together. The processes themselves grew by up to a tenth more (the smallest by
more than that), and the program takes half a GiB. Accelerators have not been measured; there, their context and the
allocator's caches come on top.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mentor.conditioning import Condition, Conditioner
from mentor.errors import UserError
from mentor.models import AnyGenerator
from mentor.tokenizers import build_image_tokenizer
from mentor.training.blueprint import Blueprint, draw_generator
from mentor.training.config import GeneratorTraining, ImageTokenizerTraining, TrainConfig
from mentor.training.fitting import check_references, shows_references
from mentor.training.freeze import freeze
from mentor.training.image_tokenizer_module import ImageTokenizerModule
from mentor.training.memory import size_of
from mentor.training.objectives import Target, score
from mentor.training.tracing import Traced, autocast, trace
from mentor.types import Codes, ImageSegment, Prompt, TextSegment

# Tasks whose prompts show no picture but the target, which is encoded once.
_WITHOUT_OTHER_PICTURE = {"text_to_image", "reconstruct"}


@dataclass(frozen=True)
class Load:
    """What a process does in a step.

    Attributes:
        rows: examples of a batch.
        validation_rows: likewise in validation.
        pictures: pictures of a batch that the image tokenizer sees, at most; 0 where there are codes instead.
        validation_pictures: likewise in validation.
        prefix: tokens of the longest prefix; 0 for an image tokenizer.
        references: pictures that a prompt shows, at most.
    """

    rows: int
    validation_rows: int
    pictures: int
    validation_pictures: int
    prefix: int = 0
    references: int = 0


@dataclass(frozen=True)
class Demand:
    """What a step takes at most beside the states, of one process; estimates.

    Attributes:
        step: forward and backward pass: activations, and what the backward pass makes of them.
        encoding: making codes of pictures, before the step proper.
        validation: a validation step; 0 where there is none.
        flops: of a batch, forward and backward, codes included.
        gathered: weights and gradients that are whole for a while where processes share them.
    """

    step: int
    encoding: int
    validation: int
    flops: int
    gathered: int = 0

    @property
    def most(self) -> int:
        """All of it; step, encoding and validation come one after the other."""
        return self.gathered + max(self.step, self.encoding, self.validation)


def process_load(config: TrainConfig, blueprint: Blueprint, world: int, codes: bool) -> Load:
    """What each of `world` processes has to do, at most.

    Raises:
        UserError: a reference picture takes more tokens than a prefix may have, or there is too little for a process.
    """
    tasks = set(config.data.tasks)
    rows, validation_rows = config.data.batch_size // world, config.data.validation_batch_size // world
    each = 1 if tasks <= _WITHOUT_OTHER_PICTURE else 2
    if isinstance(config, ImageTokenizerTraining):
        config.loss.check_images(world)
        most = config.loss.images
        return Load(rows, validation_rows, min(rows * each, -(-most // world) or rows * each), validation_rows)
    assert blueprint.generator is not None
    longest = blueprint.generator.config.conditioner.longest(blueprint.spec)
    references = int(shows_references(tasks))
    check_references(blueprint.generator.conditioner, tasks, codes)
    pictures = (0, 0) if codes else (rows * each, validation_rows * each)
    return Load(rows, validation_rows, *pictures, prefix=longest, references=references)


def estimate_demand(config: TrainConfig, blueprint: Blueprint, load: Load, accelerator: bool) -> Demand:
    """What a step would take, by tracing it.

    Args:
        config: the settings.
        blueprint: what is trained.
        load: what the process does in a step.
        accelerator: whether it trains on one, and not on the CPU.
    """
    if isinstance(config, ImageTokenizerTraining):
        return _image_tokenizer_demand(config, load, accelerator)
    generator = blueprint.generator
    assert generator is not None
    sharded = config.trainer.strategy == "fsdp"
    encoding = _trace_encoding(blueprint, load.pictures)
    # From the third on layers are alike, and the difference that one makes gives all; not so where some are frozen.
    layers = generator.config.backbone.layers
    few = [layers] if config.freeze or layers <= 4 else [3, 4]
    steps = [_trace_generator(config, generator, number, load, accelerator, training=True) for number in few]
    step, validation = _extended(steps, layers), 0
    if config.trainer.validate_every:
        checks = [_trace_generator(config, generator, number, load, accelerator, training=False) for number in few]
        pictures = encoding.bytes * load.validation_pictures // max(1, load.pictures)
        validation = max(_extended(checks, layers).bytes, pictures)
    gathered = _gathered(generator, config.trainer.precision) if sharded else 0
    return Demand(step.bytes, encoding.bytes, validation, step.flops + encoding.flops, gathered)


def _extended(traced: list[Traced], layers: int) -> Traced:
    if len(traced) == 1:
        return traced[0]
    three, four = traced
    return Traced(*(a + (layers - 3) * (b - a) for a, b in zip(three, four, strict=True)))


def _trace_generator(
    config: GeneratorTraining,
    whole: AnyGenerator,
    layers: int,
    load: Load,
    accelerator: bool,
    training: bool,
) -> Traced:
    backbone = whole.config.backbone.model_copy(update={"layers": layers})
    shape = whole.config.model_copy(update={"backbone": backbone})
    generator = draw_generator(shape, whole.material, whole.spec).train(training)
    freeze(generator, config.freeze)
    if config.trainer.strategy == "fsdp" and config.trainer.precision != "32-true":
        # They come in low precision, and no copies of them are kept until the backward pass.
        for part in _gathered_parts(generator):
            part.to(torch.float16 if accelerator else torch.bfloat16)
    rows = load.rows if training else load.validation_rows

    def work() -> Tensor | None:
        condition, spec = _longest_condition(whole, rows, load), whole.spec
        latents = None if whole.draws == "codes" else torch.zeros(rows, spec.code_width, *spec.grid)
        target = Target(
            torch.zeros(rows, *spec.grid, dtype=torch.long), latents, torch.zeros(rows, *spec.grid), [0] * rows
        )
        smoothing = config.objective.label_smoothing if training else 0.0
        with torch.set_grad_enabled(training):
            with autocast(config.trainer.precision, accelerator):
                losses = score(generator, condition, target, config.objective.focus_weight, smoothing)["loss"]
            return losses.mean() if training else None

    return trace([generator], work)


def _gathered_parts(generator: AnyGenerator) -> list[nn.Module]:
    """What sharded training gathers for as long as it computes; it gathers all the rest for a whole step."""
    parts = [part for block in generator.backbone.blocks for part in block.named_children()]
    return [part for name, part in parts if name in ("attention", "feed_forward")]


def _gathered(generator: AnyGenerator, precision: str) -> int:
    """Weights and gradients of the rest, and the weights of two blocks, the next one's being fetched ahead."""
    in_blocks = size_of(weight for part in _gathered_parts(generator) for weight in part.parameters())
    rest = size_of(generator.parameters()) - in_blocks
    of_two = 2 * in_blocks // len(generator.backbone.blocks)
    return 2 * rest + (of_two if precision == "32-true" else of_two // 2)


def _longest_condition(generator: AnyGenerator, rows: int, load: Load) -> Condition:
    spec, count = generator.spec, rows * load.references
    prompt = _longest_prompt(generator.conditioner, load)
    if not count or not generator.conditioner.reads_codes:
        return Condition([prompt] * rows, None)
    ids = torch.zeros(count, *spec.grid, dtype=torch.long)
    latents = torch.zeros(count, spec.code_width, *spec.grid)
    return Condition([prompt] * rows, Codes(ids, latents, torch.zeros(count, spec.feature_width, *spec.grid)))


def _longest_prompt(conditioner: Conditioner, load: Load) -> Prompt:
    """A prompt that fills the prefix, or nearly so where a word takes several tokens."""
    # Where codes stand for the picture it does not matter what it shows, and else not how large it is.
    images = [ImageSegment(torch.zeros(3, 2, 2))] * load.references
    words = load.prefix
    while words:
        prompt: Prompt = (TextSegment(" ".join(["0"] * words)), *images)
        try:
            conditioner.count(prompt)
        except UserError:
            words -= 1 if words < 100 else words // 20
        else:
            return prompt
    return tuple(images)


def _trace_encoding(blueprint: Blueprint, pictures: int) -> Traced:
    if not pictures:
        return Traced(0, 0)
    with torch.device("meta"):
        tokenizer = build_image_tokenizer(blueprint.image_tokenizer.config).eval()
    side = blueprint.spec.grid[0] * tokenizer.factor

    def work() -> None:
        with torch.no_grad():
            tokenizer.encode(torch.zeros(pictures, 3, side, side))

    return trace([tokenizer], work)


def _image_tokenizer_demand(config: ImageTokenizerTraining, load: Load, accelerator: bool) -> Demand:
    step = _trace_image_tokenizer(config, load.pictures, accelerator, training=True)
    validation = 0
    if config.trainer.validate_every:
        validation = _trace_image_tokenizer(config, load.validation_pictures, accelerator, training=False).bytes
    return Demand(step.bytes, 0, validation, step.flops)


def _trace_image_tokenizer(config: ImageTokenizerTraining, pictures: int, accelerator: bool, training: bool) -> Traced:
    """A step with all its parts, also those that begin later."""
    with torch.device("meta"):
        tokenizer = build_image_tokenizer(config.image_tokenizer)
        freeze(tokenizer, config.freeze)
        module = ImageTokenizerModule(tokenizer, config.loss, config.optimizer, config.trainer.max_steps)
    # In training it looks at numbers, to find codes that are not used; it takes no more memory for that.
    tokenizer.quantize.eval()
    side = config.data.image_size

    def work() -> Tensor | None:
        images = torch.zeros(pictures, 3, side, side)
        with torch.set_grad_enabled(training):
            with autocast(config.trainer.precision, accelerator):
                output = tokenizer(images)
                loss = module.pixel_loss(output.images, images) + output.quantizer_loss
                adversarial = config.loss.adversarial
                if training and module.discriminator is not None and adversarial is not None:
                    share = torch.ones(())
                    values = module.add_adversarial(
                        adversarial, module.discriminator, loss, output.images, images, share
                    )
                    loss = values["loss"]
            return loss if training else None

    return trace([module], work)
