"""Rows of pictures with captions, as one picture."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Row = tuple[str, list[Float[Tensor, "c y x"]]]
GAP = 4
CAPTION = 14


def draw_grid(rows: Sequence[Row], scale: int = 2) -> Image.Image:
    """The rows below each other, each picture enlarged `scale` times, each row under its caption."""
    pictures = [[Image.fromarray(to_bytes(image)) for image in images] for _, images in rows]
    width = max(sum(p.width * scale + GAP for p in row) for row in pictures) + GAP
    heights = [max(p.height for p in row) * scale + CAPTION + GAP for row in pictures]
    canvas = Image.new("RGB", (width, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(10)
    top = GAP
    for (caption, _), row, height in zip(rows, pictures, heights, strict=True):
        text = " ".join(caption.split())
        while text and draw.textlength(text, font=font) > width - 2 * GAP:
            text = text[:-1]
        draw.text((GAP, top), text, fill="black", font=font)
        left = GAP
        for picture in row:
            large = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
            canvas.paste(large, (left, top + CAPTION))
            left += large.width + GAP
        top += height
    return canvas


def grid_tensor(rows: Sequence[Row]) -> UInt8[Tensor, "c y x"]:
    """The grid as TensorBoard wants it."""
    return torch.from_numpy(np.asarray(draw_grid(rows)).transpose(2, 0, 1).copy())


def to_bytes(image: Float[Tensor, "c y x"]) -> UInt8[np.ndarray, "y x c"]:
    """A picture in [-1, 1] as bytes."""
    scaled = (image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 0).numpy()
