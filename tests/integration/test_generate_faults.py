"""Drawing that is killed, refused a place or out of room: no half picture, nothing lost, and it goes on."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batchjobs import watch_batches
from PIL import Image
from tiny import save_tiny_releases

from mentor.data.pictures import read_metadata
from mentor.errors import UserError, run_main
from mentor.generate import main

pytestmark = pytest.mark.fault(19)
ROOT = Path(__file__).resolve().parents[2]
COUNT = 60
PROMPT = "a large red circle"
JOB = (PROMPT, "--batch-size", "2", "--num-images", str(COUNT))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_releases(tmp_path_factory.mktemp("releases")) / "model"


@pytest.fixture(scope="module")
def draw(release: Path) -> Callable[..., None]:
    """The command line with the tiny release, in this process."""
    return lambda output, *options: main([*options, "--model", str(release), "--output", str(output)])


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def full_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """From now on files take `room` bytes more in all; the byte after that meets a full disk."""
    left = room

    class Filling(io.BytesIO):
        def __init__(self, file: io.BufferedWriter) -> None:
            super().__init__()
            self.file = file

        def write(self, data: bytes) -> int:  # type: ignore[override]
            nonlocal left
            self.file.write(bytes(data)[:left])
            left -= len(data)
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return len(data)

        def fileno(self) -> int:
            return self.file.fileno()

        def flush(self) -> None:
            self.file.flush()

        def close(self) -> None:
            self.file.close()

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", **rest: Filling(opened(path, mode)) if mode == "wb" else opened(path, mode)
    )


def test_a_killed_job_goes_on_and_ends_with_the_bytes_of_an_uninterrupted_one(
    draw: Callable[..., None], release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "whole", *JOB)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "mentor.generate", *JOB, "--model", str(release), "--output", str(killed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(list(killed.glob("*.png"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.png")}
    assert 5 <= len(finished) < COUNT
    # The batch that was interrupted has one picture of two.
    odd = sorted(finished)[-1]
    if len(finished) % 2 == 0:
        (killed / odd).unlink()
        del finished[odd]
    capsys.readouterr()
    draw(killed, *JOB, "--resume")
    said = capsys.readouterr()
    assert pictures(killed) == pictures(tmp_path / "whole")
    assert {name: (killed / name).stat().st_mtime_ns for name in finished} == finished
    assert f"{len(finished)} of {COUNT} pictures are there already" in said.err
    assert len(said.out.splitlines()) == COUNT - len(finished)


def test_pictures_are_written_as_soon_as_their_batch_is_drawn(
    draw: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    watch_batches(monkeypatch, lambda *_: seen.append(len(list(tmp_path.glob("*.png")))))
    draw(tmp_path, PROMPT, "--batch-size", "3", "--num-images", "7")
    assert seen == [0, 3, 6]


def test_a_finished_job_draws_nothing_when_it_goes_on(
    draw: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path, PROMPT, "--num-images", "2", "--grid")
    before = pictures(tmp_path)
    (tmp_path / "grid.png").unlink()
    monkeypatch.setattr("mentor.drawing.codes.stream", lambda *_, **__: pytest.fail("drew"))
    capsys.readouterr()
    draw(tmp_path, PROMPT, "--num-images", "2", "--grid", "--resume")
    assert pictures(tmp_path) == before, "the grid is made of the files"
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "grid.png")]


def test_without_resume_all_is_drawn_again(draw: Callable[..., None], tmp_path: Path) -> None:
    draw(tmp_path, PROMPT)
    before = pictures(tmp_path)
    os.utime(tmp_path / "000000.png", ns=(1, 1))
    draw(tmp_path, PROMPT)
    assert pictures(tmp_path) == before
    assert (tmp_path / "000000.png").stat().st_mtime_ns > 1


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        (("a blue square",), "prompt"),
        ((PROMPT, "--guidance", "1.5"), "sampling"),
        ((f"{PROMPT} <image>", "--image", "red.png"), "prompt, images"),
    ],
)
@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_another_picture_of_the_same_name_is_refused_by_name_before_anything_is_drawn(
    draw: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    differing: str,
    resume: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("red.png")
    draw("out", PROMPT, "--seed", "1")
    before = pictures(tmp_path / "out")
    with pytest.raises(UserError, match=rf"out/000001.png is another picture \({differing} differ\).*--overwrite"):
        draw("out", *options, "--num-images", "2", *resume)
    assert pictures(tmp_path / "out") == before
    draw("out", *options, "--num-images", "2", *resume, "--overwrite")
    assert len(pictures(tmp_path / "out")) == 2
    assert pictures(tmp_path / "out")["000001.png"] != before["000001.png"]
    assert read_metadata(tmp_path / "out" / "000001.png")["prompt"] == options[0]


def test_a_picture_of_other_weights_is_refused(draw: Callable[..., None], tmp_path: Path) -> None:
    draw(tmp_path / "out", PROMPT)
    other = save_tiny_releases(tmp_path / "other", codes=16) / "model"
    with pytest.raises(UserError, match=r"000000.png is another picture \(fingerprint differ\)"):
        main([PROMPT, "--model", str(other), "--output", str(tmp_path / "out"), "--resume"])


@pytest.mark.parametrize("damage", ["cut", "empty", "not ours", "a folder"])
def test_what_is_no_whole_picture_of_ours_is_never_taken_for_finished(
    draw: Callable[..., None], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "000000.png"
    draw(tmp_path, PROMPT)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-200])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "not ours":
        Image.new("RGB", (64, 64)).save(path)
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(UserError, match=r"000000.png .*would be lost: choose another --output, or say --overwrite"):
        draw(tmp_path, PROMPT, "--resume")
    if damage == "a folder":
        with pytest.raises(UserError, match=r"cannot write .*000000.png"):
            draw(tmp_path, PROMPT, "--resume", "--overwrite")
    else:
        draw(tmp_path, PROMPT, "--resume", "--overwrite")
        assert path.read_bytes() == whole
    assert [one.name for one in tmp_path.iterdir()] == ["000000.png"]


def test_a_full_disk_leaves_whole_pictures_only_and_the_job_goes_on_later(
    draw: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (PROMPT, "--num-images", "6", "--batch-size", "2")
    draw(tmp_path / "whole", *options)
    sizes = [len(content) for _, content in sorted(pictures(tmp_path / "whole").items())]
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        full_disk(patch, sum(sizes[:3]) + sizes[3] // 2)
        with pytest.raises(SystemExit) as ended:
            run_main(lambda: draw(tmp_path / "full", *options))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"cannot write {tmp_path}/full/000003.png (No space left on device)" in said
    assert sorted(pictures(tmp_path / "full")) == ["000000.png", "000001.png", "000002.png"]
    draw(tmp_path / "full", *options, "--resume")
    assert pictures(tmp_path / "full") == pictures(tmp_path / "whole")


def test_a_disk_that_turns_read_only_is_named(
    draw: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))

    monkeypatch.setattr("mentor.data.pictures.os.replace", refuse)
    with pytest.raises(UserError, match=r"cannot write .*000000.png \(Read-only file system\): choose a folder"):
        draw(tmp_path, PROMPT)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_refused_before_the_model_is_opened(
    draw: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mentor.errors.os.access", lambda *_: False)
    monkeypatch.setattr("mentor.generate.load", lambda *_: pytest.fail("opened the model"))
    with pytest.raises(UserError, match="no permission in"):
        draw(tmp_path / "out", PROMPT)


def test_half_pictures_of_killed_processes_go_and_those_of_living_ones_stay(
    draw: Callable[..., None], tmp_path: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    kept = [f"000000.png.{os.getppid()}.partial", "000000.png.mine.partial", "notes.partial"]
    for name in (*kept, f"000000.png.{ended.pid}.partial"):
        (tmp_path / name).write_bytes(b"half")
    draw(tmp_path, PROMPT)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["000000.png", *kept])


def test_making_a_picture_again_does_not_replace_another_one(draw: Callable[..., None], tmp_path: Path) -> None:
    draw(tmp_path / "red", PROMPT)
    draw(tmp_path / "blue", "a blue square")
    before = pictures(tmp_path / "blue")
    again = ["--from-png", str(tmp_path / "red" / "000000.png"), "--output", str(tmp_path / "blue")]
    with pytest.raises(UserError, match=r"blue/000000.png is another picture \(prompt differ\)"):
        main(again)
    assert pictures(tmp_path / "blue") == before
    main([*again, "--overwrite"])
    assert pictures(tmp_path / "blue") == pictures(tmp_path / "red")


def test_the_metadata_of_many_large_references_can_be_read_back(tmp_path: Path) -> None:
    from mentor.data.pictures import encode_png, save_picture

    noise = [encode_png(Image.frombytes("RGB", (512, 512), os.urandom(512 * 512 * 3))) for _ in range(2)]
    about = {"prompt": "x", "sampling": {}, "seed": 0, "images": noise, "model": "m", "fingerprint": "f"}
    picture = Image.new("RGB", (8, 8))
    picture.info["mentor"] = json.dumps(about)
    save_picture(picture, tmp_path / "x.png")
    found = read_metadata(tmp_path / "x.png")
    assert found["images"] == noise and found["precision"] == "fp32", "the rest is as older pictures leave it unsaid"
