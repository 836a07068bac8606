"""Packs of image codes: read as they were written, and nothing foreign believed."""

import io
import json

import numpy as np
import pytest
from codepacks import FEATURES, LAYOUT, features_of, make_pack

from mentor.data.packs import CodeLayout, decode_pack, encode_pack
from mentor.data.storage.decoding import BadSample


@pytest.mark.parametrize("layout", [LAYOUT, FEATURES], ids=["ids", "features"])
def test_a_pack_is_read_as_it_was_written(layout: CodeLayout) -> None:
    one = make_pack("reconstruct", range(7), images=2)
    members = encode_pack(one, features_of(one), layout)
    assert tuple(members) == layout.members
    read = decode_pack(members, layout, 7)
    assert (read.task, read.keys, read.images, read.captions) == (one.task, one.keys, one.images, one.captions)
    assert [[getattr(part, "text", getattr(part, "name", "")) for part in prompt] for prompt in read.prompts] == [
        [f"number {number} ", "name 0", "name 1"] for number in range(7)
    ]
    assert np.array_equal(read.targets, one.targets)
    assert np.array_equal(read.references, one.references)
    np.testing.assert_allclose(read.focus, one.focus, atol=1e-3)
    sizes = layout.sizes(np.array([len(members["targets.npy"])]))
    assert sizes is not None and sizes.tolist() == [7]


def test_numpy_itself_reads_the_arrays() -> None:
    members = encode_pack(make_pack("reconstruct", range(3)), None, LAYOUT)
    assert np.load(io.BytesIO(members["targets.npy"])).tolist() == make_pack("reconstruct", range(3)).targets.tolist()


def test_large_vocabularies_get_wider_ids_and_large_pictures_smaller_packs() -> None:
    assert LAYOUT.ids.itemsize == 2
    assert LAYOUT.model_copy(update={"vocabulary": 1 << 16}).ids.itemsize == 2
    assert LAYOUT.model_copy(update={"vocabulary": (1 << 16) + 1}).ids.itemsize == 4
    assert LAYOUT.examples == 512
    assert LAYOUT.model_copy(update={"grid": (64, 64)}).examples < 512
    assert LAYOUT.model_copy(update={"grid": (32, 32), "feature_width": 256}).examples == 64


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def claimed(descr: str, shape: tuple[int, ...], content: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def described(**changes) -> bytes:
    good = json.loads(encode_pack(make_pack("reconstruct", range(4)), None, LAYOUT)["json"])
    return json.dumps(good | changes).encode()


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("targets.npy", claimed("|O", (4, 2, 3), b"cos\nsystem\n(S'true'\ntR."), "not numbers"),
        ("targets.npy", claimed("<u2", (1 << 40, 2, 3), bytes(48)), "does not fit"),
        ("targets.npy", npy(np.full((4, 2, 3), 1000, np.uint16)), "id 1000, codes end at 999"),
        ("targets.npy", npy(np.zeros((5, 2, 3), np.uint16)), r"\(5, 2, 3\)"),
        ("targets.npy", npy(np.zeros((4, 2, 3), np.int64)), "int64"),
        ("targets.npy", npy(np.zeros((4, 2, 3), ">u2")), "of >u2"),
        ("references.npy", npy(np.full((4, 2, 3), 65535, np.uint16)), "references hold the id 65535"),
        ("references.npy", npy(np.zeros((3, 2, 3), np.uint16)), r"references are \(3, 2, 3\)"),
        ("focus.npy", npy(np.full((4, 2, 3), np.nan, np.float16)), "focus"),
        ("focus.npy", npy(np.full((4, 2, 3), -0.5, np.float16)), "focus"),
        ("focus.npy", npy(np.full((4, 2, 3), 1.01, np.float16)), "focus"),
        ("json", b"[" * 100_000, "damaged json"),
        ("json", b"[]", "not that of a pack"),
        ("json", described(keys=["a", "b", "c"]), "3 keys"),
        ("json", described(keys=[1, 2, 3, 4]), "not text"),
        ("json", described(prompts=[["x"], ["x"], ["x"], [{"image": -1}]]), "negative row"),
        ("json", described(prompts=[["x"], ["x"], ["x"], [{"image": 10**9}]]), "1000000001"),
        ("json", described(prompts=[["x"], ["x"], ["x"], [{"image": True}]]), "not that of a pack"),
        ("json", described(prompts=[["x"], ["x"], ["x"], [{"name": "x"}]]), "not that of a pack"),
        ("json", described(prompts=[["x"], ["x"], ["x"], [["x"]]]), "not that of a pack"),
        ("json", described(prompts=[["x"], ["x"], ["x"], None]), "not that of a pack"),
    ],
)
def test_hostile_members_are_refused_before_anything_comes_of_them(member: str, content: bytes, message: str) -> None:
    members = encode_pack(make_pack("reconstruct", range(4)), None, LAYOUT) | {member: content}
    with pytest.raises(BadSample, match=message):
        decode_pack(members, LAYOUT, 4)


def test_features_that_do_not_fit_are_refused_when_written_and_when_read() -> None:
    one = make_pack("reconstruct", range(4))
    with pytest.raises(ValueError, match="too large for 16 bits"):
        encode_pack(one, features_of(one) + 1e6, FEATURES)
    members = encode_pack(one, features_of(one), FEATURES)
    with pytest.raises(BadSample, match="features are"):
        decode_pack(members | {"features.npy": npy(np.zeros((4, 4, 2, 3), np.float16))}, FEATURES, 4)
