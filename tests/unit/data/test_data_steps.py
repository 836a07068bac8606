"""A recipe's steps: what they keep, what they drop and why, and that masks and views follow their pictures."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mentor.config import Config, validate
from mentor.data.making.drafts import Prepared
from mentor.data.making.duplicates import Duplicates
from mentor.data.making.steps import StepConfig, duplicates_step, prepare
from mentor.data.records import Dropped
from mentor.data.sources.items import FileBlob, Item, ItemObject, ItemView
from mentor.data.storage.decoding import Limits, decode_image
from mentor.data.storage.encoding import Layout
from mentor.data.transforms import fit_mask, fit_pixels
from mentor.errors import UserError

JPG, PNG = Layout(picture="jpg"), Layout(picture="png")


@dataclass(frozen=True)
class Bytes:
    content: bytes

    def read(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class Missing:
    def read(self) -> bytes:
        raise OSError("no such file: gone.jpg")


@dataclass(frozen=True)
class MaskOf:
    """A mask given as rows of 0 and 1, or one read from transparency."""

    rows: Any = None
    error: Exception | None = None

    def read(self, picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
        if self.error:
            raise self.error
        if self.rows is not None:
            return np.asarray(self.rows)
        assert alpha is not None
        return alpha >= 128


class Recipe(Config):
    steps: tuple[StepConfig, ...] = ()


def natural(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def saved(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def item(content: bytes | np.ndarray | None = None, **more: Any) -> Item:
    content = natural(48, 64) if content is None else content
    content = saved(content, "PNG") if isinstance(content, np.ndarray) else content
    return Item("pictures/one.png", Bytes(content), **({"captions": ("a cat",)} | more))


def run(one: Item, *steps: Mapping[str, Any], layout: Layout = PNG, limits: Limits | None = None) -> Prepared | Dropped:
    return prepare(one, validate(Recipe, {"steps": list(steps)}).steps, layout, limits or Limits())


def kept(one: Item, *steps: Mapping[str, Any], **more: Any) -> Prepared:
    outcome = run(one, *steps, **more)
    assert isinstance(outcome, Prepared), outcome
    return outcome


def dropped(one: Item, *steps: Mapping[str, Any], **more: Any) -> str:
    outcome = run(one, *steps, **more)
    assert isinstance(outcome, Dropped) and outcome.origin == "pictures/one.png", outcome
    return outcome.reason


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


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


@pytest.mark.parametrize("crop", [True, False])
def test_masks_stay_on_their_objects_when_resized(crop: bool) -> None:
    mask = disc(96, 128, 70, 40, 21)
    pixels = np.where(mask[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    stored = kept(
        item(pixels, objects=(ItemObject("disc", MaskOf(mask)),)), {"step": "resize", "size": 36, "crop": crop}
    )
    seen = decode_image(stored.picture)[..., 0] >= 128
    assert (seen != stored.objects[0].mask).sum() <= 2
    assert abs(stored.objects[0].mask.mean() / (np.pi * 21**2 / (96 * (96 if crop else 128))) - 1) < 0.03


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


def test_alpha_sets_the_colour_for_the_whole_recipe() -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :3] = (0, 200, 0, 255)
    one = item(
        saved(rgba, "PNG"), objects=(ItemObject("leaf", MaskOf()),), views=(ItemView(Bytes(saved(rgba, "PNG"))),)
    )
    for background, colour in (("white", 255), ("black", 0), ([7, 7, 7], 7)):
        stored = kept(one, {"step": "resize", "size": 4, "crop": False}, {"step": "alpha", "background": background})
        decoded = decode_image(stored.picture)
        assert (decoded[:, :3] == (0, 200, 0)).all() and (decoded[:, 3:] == colour).all()
        np.testing.assert_array_equal(stored.views[0].image, decoded)
        np.testing.assert_array_equal(stored.objects[0].mask, rgba[..., 3] == 255)
    assert (decode_image(kept(one).picture)[:, 3:] == 255).all()


def test_alpha_drops_what_is_hardly_there() -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :3, 3] = 255
    one = item(saved(rgba, "PNG"))
    kept(one, {"step": "alpha", "min_opaque": 0.5})
    assert dropped(one, {"step": "alpha", "min_opaque": 0.51}) == "too transparent"
    kept(item(), {"step": "alpha", "min_opaque": 1.0})


def test_masks_of_no_use_are_left_out() -> None:
    scattered = np.zeros((48, 64), bool)
    scattered[::4, ::4] = True
    masks = {
        "good": disc(48, 64, 20, 20, 10),
        "speck": disc(48, 64, 20, 20, 1.2),
        "nothing": np.zeros((48, 64), bool),
        "everything": np.ones((48, 64), bool),
        "dust": scattered,
        "twin": disc(48, 64, 20, 20, 10) & (np.arange(64) > 10),
        "other": disc(48, 64, 44, 20, 10),
    }
    one = item(objects=(*(ItemObject(name, MaskOf(mask)) for name, mask in masks.items()), ItemObject("unseen")))
    config = {"step": "masks", "min_area": 0.003, "max_area": 0.95, "max_components": 100, "twins": 0.95}
    stored = kept(one, config)
    assert [thing.name for thing in stored.objects if thing.mask is not None] == ["good", "other"]
    assert len(stored.objects) == 8
    assert stored.notes == ("mask too small", "mask too small", "mask too large", "mask scattered", "mask twin")
    stored = kept(one, {**config, "failing": "object"})
    assert [thing.name for thing in stored.objects] == ["good", "other", "unseen"]
    assert kept(one, {"step": "masks"}).notes == ("mask too small",)
    lone = item(captions=(), objects=(ItemObject("speck", MaskOf(masks["speck"])),))
    assert dropped(lone, {**config, "failing": "object"}) == "no caption"


def test_small_masks_in_different_places_are_no_twins() -> None:
    masks = [disc(64, 64, 10, 10, 4), disc(64, 64, 50, 50, 4)]
    one = item(natural(64, 64), objects=tuple(ItemObject("cat", MaskOf(mask)) for mask in masks))
    assert kept(one, {"step": "masks", "twins": 0.5}).notes == ()


def test_a_layout_without_masks_and_views_never_reads_them() -> None:
    broken = MaskOf(error=OSError("gone"))
    one = item(objects=(ItemObject("cat", broken),), views=(ItemView(Missing()),))
    stored = kept(one, {"step": "decode"}, layout=Layout(masks=False, views=False))
    assert (stored.objects[0].mask, stored.views, stored.notes) == (None, (), ())
    judged = item(objects=(ItemObject("cat", MaskOf(np.ones((48, 64), bool))),))
    stored = kept(judged, {"step": "masks", "max_area": 0.5, "failing": "object"}, layout=Layout(masks=False))
    assert (stored.objects, stored.notes) == ((), ("mask too large",))
    assert kept(judged, {"step": "masks"}, layout=Layout(masks=False)).objects[0].mask is None


@pytest.mark.parametrize(
    "mask",
    [
        MaskOf(error=OSError("gone")),
        MaskOf(error=ValueError("no polygon")),
        MaskOf(np.ones((9, 9), bool)),
        MaskOf(np.ones((48, 64), np.uint8)),
    ],
)
def test_a_damaged_mask_drops_the_item(mask: MaskOf) -> None:
    assert dropped(item(objects=(ItemObject("cat", mask),))) == "damaged mask"


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


def test_views_that_cannot_be_read_are_left_out_and_counted() -> None:
    good, truncated = saved(natural(8, 8), "PNG"), saved(natural(64, 64))[:-9]
    views = [ItemView(Missing()), ItemView(Bytes(good), attributes={"n": 1}), ItemView(Bytes(truncated))]
    views.append(ItemView(Bytes(good), MaskOf(np.ones((3, 3), bool))))
    stored = kept(item(views=tuple(views)))
    assert [dict(view.attributes) for view in stored.views] == [{"n": 1}]
    assert stored.notes == ("view: unreadable file", "view: truncated picture", "view: damaged mask")


def test_views_have_one_size() -> None:
    sizes = ((20, 30), (12, 12), (40, 16))
    places = [np.arange(width) < width // 2 for _, width in sizes]
    masks = [np.broadcast_to(row, size) for row, size in zip(places, sizes, strict=True)]
    views = tuple(
        ItemView(Bytes(saved(natural(*size), "PNG")), MaskOf(mask)) for size, mask in zip(sizes, masks, strict=True)
    )
    stored = kept(item(views=views))
    assert [view.image.shape for view in stored.views] == [(12, 12, 3)] * 3
    for view, size, mask in zip(stored.views, sizes, masks, strict=True):
        np.testing.assert_array_equal(view.image, fit_pixels(natural(*size), 12))
        np.testing.assert_array_equal(view.mask, fit_mask(mask, 12))
    alike = tuple(ItemView(Bytes(saved(natural(20, 30, seed), "PNG"))) for seed in range(2))
    assert [view.image.shape for view in kept(item(views=alike)).views] == [(20, 30, 3)] * 2
    resized = kept(item(natural(16, 16), views=alike), {"step": "resize", "size": 16})
    assert [view.image.shape for view in resized.views] == [(16, 16, 3)] * 2
    resized = kept(item(views=views), {"step": "resize", "size": 16})
    assert {view.image.shape for view in resized.views} == {(12, 12, 3)}
    resized = kept(item(views=views), {"step": "resize", "size": 16, "upscale": True})
    assert {view.image.shape for view in resized.views} == {(16, 16, 3)}


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
