"""Which samples a task can use, told without reading pictures, and examples by their numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from mentor.data.examples import ExampleMaker, outline, usable_positions
from mentor.data.records import Record, RecordObject
from mentor.data.stream import Sample
from mentor.data.tasks import REQUIRES, TASKS
from mentor.errors import UserError
from mentor.types import prompt_images


class InMemory:
    """Shards in memory that count how often pictures are read. Every other record has an object."""

    split = "train"
    counts = (4, 3)

    def __init__(self, objects: bool = True) -> None:
        self.objects = objects
        self.pictures_read = 0

    def record(self, shard: int, position: int) -> Record:
        self.pictures_read += 1
        number = 10 * shard + position
        image = np.full((8, 8, 3), number, np.uint8)
        mask = np.zeros((8, 8), bool)
        mask[1:7, 2:6] = True
        things = (RecordObject("key", mask),) if self.objects and position % 2 == 0 else ()
        return Record(f"{number}", image, ("caption",), things)

    def description(self, shard: int, position: int) -> Mapping[str, Any]:
        things = [{"name": "key", "phrase": ""}] if self.objects and position % 2 == 0 else []
        return {"captions": ["caption"], "objects": things, "views": [], "subject": "", "attributes": {}}


def test_usable_positions_are_those_the_task_admits_and_no_picture_is_read():
    shards = InMemory()
    usable = usable_positions(shards, ["reconstruct", "segment"])
    assert [rows.tolist() for rows in usable["reconstruct"]] == [[0, 1, 2, 3], [0, 1, 2]]
    assert [rows.tolist() for rows in usable["segment"]] == [[0, 2], [0, 2]]
    assert shards.pictures_read == 0


def test_an_outline_answers_every_requirement_as_the_record_does():
    shards = InMemory()
    for position in range(4):
        for task, fits in REQUIRES.items():
            assert fits(outline(shards.description(0, position))) == fits(shards.record(0, position)), task


def test_a_task_that_no_record_suits_is_refused_with_what_it_needs():
    with pytest.raises(UserError, match=r"'train'.*'segment'.*an object with its mask"):
        usable_positions(InMemory(objects=False), ["segment"])


def test_an_example_is_the_same_whenever_it_is_asked_for_and_another_epoch_differs():
    maker = ExampleMaker(InMemory(), 3, 8)
    one, again, later = (maker.example("recover", Sample(epoch, 0, 2)) for epoch in (0, 0, 1))
    assert torch.equal(prompt_images(one.prompt)[0], prompt_images(again.prompt)[0])
    assert not torch.equal(prompt_images(one.prompt)[0], prompt_images(later.prompt)[0])
    assert torch.equal(one.target, later.target)


def test_recovery_pastes_on_pictures_of_the_same_shard_without_the_same_thing():
    maker = ExampleMaker(InMemory(), 0, 8)
    most_common = set()
    for epoch in range(30):
        shown = maker.example("recover", Sample(epoch, 0, 0)).facts["input"]
        most_common.add(int(np.bincount(shown.ravel()).argmax()))
    assert most_common == {1, 3}, "0 is the record itself, 2 holds a key too, 10 to 12 lie in another shard"


def test_every_task_has_an_example_of_the_asked_size():
    maker = ExampleMaker(InMemory(), 0, 16)
    for task in sorted(TASKS.keys() - {"subject"}):
        assert maker.example(task, Sample(0, 0, 0)).target.shape == (3, 16, 16)
