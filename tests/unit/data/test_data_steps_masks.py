"""A recipe's steps on masks, views and transparency: they follow their pictures, or are left out by reason."""

import numpy as np
import pytest
from pictures import natural, saved
from stepping import Bytes, MaskOf, Missing, disc, dropped, item, kept

from mentor.data.sources.items import ItemObject, ItemView
from mentor.data.storage.decoding import decode_image
from mentor.data.storage.encoding import Layout
from mentor.data.transforms import fit_mask, fit_pixels


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
