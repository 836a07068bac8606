"""Pictures on their way into the model and out of it."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from mentor.drawing.model import Model


def to_reference(picture: Image.Image, size: int) -> Float[Tensor, "c y x"]:
    """The picture as the model sees it: on white where transparent, centred square, `size` pixels, in [-1, 1]."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    square = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(square, dtype=np.float32))
    return rearrange(pixels / 127.5 - 1, "y x c -> c y x")


def to_picture(pixels: Float[Tensor, "c y x"]) -> Image.Image:
    """An RGB picture of pixels in [-1, 1]."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(rearrange(values, "c y x -> y x c").numpy())


def decode_picture(model: Model, drawn: Int[Tensor, "gy gx"] | Float[Tensor, "c gy gx"]) -> Image.Image:
    """The picture of one grid of codes or latents.

    One at a time: convolutions round differently in batches of different size, by up to one grey level.
    """
    quantised = model.release.generator.draws == "quantised"
    return to_picture(model.release.image_tokenizer.picture(drawn.unsqueeze(0), quantised)[0].cpu())


def partial_picture(model: Model, ids: Int[Tensor, "n"]) -> Image.Image:
    """The picture of a grid's first `n` codes; the cells that are not yet drawn are grey."""
    rows, columns = model.release.generator.spec.grid
    missing = rows * columns - len(ids)
    if missing == rows * columns:
        return Image.new("RGB", (model.image_size, model.image_size), (128, 128, 128))
    # Any code would do in the place of those to come; the last one runs on smoothly where the decoder looks across.
    grid = rearrange(torch.cat((ids, ids[-1:].expand(missing))), "(gy gx) -> 1 gy gx", gy=rows)
    pixels = model.release.image_tokenizer.decode_ids(grid)[0].cpu()
    drawn = rearrange((torch.arange(rows * columns) < len(ids)).float(), "(gy gx) -> 1 1 gy gx", gy=rows)
    return to_picture(pixels * functional.interpolate(drawn, size=pixels.shape[-2:], mode="nearest")[0])


def make_grid(pictures: Sequence[Image.Image], gap: int = 2) -> Image.Image:
    """The pictures side by side, in rows of nearly equal count, on white."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet
