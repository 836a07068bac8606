"""Records of noise with objects, masks and views, and whether two are the same."""

from dataclasses import replace

import numpy as np

from mentor.data.records import Record, RecordObject, View

RECIPE = {"name": "test", "size": 16}
MEMBERS = ("json", "masks.png", "png", "txt", "viewmasks.png", "views.png")


def make_record(number: int, size: int = 16, objects: int = 1, views: int = 2) -> Record:
    """A record of noise; of several objects or views every second has no mask."""
    rng = np.random.default_rng(number)

    def image() -> np.ndarray:
        return rng.integers(0, 256, (size, size + 4, 3), dtype=np.uint8)

    def mask() -> np.ndarray:
        return rng.random((size, size + 4)) < 0.5

    return Record(
        key=f"record-{number:04d}",
        image=image(),
        captions=(f"a thing number {number}", "piñata"),
        objects=tuple(
            RecordObject(f"thing {i}", mask() if i % 2 == 0 else None, f"thing {i} at the left", {"place": i})
            for i in range(objects)
        ),
        views=tuple(View(image(), mask() if i % 2 else None, {"turn": i}) for i in range(views)),
        subject="thing 0" if objects else "",
        attributes={"kind": "scene", "background": {"kind": "plain", "colour": "red"}},
    )


def assert_same(first: Record, second: Record) -> None:
    assert (first.key, first.captions, first.subject) == (second.key, second.captions, second.subject)
    assert first.tasks == second.tasks
    assert first.attributes == second.attributes
    assert np.array_equal(first.image, second.image)
    assert len(first.objects) == len(second.objects)
    assert len(first.views) == len(second.views)
    for one, other in zip(first.objects, second.objects, strict=True):
        assert (one.name, one.phrase, one.attributes) == (other.name, other.phrase, other.attributes)
        assert_same_mask(one.mask, other.mask)
    for one, other in zip(first.views, second.views, strict=True):
        assert one.attributes == other.attributes
        assert np.array_equal(one.image, other.image)
        assert_same_mask(one.mask, other.mask)


def assert_same_mask(first: np.ndarray | None, second: np.ndarray | None) -> None:
    assert (first is None) == (second is None)
    assert first is None or second is None or (second.dtype == np.bool_ and np.array_equal(first, second))


RECORDS = [make_record(number, objects=number % 3, views=number % 4) for number in range(11)]
RECORDS[4] = replace(RECORDS[4], captions=(), tasks=("segment",))


def pairs() -> list[tuple[str, Record]]:
    return [("heldout" if number % 5 == 4 else "train", record) for number, record in enumerate(RECORDS)]
