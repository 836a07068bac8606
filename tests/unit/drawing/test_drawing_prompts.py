"""The prompt file: what a line may say, and the line number of what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mentor.drawing.model import Model
from mentor.drawing.prompts import PromptLine, check_lines, read_prompts
from mentor.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "mug.png")
    return tmp_path


def read(folder: Path, *lines: Any, seed: int = 0, **sampling: Any) -> list[PromptLine]:
    """The lines as they come back from a file of them; what is no text becomes JSON."""
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "prompts.jsonl").write_bytes(b"\n".join(texts))
    return read_prompts(folder / "prompts.jsonl", seed, sampling)


def test_a_line_says_what_it_needs_and_the_rest_is_as_on_the_command_line(folder: Path) -> None:
    first, second = read(
        folder,
        {"prompt": "a red mug"},
        {"prompt": "<image>", "images": ["mug.png"], "num_images": 2, "seed": 5, "name": "a.b-c", "top_k": 3},
        seed=9,
        guidance=1.5,
        guidance_images=3.0,
    )
    assert (first.number, first.seeds, first.stem, first.images) == (1, range(9, 10), "000001", ())
    assert (first.sampling.guidance, first.sampling.guidance_images, first.sampling.top_k) == (1.5, 3.0, 0)
    assert (second.number, second.seeds, second.images) == (2, range(5, 7), (folder / "mug.png",))
    assert (second.sampling.guidance, second.sampling.top_k) == (1.5, 3)
    assert [first.file(9), second.file(6)] == ["000001_000009.png", "a.b-c_000006.png"]


def test_a_line_may_take_a_setting_of_the_command_line_back(folder: Path) -> None:
    (line,) = read(folder, {"prompt": "a", "guidance_images": None, "guidance": 1}, guidance=2.0, guidance_images=3.0)
    assert (line.sampling.guidance, line.sampling.guidance_images) == (1.0, None)


def test_blank_lines_count_but_say_nothing_and_absolute_images_stay(folder: Path) -> None:
    absolute = str(folder / "mug.png")
    lines = read(folder, b"", {"prompt": "a"}, b"  \r", {"prompt": "<image>", "images": [absolute]}, b"")
    assert [line.number for line in lines] == [2, 4]
    assert lines[1].images == (Path(absolute),)


def test_marks_and_line_ends_of_windows_are_no_matter(folder: Path) -> None:
    assert [line.prompt for line in read(folder, b'\xef\xbb\xbf{"prompt": "a"}\r', b'{"prompt": "\xc3\xa9"}')] == [
        "a",
        "é",
    ]


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": (b"a red mug", r"is not JSON \(.* at column 1\)"),
    "half an object": (b'{"prompt": "a"', "is not JSON"),
    "two objects": (b'{"prompt": "a"} {"prompt": "b"}', "is not JSON .*column 17"),
    "no object": (["a red mug"], r"no JSON object but \[\"a red mug\"\]"),
    "bytes that are no text": (b'{"prompt": "\xff"}', r"not UTF-8 text \(byte 13\)"),
    "half a character": (b'{"prompt": "\\ud800"}', "has half a character"),
    "too deep": (b"[" * 200_000, "cannot be read|can be read"),
    "a number of too many digits": (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "can be read"),
    "no prompt": ({"images": ["mug.png"]}, "prompt: must be given"),
    "an empty prompt": ({"prompt": ""}, "the prompt is empty"),
    "an unknown key": ({"prompt": "a", "guidence": 2}, r"guidence: unknown key \(did you mean guidance"),
    "a key twice": (b'{"prompt": "a", "prompt": "b"}', "has 'prompt' twice"),
    "a number for a text": ({"prompt": 3}, "prompt: 3 is wrong"),
    "a text for a number": ({"prompt": "a", "guidance": "2"}, "guidance: '2' is wrong"),
    "a truth for a number": ({"prompt": "a", "num_images": True}, "num_images: True is wrong"),
    "a fraction of pictures": ({"prompt": "a", "num_images": 1.5}, "num_images: 1.5 is wrong"),
    "a text for images": ({"prompt": "<image>", "images": "mug.png"}, "images: 'mug.png' is wrong"),
    "nothing for guidance": ({"prompt": "a", "guidance": None}, "guidance: None is wrong"),
    "no pictures": ({"prompt": "a", "num_images": 0}, "num_images: 0"),
    "a seed below 0": ({"prompt": "a", "seed": -1}, "seed -1 must be 0 or more"),
    "seeds that run over": ({"prompt": "a", "seed": 2**63 - 1}, "must be 0 or more and below 2"),
    "a mark too few": ({"prompt": "a", "images": ["mug.png"]}, "0 <image> mark"),
    "a mark too many": ({"prompt": "<image> <image>", "images": ["mug.png"]}, "2 <image> mark"),
    "a missing image": ({"prompt": "<image>", "images": ["cup.png"]}, "no image file .*cup.png"),
    "no image": ({"prompt": "<image>", "images": ["prompts.jsonl"]}, "prompts.jsonl cannot be read as an image"),
    "a folder for an image": ({"prompt": "<image>", "images": ["."]}, "cannot be read as an image"),
    "a name with a folder": ({"prompt": "a", "name": "../a"}, "name '../a' begins the names of files"),
    "a hidden name": ({"prompt": "a", "name": ".a"}, "name '.a'"),
    "a long name": ({"prompt": "a", "name": "a" * 101}, "up to 100 letters"),
    "an empty name": ({"prompt": "a", "name": ""}, "name ''"),
    "a name twice": ({"prompt": "a", "name": "first"}, "would be called first, as those of line 1"),
    "a name twice but for capitals": ({"prompt": "a", "name": "First"}, "as those of line 1"),
    "the name of a line without one": ({"prompt": "a", "name": "000002"}, "as those of line 2"),
    "a temperature below 0": ({"prompt": "a", "temperature": -0.5}, "temperature -0.5 must be 0"),
    "a top_p of 0": ({"prompt": "a", "top_p": 0}, "top_p 0.0 must be above 0"),
    "a top_p above 1": ({"prompt": "a", "top_p": 1.01}, "top_p 1.01 must be above 0"),
    "a guidance below 0": ({"prompt": "a", "guidance": -1}, "guidance must be 0 or more"),
    "no number": (b'{"prompt": "a", "temperature": NaN}', "NaN"),
    "an infinite one": (b'{"prompt": "a", "temperature": 1e999}', "temperature inf must be a finite number"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_names_file_and_line(folder: Path, mistake: str) -> None:
    line, says = WRONG[mistake]
    with pytest.raises(UserError, match=says) as caught:
        read(folder, {"prompt": "a", "name": "first"}, {"prompt": "b"}, line)
    assert str(caught.value).startswith(f"{folder / 'prompts.jsonl'} line 3: ")


def test_settings_of_the_command_line_are_not_blamed_on_a_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^top_p 0.0 must"):
        read(folder, {"prompt": "a"}, top_p=0.0)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_a_line_is_refused(folder: Path, content: bytes) -> None:
    with pytest.raises(UserError, match="has no line: write one JSON object a line"):
        read(folder, content)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.jsonl cannot be read \(No such file"):
        read_prompts(tmp_path / "none.jsonl", 0, {})


def test_what_the_model_cannot_do_is_refused_by_line(folder: Path, model: Model, untrained: Model) -> None:
    short, long = {"prompt": "a", "guidance": 1}, {"prompt": "<image>" * 4, "images": ["mug.png"] * 4, "guidance": 1}
    with pytest.raises(UserError, match=r"line 2: the prompt takes 65 prefix tokens and the model has room for 64"):
        list(check_lines(model, read(folder, short, long)))
    with pytest.raises(UserError, match="line 2: guidance 2 needs a model"):
        list(check_lines(untrained, read(folder, short, {"prompt": "a", "guidance": 2})))
