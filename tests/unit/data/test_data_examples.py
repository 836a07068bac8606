"""Which samples a task can use, told without reading pictures, and examples by their numbers."""

import numpy as np
import pytest
import torch

from mentor.data.examples import ExampleMaker, usable_positions, usable_samples
from mentor.data.order import Sample
from mentor.data.records import Contents, Record, RecordObject, UnusableSample
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

    def shard_name(self, shard: int) -> str:
        return f"{shard}.tar"

    @property
    def contents(self) -> Contents:
        places = [position for count in self.counts for position in range(count)]
        ones = np.ones(len(places), np.uint8)
        things = np.array([self.objects and position % 2 == 0 for position in places], np.uint8)
        only = np.array([position == 3 for position in places], np.uint32)
        return Contents(ones, things, things, 0 * ones, only, ("text_to_image",))


def test_usable_positions_are_those_the_task_admits_and_no_picture_is_read():
    shards = InMemory()
    usable = usable_positions(shards, ["reconstruct", "segment"])
    assert [rows.tolist() for rows in usable["reconstruct"]] == [[0, 1, 2], [0, 1, 2]], "one is for another task only"
    assert [rows.tolist() for rows in usable["segment"]] == [[0, 2], [0, 2]]
    assert shards.pictures_read == 0


def test_usable_samples_are_counted_by_shard_and_listed_when_asked():
    usable = usable_samples(InMemory(), "text_to_image")
    assert usable is not None
    assert usable.sizes.tolist() == [4, 3]
    assert usable.positions(0).tolist() == [0, 1, 2, 3]
    assert usable_samples(InMemory(objects=False), "segment") is None
    assert usable_samples(InMemory(), "subject") is None


def test_every_requirement_reads_what_its_task_needs():
    ones, zeros = np.ones(1, np.uint8), np.zeros(1, np.uint8)
    full = {"captions": ones, "objects": ones, "masks": ones, "views": ones, "tasks": np.zeros(1, np.uint32)}
    needs = {
        "reconstruct": {"captions"},
        "segment": {"masks"},
        "text_to_image": {"captions"},
        "recover": {"captions", "masks"},
        "subject": {"captions", "objects", "views"},
    }
    assert needs.keys() == REQUIRES.keys()
    for task, fits in REQUIRES.items():
        for name in ("captions", "objects", "masks", "views"):
            assert fits(Contents(**{**full, name: zeros})).tolist() == [name not in needs[task]], (task, name)


def test_a_record_that_does_not_fit_its_task_is_named():
    class Empty(InMemory):
        def record(self, shard: int, position: int) -> Record:
            image = np.zeros((8, 16, 3), np.uint8)
            mask = np.zeros((8, 16), bool)
            mask[:, 0] = True
            return Record("edge", image, ("a caption",), (RecordObject("key", mask),))

    with pytest.raises(UnusableSample, match=r"0\.tar.*edge.*'key'") as caught:
        ExampleMaker(Empty(), 0, 8).example("segment", Sample(0, 0, 0))
    assert (caught.value.shard, caught.value.key, caught.value.reason) == ("0.tar", "edge", "object not in the picture")


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
