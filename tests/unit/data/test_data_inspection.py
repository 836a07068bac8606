"""The page about a data set: what it says, that it says it safely, and the sheets beside it."""

import json
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mentor.data.inspecting.histograms import BARS, bins, chart
from mentor.data.inspecting.inspection import write_inspection
from mentor.data.inspecting.sheets import MOST_LETTERS, OUTLINES, outlined, record_card, shortened
from mentor.data.inspecting.survey import pick, take_survey
from mentor.data.records import Record, RecordObject, UnusableSample, View
from mentor.data.storage.encoding import Layout
from mentor.data.storage.manifest import MANIFEST, begin, finish, identity, shard_path
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.writing import sample_of, write_shard
from mentor.errors import UserError

TASKS = ("reconstruct", "segment", "text_to_image", "recover", "subject")
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """A page read back: its elements, its text, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def record(number: int, **changes) -> Record:
    """A picture of 32 x 48 px with one object, whose mask is an eighth of it, and a view."""
    image = np.full((32, 48, 3), 7 * number % 256, np.uint8)
    mask = np.zeros((32, 48), bool)
    mask[8:16, 12:36] = True
    plain = Record(
        key=f"r{number:03d}",
        image=image,
        captions=("a red ball on grass",),
        objects=(RecordObject("ball", mask),),
        views=(View(image[:24, :24].copy(), mask[:24, 12:36].copy()),),
        subject="ball",
    )
    return replace(plain, **changes)


def dataset(root, records, heldout=(), **recipe):
    layout = Layout()
    what = identity({"name": "mine", **recipe}, {}, "records", layout.model_dump(mode="json"))
    begin(root, what)
    shards = []
    for split, given in (("train", records), ("heldout", heldout)):
        for index, first in enumerate(range(0, len(given), 3)):
            samples = [sample_of(made, layout) for made in given[first : first + 3]]
            shards.append(write_shard(root, shard_path(split, index), split, samples, layout.members))
    finish(root, what, shards)
    return root


def page_of(root, output, num=3, seed=0) -> Page:
    return Page(write_inspection(root, output, num, seed).read_text(encoding="utf-8"))


def unusable(message, key):
    return UnusableSample(message, "train/000000.tar", key, "truncated")


class Listed:
    """Shards that are a list of records, some of which cannot be read."""

    split = "train"

    def __init__(self, records, unreadable=(), wordless=()):
        self.records, self.counts = records, (len(records),)
        self.unreadable, self.wordless = {*unreadable, *wordless}, wordless

    def record(self, shard, position):
        if position in self.unreadable:
            raise unusable(f"picture {position} is cut off", f"r{position}")
        return self.records[position]

    def description(self, shard, position):
        if position in self.wordless:
            raise unusable(f"words {position} are cut off", f"r{position}")
        made = self.records[position]
        return {
            "captions": list(made.captions),
            "objects": [{"name": thing.name, "phrase": thing.phrase} for thing in made.objects],
            "views": [{} for _ in made.views],
            "subject": made.subject,
            "attributes": made.attributes,
        }


def test_page_and_sheets_of_both_splits_and_every_task_are_written(shapes, tmp_path):
    output = tmp_path / "deep" / "out"
    page = page_of(shapes, output, num=4)
    names = {"records_train", "records_heldout", *(f"task_{task}" for task in TASKS)}
    assert {path.name for path in output.iterdir()} == {"index.html", *(f"{name}.png" for name in names)}
    for name in names:
        with Image.open(output / f"{name}.png") as sheet:
            assert min(sheet.size) > 192
            assert len(set(sheet.convert("RGB").resize((64, 64)).getdata())) > 20, f"{name} is nearly empty"
    assert page.text.startswith("shapes shapes") and str(shapes) in page.text
    for title in ("Records: train", "Records: held-out", *(f"Task: {task}" for task in TASKS)):
        assert page.text.count(title) == 2, f"{title} is a section and a link to it"
    assert len(page.of("article")) == 4 * (2 + len(TASKS))
    facts = json.loads((shapes / MANIFEST).read_text())
    assert facts["fingerprint"] in page.text
    assert f"{facts['samples']['train']} train, {facts['samples']['heldout']} held-out" in page.text


def test_the_page_holds_everything_and_loads_nothing(tmp_path):
    root = dataset(tmp_path / "data", [record(n) for n in range(7)], [record(n) for n in range(7, 11)])
    path = write_inspection(root, tmp_path / "out", 3, 0)
    page, text = Page(path.read_text()), path.read_text()
    pictures = page.of("img")
    # Two sections of three records with a view each; in the tasks, a target and (text_to_image apart) a reference.
    assert len(pictures) == 3 * (2 * 2 + 2 * len(TASKS) - 1)
    for picture in pictures:
        kind, _, data = str(picture["src"]).partition(",")
        assert kind == "data:image/webp;base64"
        with Image.open(BytesIO(b64decode(data, validate=True))) as opened:
            assert str(opened.width) == picture["width"] and str(opened.height) == picture["height"]
    assert all(str(link["href"]).startswith("#s") for link in page.of("a"))
    assert not page.of("script") and not page.of("link") and "url(" not in text and "@import" not in text
    assert any("default-src 'none'" in str(meta.get("content")) for meta in page.of("meta"))


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    root = dataset(tmp_path / "data", [record(n) for n in range(7)], [record(n) for n in range(7, 11)])
    outputs = []
    for seed, name in ((0, "a"), (0, "a2"), (1, "b")):
        write_inspection(root, tmp_path / name, 2, seed)
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        # The page says how it was made, which names the folder.
        files["index.html"] = files["index.html"].replace(str(tmp_path / name).encode(), b"")
        outputs.append(files)
    assert outputs[0] == outputs[1]
    assert outputs[0]["task_recover.png"] != outputs[2]["task_recover.png"]


def test_text_of_the_data_never_becomes_markup(tmp_path):
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    thing = record(0).objects[0]
    records = [
        record(
            number,
            captions=(evil, "fine & well"),
            objects=(replace(thing, name=evil, phrase=evil, attributes={"place": evil}),) * 2,
            subject=evil,
            attributes={evil: evil, "licence": evil},
        )
        for number in range(3)
    ]
    root = dataset(tmp_path / "data", records, description=evil, licence=evil, deep={"er": evil})
    manifest = json.loads((root / MANIFEST).read_text())
    manifest |= {"dropped": {evil: 2}, "inputs": {evil: evil}, "version": evil}
    manifest["recipe"]["name"] = evil
    (root / MANIFEST).write_text(json.dumps(manifest))
    page = page_of(root, tmp_path / 'out"><script>')
    assert not page.of("script")
    assert all(str(picture["src"]).startswith("data:") and "onerror" not in picture for picture in page.of("img"))
    assert page.text.count("<script>alert(1)</script>") > 20, "it stays readable as text"
    assert "fine & well" in page.text


def test_text_that_no_file_can_hold_is_replaced(tmp_path, monkeypatch):
    root = dataset(tmp_path / "data", [record(0), record(1)])
    odd = record(0, captions=("half \ud83d pair \0 end",), attributes={"note": "\udc00"})
    monkeypatch.setattr(ShardSet, "record", lambda *_: odd)
    page = page_of(root, tmp_path / "out")
    assert "half ? pair end" in page.text


def test_very_long_texts_and_lists_are_cut_short(tmp_path):
    things = tuple(replace(record(0).objects[0], name=f"thing{number}") for number in range(40))
    many = record(0, captions=("word " * 5000, *(f"caption {n}" for n in range(60))), objects=things)
    path = write_inspection(dataset(tmp_path / "data", [many, record(1)]), tmp_path / "out", 2, 0)
    page = Page(path.read_text())
    assert "word " * (MOST_LETTERS // 5 + 1) not in page.text and "… caption 0" in page.text
    assert "... and 49 more" in page.text and "... and 28 more" in page.text
    with Image.open(tmp_path / "out" / "records_train.png") as sheet:
        assert sheet.height < 1200
    assert len(shortened("x" * 10_000)) == MOST_LETTERS and shortened(" a \n b \ud83d") == "a b ?"


def test_the_survey_counts_what_is_there():
    bare = record(1, captions=(), objects=(), views=(), subject="", image=np.zeros((10, 20, 3), np.uint8))
    undrawn = record(
        2,
        captions=("A red ball rolls", "two"),
        objects=(record(0).objects[0], RecordObject("dog", None)),
        attributes={"licence": "MIT", "credits": [{"licence": "CC0"}, {"licence": "CC0"}, {"license": "BSD"}, 7]},
    )
    survey = take_survey([Listed([record(0), bare]), Listed([undrawn])], seed=0)
    assert (survey.total, survey.described, survey.pictured) == (3, 3, 3)
    assert (survey.captions, survey.objects, survey.views) == ([1, 0, 2], [1, 0, 2], [1, 0, 1])
    assert survey.caption_words == [5, 4, 1]
    assert (survey.widths, survey.heights, survey.ratios) == ([48, 20, 48], [32, 10, 32], [1.5, 2, 1.5])
    assert survey.areas == pytest.approx([12.5, 12.5]) and survey.unmasked == 1
    assert survey.names == {"ball": 2, "dog": 1} and survey.subjects == {"ball": 2}
    assert survey.beginnings == {"a red": 2, "two": 1}
    assert survey.licences == {"MIT": 1, "CC0": 1, "BSD": 1}


def test_a_large_data_set_is_sampled_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("mentor.data.inspecting.survey.MOST_WORDS", 5)
    monkeypatch.setattr("mentor.data.inspecting.survey.MOST_PICTURES", 4)
    root = dataset(tmp_path / "data", [record(number) for number in range(9)])
    text = page_of(root, tmp_path / "out").text
    assert "Words from 5 drawn by lot of 9 records, pictures and masks from 4 drawn by lot of 9" in text


def test_records_that_cannot_be_read_are_counted_once_each_with_their_reasons():
    survey = take_survey([Listed([record(number) for number in range(4)], unreadable=[1], wordless=[3])], seed=0)
    assert survey.pictured == 2 and survey.described == 3
    assert sorted(error.key for error in survey.unreadable) == ["r1", "r3"]
    assert "picture 1 is cut off" in {str(error) for error in survey.unreadable}


def test_an_unreadable_record_is_named_and_the_rest_is_shown(tmp_path, monkeypatch):
    root = dataset(tmp_path / "data", [record(number) for number in range(5)])
    honest = ShardSet.record

    def broken(self, shard, position):
        if (shard, position) == (1, 0):
            raise unusable("sample r003 is cut off", "r003")
        return honest(self, shard, position)

    monkeypatch.setattr(ShardSet, "record", broken)
    page = page_of(root, tmp_path / "out", num=5)
    assert "1 could not be used (1 truncated): sample r003 is cut off" in page.text
    assert all(f"{key} · 48 x 32 px" in page.text for key in ("r000", "r001", "r002", "r004"))
    assert "r003 · " not in page.text

    def useless(self, shard, position):
        raise unusable("cut off", "any")

    monkeypatch.setattr(ShardSet, "record", useless)
    with pytest.raises(UserError, match=r"not one record in .* can be read: cut off"):
        write_inspection(root, tmp_path / "out2", 5, 0)


def test_a_task_without_records_has_its_reason_and_no_sheet(tmp_path):
    root = dataset(tmp_path / "data", [record(number, objects=(), views=()) for number in range(4)])
    page = page_of(root, tmp_path / "out")
    assert "recover a caption and an object with its mask none" in page.text
    assert "reconstruct a caption 4 100%" in page.text
    assert "no record in the split 'train' can be used for the task 'recover'" in page.text
    sheets = {path.stem for path in (tmp_path / "out").glob("task_*.png")}
    assert sheets == {"task_reconstruct", "task_text_to_image"}


def test_an_example_that_cannot_be_made_is_named_and_the_others_are_shown(tmp_path):
    corner = np.zeros((32, 48), bool)
    corner[:, :2] = True
    outside = record(3, objects=(RecordObject("edge", corner),))
    root = dataset(tmp_path / "data", [record(0), record(1), outside])
    page = page_of(root, tmp_path / "out", num=3)
    assert "shard" in page.text and "record r003: " in page.text
    assert (tmp_path / "out" / "task_segment.png").exists()


def test_a_single_record_is_shown_though_recover_has_nothing_to_paste_on(tmp_path):
    page = page_of(dataset(tmp_path / "data", [record(0)]), tmp_path / "out")
    assert sum(box.get("class") == "fault" for box in page.of("div")) == 1
    assert {path.stem for path in (tmp_path / "out").glob("task_*")} == {f"task_{t}" for t in TASKS if t != "recover"}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_data_set_with_one_split_is_shown(tmp_path, split):
    records = [record(number) for number in range(4)]
    given = {"records": records} if split == "train" else {"records": (), "heldout": records}
    page = page_of(dataset(tmp_path / "data", **given), tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out").glob("records_*")} == {f"records_{split}"}
    assert (tmp_path / "out" / "task_subject.png").exists()
    assert page.text.count("Records: ") == 2


def test_what_was_dropped_is_listed_by_reason_the_commonest_first(tmp_path):
    root = dataset(tmp_path / "data", [record(number) for number in range(4)])
    manifest = json.loads((root / MANIFEST).read_text())
    manifest.pop("dropped")
    (root / MANIFEST).write_text(json.dumps(manifest))
    assert "Dropped" not in page_of(root, tmp_path / "out").text
    for dropped, expected in (
        ({"too small": 1, "duplicate": 5}, "parts of them. duplicate 5 too small 1"),
        ({"too small": 0}, "Nothing was dropped."),
    ):
        (root / MANIFEST).write_text(json.dumps(manifest | {"dropped": dropped}))
        assert expected in page_of(root, tmp_path / "out").text


def test_a_picture_without_masks_is_drawn_and_said_to_have_none():
    undrawn = record(0, objects=(RecordObject("dog", None),), views=(View(np.zeros((8, 8, 3), np.uint8), None),))
    assert record_card(undrawn).size == record_card(record(0)).size
    pixels = np.asarray(outlined(undrawn.image, [None, record(0).objects[0].mask]))
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert OUTLINES[1] in colours and OUTLINES[0] not in colours, "each object keeps its own colour"
    assert outlined(np.zeros((1, 1000, 3), np.uint8), []).size == (192, 1), "a strip is still a picture"


@pytest.mark.parametrize(("num", "count"), [(4, 4), (7, 7), (50, 7)])
def test_picked_samples_are_different_and_among_those_given(num, count):
    positions = [np.array([2, 5]), np.array([], dtype=int), range(5)]
    samples = pick(positions, num, seed=3)
    places = [(sample.shard, sample.position) for sample in samples]
    assert len(set(places)) == len(places) == count
    assert set(places) <= {(0, 2), (0, 5), *((2, position) for position in range(5))}
    assert samples == pick(positions, num, seed=3)
    assert count < 5 or samples != pick(positions, num, seed=4)
    assert pick([], num, 0) == []


def test_bins_hold_every_value_and_whole_numbers_have_their_own():
    edges, counts, beyond = bins(np.array([1, 1, 2, 5]))
    assert (edges, counts, beyond) == ([1, 2, 3, 4, 5, 6], [2, 1, 0, 0, 1], False)
    edges, counts, beyond = bins(np.arange(1000) / 7)
    assert len(counts) == BARS and sum(counts) == 1000 and not beyond
    assert max(counts) - min(counts) <= 1 and edges[-1] == pytest.approx(999 / 7)
    edges, counts, beyond = bins(np.arange(100))
    assert sum(counts) == 100 and len(counts) <= BARS and set(np.diff(edges)) == {5}


@pytest.mark.parametrize("scale", [1, 0.37])
def test_a_far_outlier_does_not_flatten_the_rest(scale):
    values = np.array([*range(200), 100_000]) * scale
    edges, counts, beyond = bins(values)
    assert beyond and sum(counts) == 201 and edges[-1] < 250 * scale
    assert sum(count > 0 for count in counts) > BARS // 2


def test_a_chart_has_a_bar_for_each_bin_or_says_the_only_value():
    assert chart("Side", []) == ""
    alone = Page(chart("Side", [64, 64]))
    assert alone.text == "Side 64 every time" and not alone.of("svg")
    drawn = Page(chart("A < B", [1, 1, 2, 4]))
    assert "median 1.5, mean 2" in drawn.text and "A < B" in drawn.text
    assert [float(str(bar["height"])) for bar in drawn.of("rect")] == [72, 36, 0, 36]
    assert "1: 2" in drawn.text


@pytest.mark.parametrize(
    ("data", "output", "num", "message"),
    [
        ("nowhere", "out", 2, "no shards in .*nowhere"),
        ("data", "out", 0, "--num 0: give a number above 0"),
        ("data", "file", 2, "file is a file"),
    ],
)
def test_mistakes_are_refused_in_one_line_before_anything_is_written(tmp_path, data, output, num, message):
    dataset(tmp_path / "data", [record(0)])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message) as raised:
        write_inspection(tmp_path / data, tmp_path / output, num, 0)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
