"""Batch jobs that are refused: another job's folder, other pictures in it, files that are damaged."""

from pathlib import Path
from typing import Any

import pytest
from batchjobs import Draw, check_whole, drawing_with, lines, pictures, times, write
from PIL import Image
from tiny import save_tiny_releases

from mentor.errors import UserError


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Draw:
    return drawing_with(save_tiny_releases(tmp_path_factory.mktemp("releases")) / "model")


@pytest.mark.parametrize(
    ("line", "options", "differing"),
    [
        ({"prompt": "a blue circle"}, (), "prompts"),
        ({"prompt": "a red circle", "name": "x"}, (), "prompts"),
        ({"prompt": "a red circle", "num_images": 2}, (), "seeds"),
        ({"prompt": "a red circle"}, ("--seed", "3"), "seeds"),
        ({"prompt": "a red circle"}, ("--guidance", "1.5"), "sampling"),
        ({"prompt": "a red circle", "top_k": 2}, ("--seed", "3"), "seeds, sampling"),
        ({"prompt": "a red circle"}, ("--precision", "bf16"), "precision fp32 there and bf16 here"),
    ],
)
def test_another_jobs_folder_is_refused_with_what_differs(
    draw: Draw, tmp_path: Path, line: dict[str, Any], options: tuple[str, ...], differing: str
) -> None:
    out = tmp_path / "out"
    draw(write(tmp_path / "one.jsonl", {"prompt": "a red circle"}), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    says = rf"{out} holds another job \({differing} differ\): choose another --output, or give that job's own settings"
    for more in ((), ("--overwrite",)):
        with pytest.raises(UserError, match=says):
            draw(write(tmp_path / "one.jsonl", line), out, *options, *more)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    draw(write(tmp_path / "renamed.jsonl", {"prompt": "a red circle"}), out, "--batch-size", "1")


def test_another_models_job_is_refused(draw: Draw, tmp_path: Path) -> None:
    prompts = write(tmp_path / "one.jsonl", {"prompt": "a red circle"})
    draw(prompts, tmp_path / "out")
    other = save_tiny_releases(tmp_path / "other", codes=16) / "model"
    with pytest.raises(UserError, match=r"another job \(model [0-9a-f]{16} there and [0-9a-f]{16} here differ\)"):
        drawing_with(other)(prompts, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "does not say which job this is"),
        ("[]", "does not say which job this is"),
        ('{"format": "mentor batch job", "version": 9}', "has format version 9, this is 1"),
    ],
)
def test_a_job_file_that_cannot_be_read_is_refused(draw: Draw, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(UserError, match=rf"job.json {says}.*choose another --output"):
        draw(write(tmp_path / "one.jsonl", {"prompt": "a red circle"}), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json", "one.jsonl"]


def test_pictures_of_the_same_names_without_a_job_are_refused_or_kept(draw: Draw, tmp_path: Path) -> None:
    red = write(tmp_path / "red.jsonl", {"prompt": "a red circle", "num_images": 2})
    blue = write(tmp_path / "blue.jsonl", {"prompt": "a blue circle", "num_images": 2})
    draw(red, tmp_path / "out")
    for name in ("job.json", "pictures.jsonl"):
        (tmp_path / "out" / name).unlink()
    before, at = pictures(tmp_path / "out"), times(tmp_path / "out")
    with pytest.raises(UserError, match=r"000001_000000.png is another picture \(prompt differ\) and would be lost"):
        draw(blue, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(before)
    draw(red, tmp_path / "out")
    assert times(tmp_path / "out") == at and len(lines(tmp_path / "out")) == 2
    (tmp_path / "out" / "job.json").unlink()
    (tmp_path / "out" / "pictures.jsonl").unlink()
    draw(blue, tmp_path / "out", "--overwrite")
    assert {line["prompt"] for line in lines(tmp_path / "out")} == {"a blue circle"}
    assert pictures(tmp_path / "out").keys() == before.keys() and pictures(tmp_path / "out") != before


def test_a_damaged_picture_of_the_job_is_refused_or_drawn_again(draw: Draw, tmp_path: Path) -> None:
    prompts = write(tmp_path / "one.jsonl", {"prompt": "a red circle", "num_images": 2})
    draw(prompts, tmp_path / "out")
    whole, damaged = pictures(tmp_path / "out"), tmp_path / "out" / "000001_000001.png"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"000001_000001.png cannot be read .*--overwrite"):
        draw(prompts, tmp_path / "out")
    draw(prompts, tmp_path / "out", "--overwrite")
    check_whole(tmp_path / "out", whole)


def test_a_reference_that_turns_out_to_be_damaged_is_named_by_its_line_and_the_rest_is_kept(
    draw: Draw, tmp_path: Path
) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "noise.png")
    content = (tmp_path / "noise.png").read_bytes()
    (tmp_path / "noise.png").write_bytes(content[:-2000])
    job = write(
        tmp_path / "two.jsonl", {"prompt": "a", "num_images": 4}, {"prompt": "<image>", "images": ["noise.png"]}
    )
    with pytest.raises(UserError, match=r"two.jsonl line 3: .*noise.png cannot be read as an image"):
        draw(job, tmp_path / "out")
    assert len(lines(tmp_path / "out")) == 4
    (tmp_path / "noise.png").write_bytes(content)
    draw(job, tmp_path / "out")
    assert len(lines(tmp_path / "out")) == 5
