"""The five tasks: prompts, targets, masks and facts, and that nothing but the seed decides."""

import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from mentor.data.records import Contents, Record, RecordObject, View
from mentor.data.tasks import REQUIREMENTS, REQUIRES, TASKS, TaskContext
from mentor.data.tensors import to_pixels, to_tensor
from mentor.errors import UserError
from mentor.types import Example, prompt_images, prompt_text

SIZE = 64


def picture(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def box_mask(left: int, top: int, right: int, bottom: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def mask_of(thing: RecordObject) -> np.ndarray:
    assert thing.mask is not None
    return thing.mask


def scene(objects: int = 1, views: int = 2) -> Record:
    acorn = RecordObject(
        "acorn", box_mask(8, 8, 40, 40), "acorn at the left", {"place": "at the left", "size": "small"}
    )
    pear = RecordObject(
        "pear", box_mask(44, 20, 60, 50), "pear at the right", {"place": "at the right", "size": "large"}
    )
    return Record(
        key="000007",
        image=picture(0),
        captions=("an acorn on red", "a brown nut"),
        objects=(acorn, pear)[:objects],
        views=tuple(View(picture(10 + n), box_mask(n, 10, n + 20, 30), {"place": f"view {n}"}) for n in range(views)),
        subject="acorn",
        attributes={"kind": "scene", "style": "flat", "background": {"kind": "plain", "colour": "red"}},
    )


def context(**changes) -> TaskContext:
    return TaskContext(**{"image_size": SIZE, "other_image": lambda rng: picture(99), "image_only": 0.0} | changes)


def make(task: str, record: Record, seed: int = 0, **changes) -> Example:
    return TASKS[task](record, context(**changes), random.Random(seed))


@pytest.mark.parametrize("task", TASKS)
def test_examples_have_the_promised_form(task):
    example = make(task, scene(2))
    assert example.task == task
    assert example.key == "000007"
    assert example.target.shape == (3, SIZE, SIZE)
    assert example.target.dtype == torch.float32
    assert -1 <= example.target.min() < example.target.max() <= 1
    assert example.focus.shape == (SIZE, SIZE)
    assert 0 == example.focus.min() < example.focus.max() == 1
    assert example.facts["task"] == task
    for name in ("place", "size", "background", "subject", "mask", "object", "caption", "objects"):
        assert name in example.facts, name


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_example_and_others_differ(task):
    first, again = make(task, scene(2), 1, image_only=0.5), make(task, scene(2), 1, image_only=0.5)
    assert prompt_text(first.prompt) == prompt_text(again.prompt)
    assert torch.equal(first.target, again.target)
    assert all(map(torch.equal, prompt_images(first.prompt), prompt_images(again.prompt)))
    seen = {
        (prompt_text(each.prompt), *(to_pixels(image).tobytes() for image in prompt_images(each.prompt)))
        for each in (make(task, scene(2), seed, image_only=0.5) for seed in range(20))
    }
    assert len(seen) > 1


def test_reconstruct_shows_and_asks_for_the_same_picture():
    example = make("reconstruct", scene())
    assert prompt_text(example.prompt) in (
        "The image is <image>.\n an acorn on red",
        "The image is <image>.\n a brown nut",
    )
    assert torch.equal(prompt_images(example.prompt)[0], example.target)
    assert np.array_equal(to_pixels(example.target), scene().image)


def test_a_tenth_of_reconstruct_prompts_are_the_bare_image():
    texts = [prompt_text(make("reconstruct", scene(), seed, image_only=0.1).prompt) for seed in range(1000)]
    assert texts.count("<image>") == pytest.approx(100, abs=30)
    assert {text for text in texts if text != "<image>"} == {
        "The image is <image>.\n an acorn on red",
        "The image is <image>.\n a brown nut",
    }


def test_segment_puts_the_object_on_exact_black():
    example = make("segment", scene())
    mask = torch.from_numpy(scene().objects[0].mask)
    assert prompt_text(example.prompt) == "The acorn in <image>."
    assert (example.target[:, ~mask] == -1).all()
    assert torch.equal(example.target[:, mask], to_tensor(scene().image)[:, mask])
    assert torch.equal(prompt_images(example.prompt)[0], to_tensor(scene().image))
    assert np.array_equal(example.facts["mask"], mask.numpy())


def test_segment_singles_out_one_of_several_by_its_phrase_and_cuts_that_one():
    seen = set()
    for seed in range(20):
        example = make("segment", scene(2), seed)
        text = prompt_text(example.prompt)
        chosen = scene(2).objects[0 if "acorn" in text else 1]
        assert text == f"The {chosen.phrase} in <image>."
        assert np.array_equal((example.target > -1).any(dim=0).numpy() | ~mask_of(chosen), np.ones((SIZE, SIZE), bool))
        assert (example.target[:, torch.from_numpy(~mask_of(chosen))] == -1).all()
        assert example.facts["place"] == chosen.attributes["place"]
        seen.add(text)
    assert len(seen) == 2


def test_segment_without_phrase_falls_back_to_the_name():
    record = scene(2)
    bare = tuple(RecordObject(thing.name, thing.mask) for thing in record.objects)
    example = make("segment", Record(record.key, record.image, record.captions, bare))
    assert prompt_text(example.prompt) in ("The acorn in <image>.", "The pear in <image>.")


def test_text_to_image_prompts_with_every_caption_and_no_image():
    texts = set()
    for seed in range(20):
        example = make("text_to_image", scene(), seed)
        assert prompt_images(example.prompt) == []
        assert example.facts["caption"] == prompt_text(example.prompt)
        texts.add(prompt_text(example.prompt))
    assert texts == {"an acorn on red", "a brown nut"}


def test_recover_pastes_the_named_object_on_the_other_picture():
    for seed in range(20):
        example = make("recover", scene(2), seed)
        chosen = example.facts["object"]
        assert prompt_text(example.prompt).startswith(f"The {chosen} in <image>.\n ")
        reference = to_pixels(prompt_images(example.prompt)[0])
        mask = example.facts["reference_mask"]
        assert 0 < mask.sum() < SIZE * SIZE
        assert np.array_equal(reference[~mask], picture(99)[~mask])
        assert not np.array_equal(reference[mask], picture(99)[mask])
        assert np.array_equal(to_pixels(example.target), scene().image)
        assert np.array_equal(example.facts["input"], reference)


def test_recover_keeps_the_objects_size_when_told_to():
    areas = [
        make("recover", scene(), seed, recover_min_scale=1.0, recover_distort=0.0).facts["reference_mask"].sum()
        for seed in range(10)
    ]
    assert all(32 * 32 <= area <= 34 * 34 for area in areas)
    assert {make("recover", scene(), seed).facts["reference_mask"].sum() < 20 * 20 for seed in range(30)} == {
        True,
        False,
    }


def test_subject_shows_another_view_and_asks_for_the_picture():
    shown = set()
    for seed in range(20):
        example = make("subject", scene(2), seed)
        number = int(example.facts["view"]["place"].split()[1])
        shown.add(number)
        assert prompt_text(example.prompt).startswith("The acorn in <image>.\n ")
        assert np.array_equal(to_pixels(prompt_images(example.prompt)[0]), scene().views[number].image)
        assert np.array_equal(to_pixels(example.target), scene().image)
        assert np.array_equal(example.facts["reference_mask"], scene().views[number].mask)
        assert np.array_equal(example.facts["mask"], scene().objects[0].mask)
        assert example.facts["place"] == "at the left"
        assert example.facts["background"] == {"kind": "plain", "colour": "red"}
    assert shown == {0, 1}


def test_reference_and_target_are_cropped_alike():
    wide = Record(
        "k",
        picture(1, 64, 128),
        ("a caption",),
        (RecordObject("disc", box_mask(50, 20, 80, 50, 64, 128)),),
        (View(picture(1, 64, 128), box_mask(50, 20, 80, 50, 64, 128)),),
    )
    for task in ("reconstruct", "subject"):
        example = make(task, wide, image_size=32)
        assert torch.equal(prompt_images(example.prompt)[0], example.target)
        assert example.facts["mask"].shape == (32, 32)
    left, _, right, _ = (50 - 32) / 2, None, (80 - 32) / 2, None
    columns = np.flatnonzero(make("segment", wide, image_size=32).facts["mask"].any(axis=0))
    assert (columns[0], columns[-1] + 1) == (left, right), "the mask follows the crop and keeps its proportions"


def test_focus_is_the_named_object_and_everything_named():
    assert np.array_equal(make("subject", scene(2)).focus.numpy() == 1, scene(2).objects[0].mask)
    both = mask_of(scene(2).objects[0]) | mask_of(scene(2).objects[1])
    assert np.array_equal(make("text_to_image", scene(2)).focus.numpy() == 1, both)
    assert make("text_to_image", scene(0)).focus.sum() == 0


@pytest.mark.parametrize(
    ("objects", "views", "usable"),
    [
        (0, 0, {"reconstruct", "text_to_image"}),
        (1, 0, {"reconstruct", "text_to_image", "segment", "recover"}),
        (2, 2, set(TASKS)),
    ],
)
def test_requirements_admit_what_the_tasks_can_use(objects, views, usable):
    record = scene(objects, views)
    counts = [np.array([count], np.uint8) for count in (len(record.captions), objects, objects, views)]
    contents = Contents(*counts, tasks=np.zeros(1, np.uint32))
    assert {task for task, fits in REQUIRES.items() if fits(contents)} == usable
    for task in usable:
        make(task, record)


def test_objects_and_views_without_masks_are_left_to_the_tasks_that_need_none():
    record = scene(2, 1)
    bare = replace(record.objects[0], mask=None)
    record = replace(record, objects=(bare, record.objects[1]), views=(replace(record.views[0], mask=None),))
    for seed in range(5):
        segmented = TASKS["segment"](record, context(), random.Random(seed))
        assert segmented.facts["object"] == record.objects[1].name
    shown = make("subject", record)
    assert shown.facts["reference_mask"] is None
    assert shown.focus.sum() == 0


def test_every_task_states_its_requirement():
    assert TASKS.keys() == REQUIRES.keys() == REQUIREMENTS.keys()


@pytest.mark.parametrize("task", ["segment", "recover"])
def test_an_object_cropped_away_is_an_error_that_names_the_record(task):
    record = Record("k9", picture(1, 64, 128), ("x",), (RecordObject("cup", box_mask(0, 0, 20, 64, 64, 128)),))
    with pytest.raises(UserError, match=r"k9.*'cup'"):
        make(task, record)


def test_a_caption_with_an_image_mark_is_an_error_that_names_the_record():
    with pytest.raises(UserError, match="k8"):
        make("text_to_image", Record("k8", picture(0), ("see <image>",)))


@pytest.mark.parametrize("task", TASKS)
def test_an_example_takes_about_a_millisecond(task):
    record, surroundings = scene(2), context()
    started = time.process_time()
    for seed in range(50):
        TASKS[task](record, surroundings, random.Random(seed))
    per_example = (time.process_time() - started) / 50
    assert per_example < 0.01, "ten times what it takes, so that only a real slowdown fails"
