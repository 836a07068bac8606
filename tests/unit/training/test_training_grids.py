import numpy as np
import torch

from mentor.training.grids import draw_grid, grid_tensor, to_bytes


def test_bytes_span_the_range_and_clamp() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(3, 1, 5)
    assert to_bytes(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_every_picture_is_in_the_grid_under_its_caption() -> None:
    red, green = torch.full((3, 8, 8), -1.0), torch.full((3, 8, 8), -1.0)
    red[0], green[1] = 1, 1
    long_caption = "a caption that is much longer than the row is wide " * 3
    rows = [(long_caption, [red, green]), ("", [green, green])]
    pixels = np.asarray(draw_grid(rows, scale=2))
    assert (pixels == [255, 0, 0]).all(axis=-1).sum() == 16 * 16
    assert (pixels == [0, 255, 0]).all(axis=-1).sum() == 3 * 16 * 16
    tensor = grid_tensor(rows)
    assert tensor.shape == (3, pixels.shape[0], pixels.shape[1])
