"""Pictures in the making: what is drawn is seen, the rest is grey."""

import numpy as np
import pytest
import torch

from mentor.drawing.model import Model
from mentor.drawing.pictures import decode_picture, partial_picture


@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_cells_to_come_are_grey(model: Model, count: int) -> None:
    ids = torch.arange(16)
    picture = np.array(partial_picture(model, ids[:count]))
    assert picture.shape == (16, 16, 3)
    cells = picture.reshape(4, 4, 4, 4, 3).swapaxes(1, 2).reshape(16, -1)
    assert (cells[count:] == 128).all()
    assert all((cell != 128).any() for cell in cells[:count])


def test_a_whole_one_is_the_picture_itself(model: Model) -> None:
    ids = torch.arange(16)
    assert partial_picture(model, ids).tobytes() == decode_picture(model, ids.reshape(4, 4)).tobytes()
