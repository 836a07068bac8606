"""Tars read strictly: parity with Python's tarfile on whole ones, every damage named, no made-up size believed."""

import contextlib
import gzip
import io
import os
import random
import tarfile
import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mentor.data.storage.tars import BLOCK, Member, TarDamage, members

pytestmark = [pytest.mark.fault(12), pytest.mark.fault(16)]

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
PLAIN = {
    f"{number:04d}.{ending}": bytes([number + 1]) * size
    for number in range(6)
    for ending, size in (("jpg", 1500), ("txt", 20))
}


class OneWay(io.RawIOBase):
    """A stream that cannot seek and gives few bytes at a time, as a network does."""

    def __init__(self, content: bytes, step: int = 700) -> None:
        super().__init__()
        self._file, self._step = io.BytesIO(content), step

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, self._step) if size >= 0 else self._step)


def archive(contents: dict[str, bytes] | None = None, form: int = tarfile.USTAR_FORMAT, **entry: Any) -> bytes:
    """A tar of these files, and of one more entry when its fields are given."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in (PLAIN if contents is None else contents).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if entry:
            content = entry.pop("content", b"")
            info = tarfile.TarInfo(entry.pop("name", "odd.jpg"))
            info.size = len(content)
            for key, value in entry.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def read(content: bytes, stream: bool = False) -> list[tuple[str, bytes]]:
    file: Any = OneWay(content) if stream else io.BytesIO(content)
    return [(member.name, data) for member, data in members(file, lambda member: True)]


def damage(content: bytes, stream: bool = False) -> str:
    with pytest.raises(TarDamage) as caught:
        read(content, stream)
    return str(caught.value)


def seal(block: bytes) -> bytes:
    """The header block with its checksum made right."""
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def patched(content: bytes, at: int, offset: int, new: bytes) -> bytes:
    """The archive with a field of the header at `at` changed and its checksum right."""
    block = content[at : at + BLOCK]
    block = block[:offset] + new + block[offset + len(new) :]
    return content[:at] + seal(block) + content[at + BLOCK :]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "b/c.txt", "empty.txt"],
        ["x" * 99 + ".jpg", "d" * 80 + "/" + "e" * 60 + ".jpg", "after.txt"],
        ["ümläut-猫.jpg", "with space.txt", "trailing.dots..jpg"],
    ],
)
def test_whole_archives_read_as_tarfile_reads_them(names, form, stream):
    if form == "ustar":
        names = [name if len(name) <= 100 else "p" * 80 + "/" + "e" * 60 for name in names]
    elif "after.txt" in names:
        names = [*names, "long/" * 200 + "name.jpg"]
    contents = {name: bytes([index]) * (index * 600) for index, name in enumerate(names)}
    packed = archive(contents, FORMATS[form])
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        places = [(info.name, info.offset_data, info.size) for info in tar]
    file: Any = OneWay(packed) if stream else io.BytesIO(packed)
    found = list(members(file, lambda member: True))
    assert [(member.name, member.offset, member.size) for member, _ in found] == places
    assert {member.name: content for member, content in found} == contents


@pytest.mark.parametrize("stream", [False, True])
def test_only_what_is_wanted_is_read(stream):
    file: Any = OneWay(archive()) if stream else io.BytesIO(archive())
    found = {member.name: content for member, content in members(file, lambda member: member.name.endswith("txt"))}
    assert found == {name: content if name.endswith("txt") else b"" for name, content in PLAIN.items()}


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_long_name_belongs_to_one_member_alone(form):
    contents = {"n" * 300 + ".jpg": b"first", "short.jpg": b"second"}
    assert read(archive(contents, FORMATS[form])) == list(contents.items())


def test_a_pax_size_counts_more_than_the_header():
    packed = archive({"a.jpg": b"x" * 700}, tarfile.PAX_FORMAT)
    info = tarfile.TarInfo("a.jpg")
    info.size, info.pax_headers = 8, {"size": "700"}
    made = info.tobuf(tarfile.PAX_FORMAT) + packed[BLOCK:]
    assert read(made) == [("a.jpg", b"x" * 700)]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (b"Z", "of an unknown kind"),
    ],
)
def test_what_is_no_plain_file_is_named_and_never_asked_for(kind, name):
    packed = archive({"a.jpg": b"1"}, type=kind, linkname="/etc/passwd")
    asked = []
    found = list(members(io.BytesIO(packed), lambda member: not asked.append(member.name)))
    assert [(member.odd, content) for member, content in found] == [("", b"1"), (name, b"")]
    assert asked == ["a.jpg"]


def test_a_link_has_no_content_whatever_size_it_claims():
    packed = archive({}, type=tarfile.SYMTYPE, linkname="x")[:BLOCK] + archive({"a.jpg": b"1"})
    claimed = patched(packed, 0, 124, b"%011o\0" % 5000)
    assert read(claimed) == read(packed) == [("odd.jpg", b""), ("a.jpg", b"1")]


def test_a_made_up_size_in_a_large_file_takes_no_memory(tmp_path):
    packed = patched(archive({"a.jpg": b"1"}), 0, 124, b"\x80" + (1 << 40).to_bytes(11, "big"))
    (tmp_path / "a.tar").write_bytes(packed)
    os.truncate(tmp_path / "a.tar", 1 << 25)
    tracemalloc.start()
    try:
        with (tmp_path / "a.tar").open("rb") as file, pytest.raises(TarDamage, match=r"cut within 'a\.jpg'"):
            list(members(file, lambda member: True))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_folders_are_passed_over():
    packed = archive({"a.jpg": b"1"}, type=tarfile.DIRTYPE, name="folder")
    assert read(packed) == [("a.jpg", b"1")]
    assert read(archive({"a.jpg": b"1"}, type=tarfile.AREGTYPE, name="v7/")) == [("a.jpg", b"1")]


def sparse_gnu(blocks: int) -> bytes:
    """A 2 KB archive whose member claims 1 GiB, with so many blocks of map behind its header."""
    block = bytearray(tarfile.TarInfo("bomb.txt").tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[124:136] = b"%011o\0" % BLOCK
    block[386:410] = b"%011o\0%011o\0" % (0, BLOCK)
    block[482] = int(blocks > 0)
    block[483:495] = b"%011o\0" % (1 << 30)
    maps = b"".join(bytes(504) + bytes([number < blocks - 1]) + bytes(7) for number in range(blocks))
    return seal(bytes(block)) + maps + b"x" * BLOCK


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_an_old_sparse_member_is_named_and_what_follows_it_is_found(blocks):
    found = list(members(io.BytesIO(sparse_gnu(blocks) + archive({"a.jpg": b"1"})), lambda member: True))
    assert [(member.name, member.odd, content) for member, content in found] == [
        ("bomb.txt", "a sparse file", b""),
        ("a.jpg", "", b"1"),
    ]


def test_a_pax_sparse_member_is_named():
    info = tarfile.TarInfo("GNUSparseFile.0/bomb.txt")
    info.size = BLOCK
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 30)}
    packed = info.tobuf(tarfile.PAX_FORMAT) + bytes(BLOCK) + archive({"a.jpg": b"1"})
    found = list(members(io.BytesIO(packed), lambda member: True))
    assert [(member.odd, content) for member, content in found] == [("a sparse file", b""), ("", b"1")]


def test_an_archive_without_members_is_whole():
    assert read(archive({})) == []


@pytest.mark.parametrize("stream", [False, True])
class TestDamage:
    """The faults that the strictest of the usual readers do not notice."""

    def test_cut_at_a_member(self, stream):
        assert damage(archive()[: 4 * BLOCK], stream) == "the end marker is missing: the file ends at byte 2048"

    def test_cut_within_a_header(self, stream):
        assert damage(archive()[: 4 * BLOCK + 100], stream) == "cut within a header: the file ends at byte 2148"

    def test_cut_within_the_content(self, stream):
        assert damage(archive()[: BLOCK + 700], stream) == "cut within '0000.jpg': the file ends at byte 1212"

    def test_cut_within_the_padding(self, stream):
        assert damage(archive()[: BLOCK + 1501], stream) == "cut within '0000.jpg': the file ends at byte 2013"

    def test_cut_within_the_end_marker(self, stream):
        end = len(PLAIN) // 2 * 6 * BLOCK
        assert read(archive()[: end + 2 * BLOCK], stream)
        assert damage(archive()[: end + BLOCK], stream).startswith("the end marker is cut")

    def test_cut_within_a_long_name(self, stream):
        packed = archive({"n" * 800: b"1"}, tarfile.GNU_FORMAT)
        assert damage(packed[: BLOCK + 600], stream).startswith("cut within a header")

    def test_a_flipped_bit_in_a_header(self, stream):
        packed = bytearray(archive())
        for bit in (0, 3, 8 * 124 + 5, 8 * 300, 8 * 511 + 7):
            at = 4 * BLOCK * 8 + bit
            packed[at // 8] ^= 1 << at % 8
            assert damage(bytes(packed), stream) == "no readable header at byte 2048 (bad checksum)"
            packed[at // 8] ^= 1 << at % 8

    def test_a_hole_at_a_header(self, stream):
        packed = archive()
        at = 6 * BLOCK
        assert damage(packed[:at] + bytes(1024) + packed[at + 1024 :], stream).startswith(
            f"a hole of zeros at byte {at}"
        )

    def test_a_hole_that_begins_within_a_header(self, stream):
        packed = archive()
        at = 6 * BLOCK + 50
        assert damage(packed[:at] + bytes(1024) + packed[at + 1024 :], stream).startswith(
            "no readable header at byte 3072"
        )

    def test_nothing_at_all(self, stream):
        assert damage(b"", stream) == "the end marker is missing: the file ends at byte 0"

    def test_all_zeros(self, stream):
        assert damage(bytes(30_000), stream) == "nothing but zeros"

    def test_a_tail_of_zeros(self, stream):
        at = 6 * BLOCK
        assert (
            damage(archive()[:at] + bytes(1100 * 1024), stream) == f"a hole of zeros at byte {at}: too long for an end"
        )

    def test_random_bytes(self, stream):
        noise = random.Random(1).randbytes(20_000)
        assert damage(noise, stream).startswith("no readable header at byte 0")

    def test_a_compressed_archive(self, stream):
        packed = gzip.compress(archive({"a.jpg": random.Random(1).randbytes(2000)}))
        assert "it is compressed: unpack it" in damage(packed, stream)

    def test_rubbish_after_the_end(self, stream):
        assert damage(archive() + b"x" * 100, stream).startswith("a hole of zeros")

    @pytest.mark.parametrize("size", [b"\xff" + b"\xff" * 11, b"-0000000001\0", b"\x80" + b"\xff" * 11])
    def test_impossible_sizes(self, stream, size):
        assert "no readable header at byte 2048" in damage(patched(archive(), 4 * BLOCK, 124, size), stream)

    def test_a_size_beyond_the_end_takes_no_memory(self, stream):
        packed = patched(archive({"a.jpg": b"1"}), 0, 124, b"\x80" + (1 << 40).to_bytes(11, "big"))
        tracemalloc.start()
        try:
            assert damage(packed, stream) == f"cut within 'a.jpg': the file ends at byte {len(packed)}"
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()

    def test_a_huge_extended_header(self, stream):
        packed = patched(archive({"n" * 300: b"1"}, tarfile.PAX_FORMAT), 0, 124, b"%011o\0" % (1 << 24))
        assert damage(packed, stream) == "an extended header of 16777216 bytes at byte 0"

    @pytest.mark.parametrize(
        "text", [b"xx", b"9999 path=a\n", b"11 path=abX", b"-5 path=a\n", b"4 =\n", b"13 size=-10\n", b"9" * 600]
    )
    def test_an_extended_header_that_makes_no_sense(self, stream, text):
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, len(text)
        packed = info.tobuf(tarfile.USTAR_FORMAT) + text.ljust(-(-len(text) // BLOCK) * BLOCK, b"\0") + archive()
        assert damage(packed, stream) == "no readable extended header at byte 0"


def test_the_members_before_the_damage_are_given():
    found = []
    with pytest.raises(TarDamage):
        found.extend(member.name for member, _ in members(io.BytesIO(archive()[: 6 * BLOCK + 10])))
    assert found == ["0000.jpg", "0000.txt"]


MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 1 << 20), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.integers(0, 1 << 20), st.just(0)),
        st.tuples(st.just("zero"), st.integers(0, 1 << 20), st.integers(1, 2000)),
        st.tuples(st.just("field"), st.integers(0, 40), st.binary(min_size=1, max_size=12)),
        st.tuples(st.just("kind"), st.integers(0, 40), st.sampled_from(list(b"0123457LKSxgXDMVN\0"))),
        st.tuples(st.just("size"), st.integers(0, 40), st.integers(-(1 << 70), 1 << 70)),
        st.tuples(st.just("insert"), st.integers(0, 1 << 20), st.binary(max_size=600)),
    ),
    min_size=1,
    max_size=4,
)


def mutate(content: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    """The archive, damaged; fields of headers get a right checksum, so that the parser behind it is reached."""
    for change, where, what in changes:
        at = where % max(1, len(content))
        header = where % max(1, len(content) // BLOCK) * BLOCK
        if change == "flip" and content:
            content = content[:at] + bytes([content[at] ^ 1 << what]) + content[at + 1 :]
        elif change == "cut":
            content = content[:at]
        elif change == "zero":
            content = (content[:at] + bytes(what) + content[at + what :])[: len(content)]
        elif change == "insert":
            content = content[:at] + what + content[at:]
        elif len(content) >= header + BLOCK:
            if change == "field":
                content = patched(content, header, 124, what)
            elif change == "kind":
                content = patched(content, header, 156, bytes([what]))
            elif change == "size":
                lead = b"\xff" if what < 0 else b"\x80"
                content = patched(content, header, 124, lead + (what % (1 << 88)).to_bytes(11, "big"))
    return content


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=MUTATIONS, form=st.sampled_from(list(FORMATS.values())), stream=st.booleans())
def test_a_mutated_archive_is_damaged_or_read_within_its_bounds(changes, form, stream):
    names = {
        f"{'n' * 120 if form != tarfile.USTAR_FORMAT else 'n'}{number}.jpg": bytes([number]) * 700
        for number in range(4)
    }
    content = mutate(archive(names, form), changes)
    file: Any = OneWay(content, 4096) if stream else io.BytesIO(content)
    last = 0
    try:
        for member, data in members(file, lambda member: True):
            assert isinstance(member, Member)
            assert last < member.offset <= len(content)
            last = member.offset
            if not member.odd:
                assert len(data) == member.size and member.offset + member.size <= len(content)
                assert data == content[member.offset : member.offset + member.size]
            else:
                assert data == b""
    except TarDamage:
        pass


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=3000))
def test_arbitrary_bytes_are_damaged_or_empty(content):
    with contextlib.suppress(TarDamage):
        assert read(content) == []
