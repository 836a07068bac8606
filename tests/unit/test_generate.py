"""The Python API and the command line of generation, on a small random model."""

import json
from pathlib import Path

import pytest
import torch
from batchjobs import watch_batches
from PIL import Image
from tiny import tiny_generator, tiny_image_tokenizer

from mentor.data.pictures import is_finished
from mentor.errors import UserError
from mentor.generate import (
    Model,
    draw,
    generate,
    load,
    main,
    open_image,
    plan,
    read_metadata,
    regenerate,
    save_picture,
    to_reference,
)
from mentor.models.checkpoint import Card, save_generator

PROMPT = "The mug in <image>.\n a red mug"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_image_tokenizer(stem=2, codes=16, width=4)
    path = tmp_path_factory.mktemp("model") / "release"
    save_generator(path, tiny_generator(tokenizer, 16, max_prefix=64), tokenizer, 16, Card("test"))
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "mug.png"
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(path)
    return path


def test_pictures_come_in_number_and_size(model: Model, reference: Path) -> None:
    pictures = generate(model, PROMPT, [reference], num_images=3, seed=5)
    assert [(p.size, p.mode) for p in pictures] == [((16, 16), "RGB")] * 3
    assert len({p.tobytes() for p in pictures}) == 3, "seeds differ"


def test_a_picture_depends_on_its_own_seed_alone(model: Model, reference: Path) -> None:
    three = generate(model, PROMPT, [reference], num_images=3, seed=5)
    assert generate(model, PROMPT, [reference], seed=7)[0].tobytes() == three[2].tobytes()


def test_files_and_open_pictures_are_the_same_to_it(model: Model, reference: Path) -> None:
    assert (
        generate(model, PROMPT, [Image.open(reference)])[0].tobytes()
        == generate(model, PROMPT, [reference])[0].tobytes()
    )


def test_reference_is_cropped_not_squashed_and_put_on_white() -> None:
    picture = Image.new("RGBA", (30, 10), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (10, 0, 20, 10))  # the middle third
    assert to_reference(picture, 8)[:, 4, 4].tolist() == pytest.approx([1, -1, -1], abs=0.02)
    assert to_reference(picture, 8)[0].min() > 0.9
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert torch.equal(to_reference(clear, 8), torch.ones(3, 8, 8))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (10, 20)


def test_command_line_writes_pictures_and_a_grid(folder: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    settings = ["--num-images", "3", "--guidance", "1.5", "--temperature", "0.9", "--top-k", "8", "--top-p", "0.9"]
    main(
        [
            PROMPT,
            "--model",
            str(folder),
            "--image",
            str(reference),
            "--output",
            str(out),
            "--seed",
            "2",
            "--grid",
            *settings,
        ]
    )
    assert sorted(path.name for path in out.iterdir()) == ["000002.png", "000003.png", "000004.png", "grid.png"]
    assert Image.open(out / "grid.png").size == (16 * 2 + 2, 16 * 2 + 2)


def test_an_impossible_output_is_refused_before_anything_is_drawn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mentor.drawing.jobs.draw", lambda *_, **__: pytest.fail("drew"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; choose another folder"):
        main(["a red mug", "--model", str(folder), "--output", str(tmp_path / "file" / "below")])


def test_a_picture_that_cannot_be_written_leaves_nothing(model: Model, tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        save_picture(generate(model, "a red mug")[0], tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_metadata_makes_the_picture_again_without_its_reference_file(
    folder: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "first"
    options = ["--guidance", "1.5", "--temperature", "0.8", "--seed", "9"]
    main([PROMPT, "--model", str(folder), "--image", str(reference), "--output", str(out), *options])
    reference.unlink()
    settings = read_metadata(out / "000009.png")
    assert settings["prompt"] == PROMPT and settings["seed"] == 9 and settings["sampling"]["temperature"] == 0.8
    main(["--from-png", str(out / "000009.png"), "--output", str(tmp_path / "second")])
    pixels = [Image.open(tmp_path / name / "000009.png").tobytes() for name in ("first", "second")]
    assert pixels[0] == pixels[1]


def test_a_written_picture_may_be_read_by_whoever_may_read_a_new_file(model: Model, tmp_path: Path) -> None:
    save_picture(generate(model, "a red mug")[0], tmp_path / "x.png")
    (tmp_path / "new").touch()
    assert (tmp_path / "x.png").stat().st_mode == (tmp_path / "new").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "x.png"]


def test_another_model_is_refused_for_from_png(model: Model, folder: Path, tmp_path: Path) -> None:
    picture = generate(model, "a red mug")[0]
    picture.info["mentor"] = picture.info["mentor"].replace(model.release.fingerprint, "0123456789abcdef")
    save_picture(picture, tmp_path / "x.png")
    with pytest.raises(UserError, match="made by model 0123456789abcdef"):
        regenerate(tmp_path / "x.png", model)


def test_another_precision_is_refused_for_from_png(model: Model, folder: Path, tmp_path: Path) -> None:
    other = {"fp32": "bf16", "bf16": "fp32"}[model.precision]
    save_picture(generate(load(folder, precision=other), "a red mug")[0], tmp_path / "x.png")
    with pytest.raises(UserError, match=f"made in precision {other}, the model is open in {model.precision}"):
        regenerate(tmp_path / "x.png", model)
    assert regenerate(tmp_path / "x.png").tobytes() == Image.open(tmp_path / "x.png").tobytes()


def test_settings_of_every_kind_come_back_from_the_metadata(model: Model, folder: Path, tmp_path: Path) -> None:
    settings = {"guidance_images": 1.5, "guidance_interval": (0.25, 0.75), "top_k": 5, "speculative": 4}
    picture = generate(model, "a red mug", seed=3, **settings)[0]
    save_picture(picture, tmp_path / "x.png")
    found = read_metadata(tmp_path / "x.png")["sampling"]
    assert {name: found[name] for name in settings} == settings | {"guidance_interval": [0.25, 0.75]}
    assert regenerate(tmp_path / "x.png").tobytes() == picture.tobytes()


def test_what_older_pictures_leave_unsaid_is_as_it_was_then(model: Model, folder: Path, tmp_path: Path) -> None:
    picture = generate(load(folder, precision="fp32"), "a red mug")[0]
    about = json.loads(picture.info["mentor"])
    older = {name: value for name, value in about.items() if name != "precision"}
    older["sampling"] = {name: about["sampling"][name] for name in ("guidance", "guidance_images", "temperature")}
    older["sampling"] |= {"top_k": 0, "top_p": 1.0}
    picture.info["mentor"] = json.dumps(older)
    save_picture(picture, tmp_path / "x.png")
    assert is_finished(tmp_path / "x.png", about, overwrite=False)
    with pytest.raises(UserError, match=r"another picture \(precision differ\)"):
        is_finished(tmp_path / "x.png", about | {"precision": "bf16"}, overwrite=False)


def test_a_png_without_metadata_is_refused(reference: Path) -> None:
    with pytest.raises(UserError, match="no record of how it was made"):
        read_metadata(reference)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": "two <image> <image>"}, "2 <image> mark"),
        ({"prompt": "none"}, "0 <image> mark"),
        ({"num_images": 0}, "num_images 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"seed": -1}, "seed -1"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"guidance": -1.0}, "guidance"),
        ({"prompt": "<image> " + "many words " * 40}, "prefix tokens"),
    ],
)
def test_mistakes_get_one_clear_line(model: Model, reference: Path, arguments: dict, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        generate(model, **({"prompt": PROMPT, "images": [reference]} | arguments))
    assert "\n" not in str(caught.value)


def test_broken_and_missing_images_are_named(model: Model, tmp_path: Path, reference: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(reference.read_bytes()[:60])
    for path in (broken, tmp_path / "missing.png"):
        with pytest.raises(UserError, match=path.name):
            generate(model, PROMPT, [path])


def test_progress_counts_every_token(model: Model) -> None:
    calls: list[tuple[int, int]] = []
    generate(model, "a mug", num_images=2, on_step=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (32, 32) and len(calls) == 16


def test_progress_never_falls_where_several_tokens_are_tried_at_once(model: Model) -> None:
    calls: list[tuple[int, int]] = []
    generate(model, "a mug", num_images=5, batch_size=2, speculative=4, on_step=lambda *done: calls.append(done))
    assert calls[-1] == (5 * 16, 5 * 16) and [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_the_size_of_batches_changes_nothing_but_when_pictures_come(model: Model) -> None:
    together = generate(model, "a mug", num_images=5, seed=3)
    calls: list[tuple[int, int]] = []
    apart = generate(model, "a mug", num_images=5, seed=3, batch_size=2, on_step=lambda *done: calls.append(done))
    assert [p.tobytes() for p in apart] == [p.tobytes() for p in together]
    assert calls[-1] == (5 * 16, 5 * 16) and [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_what_is_drawn_later_shares_its_batch_with_those_it_would_have_shared_it_with(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plan(model, "a mug", (), 8, 0, 3, guidance=2.0)
    drawn = []
    watch_batches(monkeypatch, lambda config, batch: drawn.append([request.seed for request in batch]))
    calls: list[tuple[int, int]] = []
    later = dict(draw(job, {4, 7}, lambda *done: calls.append(done)))
    assert drawn == [[3, 4, 5], [6, 7]]
    assert calls[-1] == (5 * 16, 5 * 16)
    whole = generate(model, "a mug", num_images=8, batch_size=3)
    assert {seed: picture.tobytes() for seed, picture in later.items()} == {i: whole[i].tobytes() for i in (4, 7)}
