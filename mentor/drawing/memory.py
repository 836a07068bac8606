"""How many pictures can be drawn at a time: an estimate of the memory that they take, and what to do without any."""

from collections.abc import Sequence

import torch

from mentor.decoding.settings import SamplingConfig
from mentor.drawing.model import Model
from mentor.memory import free_memory

# No more than these gain speed.
MOST_ON_CPU = 64
MOST_ON_GPU = 256
# Of a number of the cache, a state or a pixel.
_NUMBER = 4
# Of a code of the vocabulary, in a row's draw: logits, their guided mixture, what filters make of it, its softmax.
_CODE = 24
# Maps of the image decoder's widest level that are there at a time.
_MAPS = 6
_TEXT = ("not enough memory", "can't allocate memory", "out of memory")


def picture_bytes(model: Model, config: SamplingConfig, prefix: int) -> int:
    """About what one more picture takes while it is drawn, at most.

    Args:
        model: what is drawn with.
        config: how.
        prefix: tokens of its prompt.
    """
    backbone, spec = model.release.generator.backbone, model.release.generator.spec
    shape = backbone.config
    # The prompt is kept as it was read, and once more in front of the tokens.
    kept = 2 * prefix + spec.tokens + config.speculative
    cache = 2 * shape.layers * backbone.kv_heads * backbone.head_width * kept * _NUMBER
    # A block's widest moment over the whole prompt: its input, norm, queries, keys, values and gated feed-forward.
    reading = prefix * (16 * shape.width * _NUMBER + prefix)
    drawing = spec.vocab_size * _CODE * max(1, config.speculative)
    if model.release.generator.draws != "codes":
        # All tokens of a picture pass through the backbone together.
        drawing = spec.tokens * (16 * shape.width * _NUMBER + prefix + spec.tokens)
    return config.parts * (cache + reading + drawing)


def decoder_bytes(model: Model) -> int:
    """About what making one picture of its codes takes; that is done for one at a time."""
    shape = model.release.image_tokenizer.config.decoder_shape
    sides = [model.image_size // (shape.stem * 2**level) for level in range(len(shape.widths))]
    return max(width * side**2 for width, side in zip(shape.widths, sides, strict=True)) * _NUMBER * _MAPS


def fitting(
    model: Model, config: SamplingConfig, prompts: Sequence[int], most: int | None = None, sharing: int = 1
) -> int:
    """The pictures to draw at a time, so that they take half of the free memory at most: 1 or more.

    Args:
        model: what is drawn with.
        config: how.
        prompts: prefix tokens of the prompts.
        most: never more than these.
        sharing: processes that draw on this machine; each of them has an accelerator of its own, if there are any.
    """
    accelerator = model.device.type == "cuda"
    most = most or (MOST_ON_GPU if accelerator else MOST_ON_CPU)
    free = free_memory(accelerator, model.device if accelerator else None)
    if not free:
        return most
    if not accelerator:
        free //= sharing
    one = picture_bytes(model, config, max(prompts))
    return max(1, min(most, (free // 2 - decoder_bytes(model)) // one))


def ran_out(error: BaseException) -> bool:
    """Whether the error says that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXT)
