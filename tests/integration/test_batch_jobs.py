"""Batch jobs: every picture once, one line each, whatever ends a job and however many processes go on with it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from batchjobs import Draw, check_whole, drawing_with, lines, pictures, times, watch_batches, write
from PIL import Image
from tiny import save_tiny_releases

from mentor.drawing import batch
from mentor.drawing.model import Model
from mentor.errors import UserError, run_main
from mentor.generate import main
from mentor.sampling import Request

ROOT = Path(__file__).resolve().parents[2]
# Two settings, references, several pictures a line, names, a blank line: 36 pictures.
LINES: tuple[dict[str, Any], ...] = (
    {"prompt": "a large red circle", "num_images": 12},
    {"prompt": "the ball in <image>", "images": ["red.png"], "num_images": 6, "seed": 7, "name": "ball"},
    {"prompt": "a blue square", "num_images": 12, "guidance": 1, "top_k": 5},
    {"prompt": "<image> on <image>", "images": ["red.png", "blue.png"], "num_images": 6},
)
COUNT = 36


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads, which on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_releases(tmp_path_factory.mktemp("releases")) / "model"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt file beside its images."""
    folder = tmp_path_factory.mktemp("prompts")
    for colour in ("red", "blue"):
        Image.new("RGB", (70, 64), colour).save(folder / f"{colour}.png")
    return write(folder / "prompts.jsonl", *LINES)


@pytest.fixture(scope="module")
def draw(release: Path) -> Draw:
    return drawing_with(release)


@pytest.fixture(scope="module")
def whole(draw: Draw, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The pictures of a job that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    draw(prompts, folder)
    return pictures(folder)


@pytest.fixture
def start(release: Path, prompts: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the job in a process of its own."""

    def start(output: Path, *options: str, rank: int = 0, world: int = 1, **rest: Any) -> subprocess.Popen[str]:
        arguments = [
            "--prompts",
            prompts,
            "--model",
            release,
            "--output",
            output,
            "--batch-size",
            "2",
            "--precision",
            "fp32",
            *options,
        ]
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        environment["OMP_NUM_THREADS"] = "1"
        if world > 1:
            environment |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | rest
        command = [sys.executable, "-m", "mentor.generate", *map(str, arguments)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **streams)

    return start


def wait_for(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.png"))) < count and time.monotonic() < deadline:
        time.sleep(0.001)


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", world)):
        monkeypatch.setenv(name, str(value))


def test_a_job_draws_what_its_lines_ask_for(
    draw: Draw, prompts: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(prompts, tmp_path / "out", "--guidance", "2.0")
    said = capsys.readouterr()
    check_whole(tmp_path / "out", whole)
    names = [f"000001_{seed:06d}.png" for seed in range(12)] + [f"ball_{seed:06d}.png" for seed in range(7, 13)]
    names += [f"000005_{seed:06d}.png" for seed in range(12)] + [f"000007_{seed:06d}.png" for seed in range(6)]
    assert sorted(whole) == sorted(names)
    printed = [json.loads(line) for line in said.out.splitlines()]
    assert printed == lines(tmp_path / "out") and said.err == ""
    first = printed[0]
    assert set(first) == {"file", "line", "prompt", "seed", "sampling", "fingerprint", "precision", "seconds"}
    assert (first["line"], first["precision"], first["sampling"]["guidance"]) == (1, "fp32", 2.0)
    assert first["seconds"] > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} - set(whole) == {"job.json", "pictures.jsonl"}


def test_a_line_draws_what_the_same_prompt_alone_does(
    draw: Draw, release: Path, prompts: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    options = ["--image", str(prompts.parent / "red.png"), "--seed", "9", "--output", str(tmp_path)]
    main(["the ball in <image>", "--model", str(release), "--precision", "fp32", *options])
    assert (tmp_path / "000009.png").read_bytes() == whole["ball_000009.png"]
    main(["--from-png", str(tmp_path / "000009.png"), "--output", str(tmp_path / "again")])
    assert (tmp_path / "again" / "000009.png").read_bytes() == whole["ball_000009.png"]


def test_pictures_that_end_at_different_times_are_still_their_own(draw: Draw, prompts: Path, tmp_path: Path) -> None:
    """Where several tokens are tried at once, pictures end at different times."""
    draw(prompts, tmp_path / "out", "--speculative", "4")
    assert len(lines(tmp_path / "out")) == COUNT == len(pictures(tmp_path / "out"))
    before = pictures(tmp_path / "out")
    for name in sorted(before)[3:30:4]:
        (tmp_path / "out" / name).unlink()
    draw(prompts, tmp_path / "out", "--speculative", "4")
    check_whole(tmp_path / "out", before)


@pytest.mark.fault(19)
def test_a_killed_job_goes_on_with_nothing_done_twice_or_lost(
    start: Callable[..., subprocess.Popen[str]], whole: dict[str, bytes], tmp_path: Path
) -> None:
    killed = tmp_path / "out"
    with start(killed, stdout=subprocess.DEVNULL) as process:
        wait_for(killed, 9)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    finished, told = times(killed), lines_of_killed(killed)
    assert 9 <= len(finished) < COUNT
    assert len(finished) - 1 <= len(told) <= len(finished)
    with start(killed) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == f"{len(finished)} of {COUNT} pictures are there already\n"
    assert len(out.splitlines()) == COUNT - len(told)
    check_whole(killed, whole)
    assert {name: at for name, at in times(killed).items() if name in finished} == finished
    with start(killed) as process:
        out, err = process.communicate(timeout=120)
    assert (out, err) == ("", f"{COUNT} of {COUNT} pictures are there already\n")


def lines_of_killed(folder: Path) -> list[str]:
    """The whole lines of a job that was killed."""
    return (folder / "pictures.jsonl").read_bytes().decode().split("\n")[:-1]


@pytest.mark.fault(19)
def test_lines_that_a_kill_took_are_written_again_and_lost_pictures_drawn_again(
    draw: Draw, prompts: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    draw(prompts, tmp_path)
    path = tmp_path / "pictures.jsonl"
    *kept, without_line, half = path.read_text().splitlines()
    path.write_text("\n".join(kept) + "\n" + half[: len(half) // 2])
    (tmp_path / json.loads(kept[0])["file"]).unlink()
    before = times(tmp_path)
    draw(prompts, tmp_path)
    check_whole(tmp_path, whole)
    assert times(tmp_path) == before | {json.loads(kept[0])["file"]: times(tmp_path)[json.loads(kept[0])["file"]]}
    again = {line["file"]: line["seconds"] for line in lines(tmp_path)[-2:]}
    assert again == {json.loads(without_line)["file"]: None, json.loads(half)["file"]: None}


def test_two_processes_share_the_pictures(
    start: Callable[..., subprocess.Popen[str]], whole: dict[str, bytes], tmp_path: Path
) -> None:
    processes = [start(tmp_path, rank=rank, world=2) for rank in (0, 1)]
    for process in processes:
        _, err = process.communicate(timeout=240)
        assert (process.returncode, err) == (0, "")
    check_whole(tmp_path, whole)
    files = {path.name: path for path in tmp_path.glob("*.jsonl")}
    assert sorted(files) == ["pictures.rank-0000-of-0002.jsonl", "pictures.rank-0001-of-0002.jsonl"]
    assert [len(path.read_text().splitlines()) for path in files.values()] == [COUNT // 2] * 2


@pytest.mark.fault(19)
def test_another_number_of_processes_goes_on_with_the_job(
    draw: Draw,
    start: Callable[..., subprocess.Popen[str]],
    prompts: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with start(tmp_path, rank=1, world=2) as process:
        wait_for(tmp_path, 7)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with (tmp_path / "pictures.rank-0001-of-0002.jsonl").open("ab") as file:
        file.write(b'{"file": "half')
    finished = times(tmp_path)
    there = 0
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        draw(prompts, tmp_path)
        found = re.search(rf"process {rank} of 3: (\d+) of 12 pictures are there already", capsys.readouterr().err)
        there += int(found[1]) if found else 0
    assert there == len(finished)
    check_whole(tmp_path, whole)
    assert {name: at for name, at in times(tmp_path).items() if name in finished} == finished


def test_memory_that_runs_out_halves_the_batch(
    draw: Draw,
    prompts: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[int] = []

    def scarce(_: object, batch: list[Request]) -> None:
        asked.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory")

    watch_batches(monkeypatch, scarce)
    draw(prompts, tmp_path)
    check_whole(tmp_path, whole)
    assert asked == [4] + [2] * 18
    assert capsys.readouterr().err == "out of memory with 4 pictures at a time: going on with 2\n"


def test_pictures_of_equal_settings_are_drawn_together_and_references_encoded_once_a_line(
    draw: Draw, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []
    encoded: list[int] = []
    load = batch.plan_batch

    def listening(model: Model, *rest: Any) -> batch.BatchJob:
        encode = model.release.image_tokenizer.encode
        model.release.image_tokenizer.encode = lambda images: (encoded.append(len(images)), encode(images))[1]
        return load(model, *rest)

    watch_batches(monkeypatch, lambda config, pictures: asked.append((config.guidance, len(pictures))))
    monkeypatch.setattr("mentor.generate.plan_batch", listening)
    draw(prompts, tmp_path)
    assert asked == [(2.0, 4)] * 6 + [(1.0, 4)] * 3
    assert encoded == [1, 2]


def test_without_a_batch_size_memory_decides(
    draw: Draw, release: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    watch_batches(monkeypatch, lambda _, pictures: asked.append(len(pictures)))
    monkeypatch.setattr(batch, "fitting", lambda model, sampling, lengths, sharing: 13 if len(lengths) == 24 else 7)
    main(["--prompts", str(prompts), "--model", str(release), "--output", str(tmp_path)])
    assert asked == [13, 11, 7, 5]


def test_a_second_start_of_the_same_job_is_refused(
    start: Callable[..., subprocess.Popen[str]], draw: Draw, prompts: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with start(tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(tmp_path, 2)
        process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(UserError, match="another process draws this job at the moment"):
                draw(prompts, tmp_path)
        finally:
            process.send_signal(signal.SIGCONT)
    assert process.returncode == 0
    check_whole(tmp_path, whole)


@pytest.mark.fault(19)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_job_with_one_line_and_keeps_what_is_finished(
    start: Callable[..., subprocess.Popen[str]], whole: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    # Programs that a shell starts in the background ignore Ctrl-C, and so would those that they start.
    with start(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        wait_for(tmp_path, 5)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    found = re.fullmatch(r"stopped: (\d+) of 36 pictures are finished; the same command goes on\n", err)
    assert found, err
    assert len(pictures(tmp_path)) - 1 <= int(found[1]) == len(out.splitlines()) <= len(pictures(tmp_path)) < COUNT
    with start(tmp_path) as process:
        process.communicate(timeout=120)
    check_whole(tmp_path, whole)


@pytest.mark.fault(19)
def test_a_signal_ends_the_pictures_of_one_prompt_likewise(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["a red circle", "--model", str(release), "--output", str(tmp_path), "--num-images", "6"]
    calls: list[int] = []

    def stopping(_: object, batch: list[Request]) -> None:
        calls.append(len(batch))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    watch_batches(monkeypatch, stopping)
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: main([*arguments, "--batch-size", "2"]))
    assert ended.value.code == 143
    said = capsys.readouterr()
    assert said.err == "stopped: 4 of 6 pictures are finished; the same command with --resume goes on\n"
    assert len(said.out.splitlines()) == 4 == len(pictures(tmp_path))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    main([*arguments, "--resume"])
    assert len(pictures(tmp_path)) == 6


def test_the_bar_is_on_the_terminal_and_the_lines_are_in_the_file(
    start: Callable[..., subprocess.Popen[str]], whole: dict[str, bytes], tmp_path: Path
) -> None:
    reader, writer = os.openpty()
    with start(tmp_path, stderr=writer) as process:
        os.close(writer)
        shown = b""
        while True:
            try:
                shown += os.read(reader, 65536)
            except OSError:  # the other end is closed
                break
        out, _ = process.communicate()
    os.close(reader)
    assert [json.loads(line) for line in out.splitlines()] == lines(tmp_path)
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    assert re.search(r"drawing .*\d+ %, \d+ of 36 pictures, left:", text), text[:500]
    assert '"file"' not in text
