"""A recipe's steps: what they keep, what they drop and why."""

import io
from typing import Any

import numpy as np
import pytest
from pictures import natural, saved
from PIL import Image
from stepping import JPG, PNG, Bytes, MaskOf, Missing, Recipe, dropped, item, kept, run

from mentor.config import validate
from mentor.data.making.drafts import Prepared
from mentor.data.making.duplicates import Duplicates
from mentor.data.making.steps import duplicates_step, prepare
from mentor.data.records import Dropped
from mentor.data.sources.items import FileBlob, Item, ItemObject, ItemView
from mentor.data.storage.decoding import Limits, decode_image
from mentor.data.storage.encoding import Layout
from mentor.data.transforms import fit_mask, fit_pixels
from mentor.errors import UserError


@pytest.mark.parametrize(("kind", "layout"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_an_unchanged_picture_is_stored_as_it_came(kind: str, layout: str) -> None:
    content = saved(natural(48, 64), kind, **({"lossless": True} if kind == "WEBP" else {})) + b"trailing"
    steps = ({"step": "size", "min_side": 48}, {"step": "resize", "size": 48, "crop": False}, {"step": "decode"})
    for some in ((), steps):
        assert kept(item(content), *some, layout=Layout(picture=layout)).picture == content
    changed = kept(item(content), {"step": "resize", "size": 48}, layout=Layout(picture=layout))
    assert changed.picture != content and decode_image(changed.picture).shape == (48, 48, 3)


def test_what_others_might_show_differently_is_encoded_anew() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = kept(item(saved(natural(48, 64), exif=exif)), layout=JPG)
    assert decode_image(turned.picture).shape == (64, 48, 3) and b"Exif" not in turned.picture
    rgba = np.dstack([natural(8, 8), np.full((8, 8), 200, np.uint8)])
    frames = [Image.fromarray(natural(8, 8, seed)) for seed in (1, 2)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    strangers = [
        saved(natural(8, 8), "PNG", transparency=(1, 2, 3)),
        saved(rgba, "PNG"),
        saved(natural(8, 8)[..., 0], "PNG"),
        file.getvalue(),
        saved(natural(8, 8), "JPEG"),
    ]
    for content in strangers:
        stored = kept(item(content)).picture
        assert stored != content
        again = Image.open(io.BytesIO(stored))
        assert (again.format, again.mode, getattr(again, "n_frames", 1)) == ("PNG", "RGB", 1)
        np.testing.assert_array_equal(decode_image(stored), decode_image(content))


def test_a_grey_or_cmyk_jpeg_becomes_rgb() -> None:
    for content in (saved(natural(8, 8)[..., 0]), saved(np.zeros((8, 8, 4), np.uint8)[..., :3])):
        assert Image.open(io.BytesIO(kept(item(content), layout=JPG).picture)).mode == "RGB"
    file = io.BytesIO()
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(file, "JPEG")
    assert Image.open(io.BytesIO(kept(item(file.getvalue()), layout=JPG).picture)).mode == "RGB"


def test_everything_else_of_an_item_is_handed_on() -> None:
    things = (ItemObject("cat", phrase="the left cat", attributes={"id": 3}), ItemObject("dog"))
    one = item(objects=things, subject="felix", attributes={"licence": "CC0"}, tasks=("text_to_image",))
    stored = kept(one)
    assert [(thing.name, thing.mask, thing.phrase, dict(thing.attributes)) for thing in stored.objects] == [
        ("cat", None, "the left cat", {"id": 3}),
        ("dog", None, "", {}),
    ]
    assert (stored.captions, stored.subject, stored.attributes) == (("a cat",), "felix", {"licence": "CC0"})
    assert (stored.tasks, stored.notes, stored.views) == (("text_to_image",), (), ())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"min_side": 48, "max_side": 64, "min_pixels": 3072, "max_pixels": 3072}, None),
        ({"min_side": 49}, "too small"),
        ({"min_pixels": 3073}, "too small"),
        ({"max_side": 63}, "too large"),
        ({"max_pixels": 3071}, "too large"),
    ],
)
def test_size_drops_what_is_beyond_its_bounds(config: dict, reason: str | None) -> None:
    outcome = run(item(), {"step": "size", **config})
    assert outcome == Dropped("pictures/one.png", reason, "64 x 48") if reason else isinstance(outcome, Prepared)


def test_size_counts_what_one_sees_at_its_place() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    one = item(saved(natural(48, 64), exif=exif))
    assert run(one, {"step": "size", "min_side": 50}).detail == "48 x 64"
    assert run(one, {"step": "resize", "size": 32}, {"step": "size", "min_side": 40}).detail == "32 x 32"


def test_ratio_drops_what_is_too_elongated() -> None:
    for shape in ((30, 90), (90, 30)):
        kept(item(natural(*shape)), {"step": "ratio", "max": 3})
        assert dropped(item(natural(*shape)), {"step": "ratio", "max": 2.99}) == "too elongated"


def test_captions_are_dropped_one_by_one() -> None:
    captions = ("cat", "a cat on a mat", "a cat " + "very " * 9 + "fat", "buy a cat now", "un chat noir ici", "a cat X")
    config = {"step": "caption", "min_words": 3, "max_words": 5, "forbid": ["(?i)BUY", "X$"], "require": ["cat"]}
    stored = kept(item(captions=captions), config)
    assert stored.captions == ("a cat on a mat",)
    assert stored.notes == ("caption too short", "caption too long") + ("caption forbidden",) * 3
    letters = {"step": "caption", "min_chars": 4, "max_chars": 13}
    assert kept(item(captions=captions), letters).captions == ("buy a cat now", "a cat X")


def test_an_item_goes_when_nothing_is_left_to_say() -> None:
    strict = {"step": "caption", "min_words": 9}
    outcome = run(item(), strict)
    assert outcome == Dropped("pictures/one.png", "no caption", "caption too short")
    assert kept(item(objects=(ItemObject("cat"),)), strict).captions == ()
    assert dropped(item(captions=("IMG_1.jpg",)), {"step": "clean_captions"}) == "no caption"
    assert dropped(item(captions=())) == "no caption"
    assert kept(item(captions=(), tasks=("reconstruct",))).captions == ()


def test_clean_captions_leaves_out_what_says_nothing() -> None:
    stored = kept(item(captions=("IMG_1.jpg", "<br>", "A Cat")), {"step": "clean_captions", "lowercase": True})
    assert (stored.captions, stored.notes) == (("a cat",), ("caption names a file", "caption empty"))
    assert kept(item(captions=("IMG_1.jpg",)), {"step": "clean_captions", "file_names": True}).captions == (
        "IMG_1.jpg",
    )


def test_captions_that_no_file_could_hold_are_left_out() -> None:
    stored = kept(item(captions=("half \ud800", "whole")))
    assert (stored.captions, stored.notes) == (("whole",), ("caption not Unicode",))


@pytest.mark.parametrize(
    ("found", "config", "shape"),
    [
        ((48, 64), {"size": 32}, (32, 32)),
        ((48, 64), {"size": 48}, (48, 48)),
        ((48, 64), {"size": 100}, (48, 48)),
        ((48, 64), {"size": 100, "upscale": True}, (100, 100)),
        ((48, 64), {"size": 24, "crop": False}, (24, 32)),
        ((64, 48), {"size": 24, "crop": False}, (32, 24)),
        ((50, 75), {"size": 33, "crop": False}, (33, 50)),
        ((48, 64), {"size": 100, "crop": False}, (48, 64)),
        ((48, 64), {"size": 96, "crop": False, "upscale": True}, (96, 128)),
        ((1, 700), {"size": 8, "crop": False}, (1, 700)),
    ],
)
def test_resize_gives_the_stated_shape(found: tuple, config: dict, shape: tuple) -> None:
    pixels, mask = natural(*found), np.zeros(found, bool)
    mask[:, : found[1] // 2] = True
    one = item(
        pixels, objects=(ItemObject("cat", MaskOf(mask)),), views=(ItemView(Bytes(saved(pixels, "PNG")), MaskOf(mask)),)
    )
    stored = kept(one, {"step": "resize", **config})
    decoded = decode_image(stored.picture)
    assert decoded.shape == (*shape, 3) and stored.objects[0].mask.shape == shape
    np.testing.assert_array_equal(stored.views[0].image, decoded)
    np.testing.assert_array_equal(stored.views[0].mask, stored.objects[0].mask)
    assert decode_image(kept(item(pixels), {"step": "resize", **config}).picture).shape == (*shape, 3)
    if shape == (32, 32):
        np.testing.assert_array_equal(decoded, fit_pixels(pixels, 32))
        np.testing.assert_array_equal(stored.objects[0].mask, fit_mask(mask, 32))


def test_a_resize_beyond_all_bounds_is_refused() -> None:
    one = item(natural(1, 3000))
    assert dropped(
        one, {"step": "resize", "size": 64, "crop": False, "upscale": True}, limits=Limits(pixels=100_000)
    ) == ("too elongated")


def test_large_jpegs_are_shrunk_while_they_are_decoded_unless_masks_need_them() -> None:
    fine = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    content = saved(np.asarray(Image.fromarray(fine).resize((640, 512), Image.Resampling.BICUBIC)), quality=95)
    exact = fit_pixels(decode_image(content), 32)
    quick = decode_image(kept(item(content), {"step": "resize", "size": 32}).picture)
    assert 0 < np.abs(quick.astype(int) - exact).max() <= 2
    mask = MaskOf(np.ones((512, 640), bool))
    full = kept(item(content, objects=(ItemObject("cat", mask),)), {"step": "resize", "size": 32})
    np.testing.assert_array_equal(decode_image(full.picture), exact)


def test_damaged_files_are_dropped_by_reason(tmp_path: Any) -> None:
    whole = saved(natural(64, 64))
    assert run(Item("pictures/one.png", Missing())).detail == "no such file: gone.jpg"
    assert prepare(Item("x", FileBlob(tmp_path / "none.jpg")), (), JPG).reason == "unreadable file"
    assert dropped(item(b"<html>"), layout=JPG) == "not a picture"
    assert dropped(item(whole[:-9]), layout=JPG) == "truncated picture"
    assert dropped(item(whole), layout=JPG, limits=Limits(pixels=4095)) == "picture too large"
    tall = item(saved(np.zeros((16_500, 2, 3), np.uint8), "PNG"))
    assert dropped(tall, layout=Layout(picture="webp")) == "picture too large"


def test_decode_finds_what_copying_would_not() -> None:
    whole = saved(natural(64, 64), progressive=True)
    at = whole.index(b"\xff\xda")
    broken = whole[: at + 3] + b"\xff" + whole[at + 4 :]
    assert kept(item(broken), layout=JPG).picture == broken
    assert dropped(item(broken), {"step": "decode"}, layout=JPG) == "damaged picture"


def test_the_same_item_gives_the_same_bytes() -> None:
    one = item(natural(100, 90))
    steps = ({"step": "resize", "size": 64},)
    for layout in (JPG, PNG, Layout(picture="webp")):
        assert kept(one, *steps, layout=layout).picture == kept(one, *steps, layout=layout).picture


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"step": "rezise"}, "'resize'"),
        ({"step": "resize"}, "size: must be given"),
        ({"step": "resize", "size": 0}, "greater than or equal to 1"),
        ({"step": "resize", "size": 9, "corp": True}, "corp: unknown key"),
        ({"step": "caption", "forbid": ["("]}, "is no regular expression"),
        ({"step": "alpha", "background": "grey"}, "background"),
        ({"step": "alpha", "background": [0, 0, 256]}, "less than or equal to 255"),
        ({"step": "masks", "min_area": 0.5, "max_area": 0.1}, "is above max_area"),
        ({"step": "duplicates", "exact": False}, "looks for nothing"),
        ({"step": "duplicates", "perceptual": 17}, "less than or equal to 16"),
    ],
)
def test_mistakes_in_a_recipe_are_named(step: dict, message: str) -> None:
    with pytest.raises(UserError, match=r"steps\.0") as caught:
        validate(Recipe, {"steps": [step]})
    assert message in str(caught.value)


def test_a_recipe_looks_for_duplicates_once() -> None:
    step = Duplicates(perceptual=4)
    assert duplicates_step(()) is None and duplicates_step((step,)) is step
    with pytest.raises(UserError, match="several look for duplicates"):
        duplicates_step((step, step))
    kept(item(), {"step": "duplicates"})
