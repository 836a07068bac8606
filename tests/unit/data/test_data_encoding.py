"""Records as members of a tar: what is encoded is decoded, in every layout; what is damaged is named."""

import io
from dataclasses import replace

import numpy as np
import pytest
from noise import MEMBERS, RECORDS, assert_same, assert_same_mask
from PIL import Image

from mentor.data.records import RecordObject, View
from mentor.data.storage.decoding import BadSample
from mentor.data.storage.encoding import Layout, decode_record, encode_members, encode_record


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_a_record_survives_encoding(number: int) -> None:
    members = encode_record(RECORDS[number], Layout())
    assert tuple(members) == MEMBERS
    assert_same(RECORDS[number], decode_record(RECORDS[number].key, members))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "a.b"}, "without dots"),
        ({"image": np.zeros((4, 4), np.uint8)}, "y x 3"),
        ({"objects": (RecordObject("x", np.zeros((3, 3), bool)),)}, "every mask"),
        ({"views": (View(np.zeros((3, 3, 3), np.uint8), np.zeros((4, 4), bool)),)}, "one size"),
    ],
)
def test_records_that_break_the_schema_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_record(replace(RECORDS[1], **change), Layout())


@pytest.mark.parametrize("picture", ["jpg", "webp"])
def test_a_layout_of_another_format_keeps_pictures_closely_and_masks_exactly(picture: str) -> None:
    smooth = np.broadcast_to(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (16, 20, 3))
    record = replace(RECORDS[5], image=smooth, views=(View(smooth, None), View(smooth, RECORDS[5].objects[0].mask)))
    layout = Layout(picture=picture, quality=95)
    members = encode_record(record, layout)
    assert tuple(members) == layout.members == tuple(sorted(layout.members))
    assert set(layout.members) == {"json", "txt", picture, "masks.png", "viewmasks.png", "views.jpg"}
    back = decode_record(record.key, members)
    assert np.abs(back.image.astype(int) - smooth).max() < 8
    assert_same_mask(back.objects[0].mask, record.objects[0].mask)
    assert back.views[0].mask is None and np.abs(back.views[1].image.astype(int) - smooth).max() < 8
    assert_same_mask(back.views[1].mask, record.objects[0].mask)


def test_a_layout_without_masks_and_views_has_three_members_and_refuses_either() -> None:
    layout = Layout(masks=False, views=False)
    assert tuple(encode_record(RECORDS[0], layout)) == layout.members == ("json", "png", "txt")
    assert_same(RECORDS[0], decode_record(RECORDS[0].key, encode_record(RECORDS[0], layout)))
    for record in (RECORDS[1], replace(RECORDS[0], views=RECORDS[1].views)):
        with pytest.raises(ValueError, match="no members"):
            encode_record(record, layout)


def test_a_picture_that_is_encoded_already_is_kept_to_the_byte() -> None:
    file = io.BytesIO()
    Image.fromarray(RECORDS[1].image).save(file, "JPEG", quality=80)
    members = encode_members(RECORDS[1], file.getvalue(), Layout(picture="jpg"))
    assert members["jpg"] == file.getvalue()


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("json", b"{"),
        ("json", b"[" * 50_000),
        ("json", b'{"captions": []}'),
        ("png", b"GIF89a"),
        ("masks.png", b""),
        ("views.png", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_a_damaged_member_is_a_bad_sample_that_names_it(member: str, content: bytes) -> None:
    members = {**encode_record(RECORDS[5], Layout()), member: content}
    with pytest.raises(BadSample, match=member.partition(".")[0]):
        decode_record("x", members)


def test_masks_of_another_size_are_refused() -> None:
    members = encode_record(RECORDS[1], Layout())
    file = io.BytesIO()
    Image.new("L", (3, 3)).save(file, "PNG")
    with pytest.raises(ValueError, match=r"masks\.png does not fit"):
        decode_record("x", {**members, "masks.png": file.getvalue()})
