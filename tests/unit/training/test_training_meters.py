import pytest
import torch

from mentor.training.meters import TaskMeans


def test_means_are_kept_apart_by_task_and_skip_invalid_rows() -> None:
    means = TaskMeans(["a", "b", "c"], ["loss", "accuracy"])
    loss, accuracy = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 1.0, 1.0])
    means.add(["a", "b", "b"], torch.tensor([True, True, False]), {"loss": loss, "accuracy": accuracy})
    means.add(["a", "a"], torch.tensor([True, True]), {"loss": torch.tensor([3.0, 5.0]), "accuracy": torch.ones(2)})
    taken = means.take()
    assert taken == {
        "loss": pytest.approx(11 / 4),
        "loss/a": pytest.approx(3.0),
        "loss/b": pytest.approx(2.0),
        "accuracy": pytest.approx(3 / 4),
        "accuracy/a": pytest.approx(2 / 3),
        "accuracy/b": pytest.approx(1.0),
    }


def test_taking_starts_anew() -> None:
    means = TaskMeans(["a"], ["loss"])
    means.add(["a"], torch.tensor([True]), {"loss": torch.tensor([1.0])})
    means.take()
    assert means.take() == {}
    means.add(["a"], torch.tensor([True]), {"loss": torch.tensor([5.0])})
    assert means.take() == {"loss": 5.0, "loss/a": 5.0}


def test_what_is_not_a_number_in_a_padding_row_does_no_harm() -> None:
    means = TaskMeans(["a"], ["loss"])
    means.add(["a", "a"], torch.tensor([True, False]), {"loss": torch.tensor([1.0, float("nan")])})
    assert means.take()["loss"] == 1.0
