"""The folder source: every way in which people write captions, every way in which it goes wrong."""

import os
import shutil
import time
from pathlib import Path

import pytest
from layouts import captions, outcomes, picture_bytes, source, write_lines, write_picture

from mentor.data.sources import describe_inputs, read_items
from mentor.data.sources.places import Tree
from mentor.errors import UserError


def read(folder: Path, **settings: object) -> tuple[dict, dict]:
    return outcomes(folder, kind="folder", path="pics", **settings)


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.JPG", "sub dir/ç.png"):
        write_picture(tmp_path / "pics" / name)
    return tmp_path / "pics"


def test_metadata_comes_before_other_captions(pics: Path) -> None:
    write_lines(pics / "metadata.jsonl", [{"file_name": "a.JPG", "text": "one"}, {"file_name": "b.jpg", "text": "two"}])
    (pics / "captions.csv").write_text("file,caption\na.JPG,other\n")
    (pics / "a.txt").write_text("third")
    items, dropped = read(pics.parent)
    assert captions(items) == {"a.JPG": ["one"], "b.jpg": ["two"]}
    assert dropped == {"sub dir/ç.png": "no caption"}
    assert items["a.JPG"].picture.read() == (pics / "a.JPG").read_bytes()


def test_metadata_in_a_folder_below_counts_from_there(pics: Path) -> None:
    (pics / "sub dir/metadata.csv").write_text("file_name,id,words\nç.png,12,a letter\n", encoding="utf-8")
    items, dropped = read(pics.parent, captions="metadata")
    assert captions(items) == {"sub dir/ç.png": ["a letter"]}
    assert dropped == {"a.JPG": "no caption", "b.jpg": "no caption"}


def test_a_csv_as_spreadsheets_write_it(pics: Path) -> None:
    text = '\ufefffile_name,caption\r\na.JPG,"a ""quoted"", word"\r\nb.jpg,"two\r\nlines"\r\n\r\nsub dir/ç.png,Ünï\r\n'
    (pics / "captions.csv").write_bytes(text.encode())
    items, dropped = read(pics.parent)
    assert captions(items) == {"a.JPG": ['a "quoted", word'], "b.jpg": ["two\r\nlines"], "sub dir/ç.png": ["Ünï"]}
    assert not dropped


def test_semicolons_and_tabs_separate_too(pics: Path) -> None:
    (pics / "captions.csv").write_text("file;caption\na.JPG;one, two\n")
    assert captions(read(pics.parent)[0]) == {"a.JPG": ["one, two"]}
    (pics / "captions.csv").rename(pics / "captions.tsv").write_text(
        'file\tcaption\na.JPG\t"Oh", she said\nb.jpg\t"x\n'
    )
    assert captions(read(pics.parent)[0]) == {"a.JPG": ['"Oh", she said'], "b.jpg": ['"x']}


def test_several_rows_of_a_picture_become_its_captions_in_order(pics: Path) -> None:
    rows = [("a.JPG", "one"), ("b.jpg", " "), ("./a.JPG", "two"), ("sub dir/../a.JPG", ["three", "four"])]
    write_lines(pics / "captions.jsonl", [{"image": name, "caption": text} for name, text in rows])
    items, _ = read(pics.parent)
    assert captions(items) == {"a.JPG": ["one", "two", "three", "four"], "b.jpg": []}


def test_rows_that_lead_nowhere_or_out_are_dropped_and_never_read(pics: Path) -> None:
    secret = write_picture(pics.parent / "secret.jpg")
    (pics / "link.jpg").symlink_to(secret)
    (pics / "out").symlink_to(pics.parent, target_is_directory=True)
    (pics / "within.jpg").symlink_to(pics / "b.jpg")
    names = ["gone.jpg", "../secret.jpg", str(secret), "link.jpg", "out/secret.jpg", "..\\secret.jpg", "sub dir", ""]
    names += ["within.jpg", str(pics / "a.JPG"), "sub dir\\ç.png", "captions.jsonl"]
    write_lines(pics / "captions.jsonl", [{"file_name": name, "text": "words"} for name in names])
    items, dropped = read(pics.parent)
    assert list(items) == ["a.JPG", "sub dir/ç.png", "within.jpg"]
    outside, missing = "path outside the folder", "missing file"
    reasons = [missing, outside, outside, outside, outside, outside, missing, missing]
    assert [dropped[f"captions.jsonl:{line}"] for line in range(1, 9)] == reasons
    assert dropped["captions.jsonl:12"] == "unknown kind of picture"
    assert dropped["b.jpg"] == "no caption"
    assert dropped["out"] == "path outside the folder"


def test_a_folder_that_links_to_itself_ends(pics: Path) -> None:
    (pics / "sub dir/again").symlink_to(pics, target_is_directory=True)
    items, dropped = read(pics.parent, captions="none")
    assert list(items) == ["a.JPG", "b.jpg", "sub dir/ç.png"]
    assert dropped == {"sub dir/again": "linked folder"}


def test_a_caption_that_is_not_utf_8_costs_its_picture_alone(pics: Path) -> None:
    (pics / "captions.csv").write_bytes(b"file,caption\na.JPG,caf\xe9\nb.jpg,fine\n")
    items, dropped = read(pics.parent)
    assert captions(items) == {"b.jpg": ["fine"]}
    assert dropped == {"a.JPG": "caption is not UTF-8", "sub dir/ç.png": "no caption"}
    (pics / "captions.csv").rename(pics / "captions.jsonl").write_bytes(b'{"file":"a.JPG","text":"\\ud800"}\n')
    assert read(pics.parent)[1]["a.JPG"] == "caption is not UTF-8"
    (pics / "captions.jsonl").write_bytes("file".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"):
        read(pics.parent)


def test_other_pictures_are_named_and_other_files_ignored(pics: Path) -> None:
    write_picture(pics / "moving.gif")
    write_picture(pics / "old.BMP")
    write_picture(pics / ".hidden.jpg")
    write_picture(pics / "__MACOSX/._a.jpg")
    (pics / "notes.md").write_text("x")
    items, dropped = read(pics.parent, captions="none")
    assert list(items) == ["a.JPG", "b.jpg", "sub dir/ç.png"]
    assert not any(item.captions for item in items.values())
    assert dropped == {"moving.gif": "unknown kind of picture", "old.BMP": "unknown kind of picture"}


def test_texts_beside_the_pictures(pics: Path) -> None:
    (pics / "a.txt").write_bytes("\ufeffa cat\r\n".encode())
    (pics / "sub dir/ç.txt").write_bytes(b"caf\xe9")
    items, dropped = read(pics.parent)
    assert captions(items) == {"a.JPG": ["a cat"]}
    assert dropped == {"b.jpg": "no caption", "sub dir/ç.png": "caption is not UTF-8"}
    (pics / "b.TXT").write_text("")
    assert captions(read(pics.parent, captions="sidecar")[0])["b.jpg"] == []


def test_a_text_that_links_out_of_the_folder_is_not_read(pics: Path) -> None:
    (pics.parent / "secret.txt").write_text("secret")
    (pics / "b.txt").symlink_to(pics.parent / "secret.txt")
    items, dropped = read(pics.parent, captions="sidecar")
    assert not items
    assert dropped["b.jpg"] == "path outside the folder"


def test_class_folders_give_captions_and_ids_in_sorted_order(tmp_path: Path) -> None:
    for name in ("zebra/1.jpg", "great_owl/x/2.jpg", "ant/3.jpg"):
        write_picture(tmp_path / "pics" / name)
    items, _ = read(tmp_path)
    assert captions(items) == {
        "ant/3.jpg": ["a photo of an ant"],
        "great_owl/x/2.jpg": ["a photo of a great owl"],
        "zebra/1.jpg": ["a photo of a zebra"],
    }
    assert [item.attributes for item in items.values()] == [
        {"class": "ant", "class_id": 0},
        {"class": "great_owl", "class_id": 1},
        {"class": "zebra", "class_id": 2},
    ]
    write_picture(tmp_path / "pics/loose.jpg")
    items, dropped = read(tmp_path, captions="class", template="{name}!")
    assert items["ant/3.jpg"].captions == ("ant!",)
    assert dropped == {"loose.jpg": "not in a class folder"}


def test_folders_that_divide_a_data_set_are_no_classes(tmp_path: Path) -> None:
    write_picture(tmp_path / "pics/train/1.jpg")
    write_picture(tmp_path / "pics/val/2.jpg")
    with pytest.raises(UserError, match="no captions"):
        read(tmp_path)


def test_a_folder_without_captions_says_what_was_looked_for(pics: Path) -> None:
    with pytest.raises(UserError, match=r"pics holds 3 pictures and no captions.*metadata\.jsonl.*x\.txt.*: none"):
        read(pics.parent)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    with pytest.raises(UserError, match=r"pics holds no \.jpg"):
        read(tmp_path)
    (tmp_path / "pics/a.jpg").symlink_to(write_picture(tmp_path / "b.jpg"))
    with pytest.raises(UserError, match=r"a\.jpg: path outside the folder"):
        read(tmp_path)


def test_a_table_that_names_only_missing_files_is_refused_with_an_example(pics: Path) -> None:
    (pics / "captions.csv").write_text("file,caption\nx/1.jpg,one\nx/2.jpg,two\n")
    with pytest.raises(UserError, match=r"none of the pictures in 2 rows.*captions\.csv:2 x/1\.jpg"):
        read(pics.parent)


def test_pictures_in_a_folder_of_that_name_beside_the_table_are_found(tmp_path: Path) -> None:
    write_picture(tmp_path / "pics/images/1.jpg")
    (tmp_path / "pics/captions.csv").write_text("file,caption\n1.jpg,one\n")
    assert captions(read(tmp_path)[0]) == {"images/1.jpg": ["one"]}


def test_columns_have_to_be_clear_or_named(pics: Path) -> None:
    table = pics / "rows.csv"
    table.write_text("picture,title,note\na.JPG,one,two\n")
    with pytest.raises(UserError, match=r"no column names the pictures.*picture, title, note.*image_column"):
        read(pics.parent)
    with pytest.raises(UserError, match=r"several columns could be captions.*caption_column"):
        read(pics.parent, image_column="picture")
    with pytest.raises(UserError, match="no column 'x'"):
        read(pics.parent, image_column="picture", caption_column="x")
    items, _ = read(pics.parent, image_column="picture", caption_column=["note", "title"])
    assert captions(items) == {"a.JPG": ["two", "one"]}
    table.write_text("a.JPG,one\nb.jpg,two\n")
    with pytest.raises(UserError, match="is the first line a header"):
        read(pics.parent)


def test_commas_without_quotes_are_not_cut_off_in_silence(pics: Path) -> None:
    table = pics / "captions.csv"
    table.write_text("file,caption\na.JPG,a dog, running\nb.jpg,fine\n")
    items, dropped = read(pics.parent)
    assert captions(items) == {"b.jpg": ["fine"]}
    assert dropped["captions.csv:2"] == "unreadable row"
    table.write_text("file,caption\na.JPG,a dog, running\nb.jpg,a, cat\nsub dir/ç.png,x\n")
    with pytest.raises(UserError, match=r"captions\.csv: 2 of 3 rows cannot be read, line 2: 3 cells under 2 columns"):
        read(pics.parent)
    table.write_text('file,caption\na.JPG,"open\nb.jpg,x\n')
    with pytest.raises(UserError, match=r"captions\.csv, line 3"):
        read(pics.parent)


def test_two_tables_are_ambiguous_unless_one_is_called_captions(pics: Path) -> None:
    (pics / "one.csv").write_text("file,caption\na.JPG,one\n")
    (pics / "two.tsv").write_text("file\tcaption\na.JPG\ttwo\n")
    with pytest.raises(UserError, match=r"one\.csv, two\.tsv: say which"):
        read(pics.parent)
    assert captions(read(pics.parent, captions="two.tsv")[0]) == {"a.JPG": ["two"]}
    (pics / "captions.jsonl").write_text('{"file": "a.JPG", "caption": "three"}\n')
    assert captions(read(pics.parent)[0]) == {"a.JPG": ["three"]}


def test_a_table_elsewhere_can_be_named(pics: Path) -> None:
    (pics.parent / "words.csv").write_text("file,caption\na.JPG,one\n")
    assert captions(read(pics.parent, captions="words.csv")[0]) == {"a.JPG": ["one"]}
    with pytest.raises(UserError, match=r"gone\.csv does not exist"):
        read(pics.parent, captions="gone.csv")


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="captions"):
        source(kind="folder", path="x", captions="sidecars")
    with pytest.raises(UserError, match=r"\{name\}"):
        source(kind="folder", path="x", template="a {nmae}")


def test_paths_count_from_the_recipe_and_else_from_the_current_folder(
    pics: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(pics.parent)
    assert len(read(elsewhere, captions="none")[0]) == 3
    write_picture(elsewhere / "pics/only.jpg")
    assert list(read(elsewhere, captions="none")[0]) == ["only.jpg"]
    with pytest.raises(UserError, match=rf"{elsewhere}/gone and {pics.parent}/gone"):
        outcomes(elsewhere, kind="folder", path="gone")


def test_letters_with_accents_match_however_they_are_composed(tmp_path: Path) -> None:
    write_picture(tmp_path / "pics/cafe\u0301/e\u0301.jpg")
    (tmp_path / "pics/captions.csv").write_text("file,caption\ncaf\u00e9/\u00e9.jpg,one\n", encoding="utf-8")
    write_picture(tmp_path / "pics/\u00f1.jpg")
    with (tmp_path / "pics/captions.csv").open("a", encoding="utf-8") as file:
        file.write("n\u0303.jpg,two\n")
    assert captions(read(tmp_path)[0]) == {"cafe\u0301/e\u0301.jpg": ["one"], "\u00f1.jpg": ["two"]}


def test_a_file_name_that_is_not_utf_8_is_dropped_with_a_name_that_can_be_printed(pics: Path) -> None:
    Path(os.fsdecode(os.fsencode(pics) + b"/caf\xe9.jpg")).write_bytes(picture_bytes())
    _, dropped = read(pics.parent, captions="none")
    assert dropped == {"caf\\xe9.jpg": "file name is not UTF-8"}


def test_the_identity_follows_names_sizes_and_captions_not_places_and_times(pics: Path, tmp_path: Path) -> None:
    (pics / "a.txt").write_text("one")
    config = source(kind="folder", path="pics")
    before = describe_inputs(config, tmp_path)
    shutil.copytree(pics, tmp_path / "copy/pics")
    os.utime(tmp_path / "copy/pics/a.JPG", (1, 1))
    assert describe_inputs(config, tmp_path / "copy") == before
    (pics / "a.txt").write_text("two")
    changed = describe_inputs(config, tmp_path)
    assert changed != before
    write_picture(pics / "c.jpg")
    assert describe_inputs(config, tmp_path) != changed
    (pics / "captions.csv").write_text("file,caption\na.JPG,one\n")
    assert list(describe_inputs(config, tmp_path)) == ["pics", "pics: captions.csv"]


def test_listing_and_finding_many_files_is_quick(tmp_path: Path) -> None:
    for folder in range(20):
        (tmp_path / f"{folder}").mkdir()
        for number in range(500):
            (tmp_path / f"{folder}/{number}.jpg").touch()
    start = time.process_time()
    tree = Tree(tmp_path)
    files = tree.files()
    assert all(not tree.find(entry.path).problem for entry in files)
    # 100,000 files are to take a second or two, so this tenth has room for a slow machine.
    assert len(files) == 10_000
    assert time.process_time() - start < 1


def test_reading_is_lazy_and_repeatable(pics: Path) -> None:
    config = source(kind="folder", path="pics", captions="none")
    assert list(read_items(config, pics.parent)) == list(read_items(config, pics.parent))
