"""Drawing as a program does it: the first picture of a fresh process, memory over many calls, the share of a GPU."""

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.models import CAPTION, CAPTIONS, GUIDANCE, prefix_length, random_generator, size_config, text_condition
from benchmarks.rows import Row, single, timed
from mentor.conditioning import learn_material
from mentor.config import compose, validate
from mentor.models import CodeGenerator, build_generator
from mentor.models.checkpoint import Card, code_spec, save_generator
from mentor.models.decoder import Decoder
from mentor.models.packing import pack
from mentor.sampling import SamplingConfig, sample
from mentor.tokenizers import build_image_tokenizer
from mentor.training.config import AlignmentTraining, ImageTokenizerTraining, TrainConfig

TOOLS = Path(__file__).resolve().parent.parent
COLD_SECONDS = 4.0
MOST_GROWTH = 0.05
SHARES = {"xl": 0.6, "l": 0.35}


def cold_start(work: Path, rounds: int = 5) -> Row:
    """From the command line to the saved picture, with a model of the demo's sizes."""
    release, pictures = work / "decode" / "release", work / "decode" / "pictures"
    save_demo(release)
    command = [sys.executable, "-m", "mentor.generate", CAPTION, "--model", str(release), "--output", str(pictures)]

    def run() -> None:
        subprocess.run(command, cwd=TOOLS.parent, check=True, stdout=subprocess.DEVNULL)

    seconds = []
    try:
        for _ in range(rounds):
            seconds.append(timed(run))
            shutil.rmtree(pictures)
    finally:
        shutil.rmtree(work / "decode", ignore_errors=True)
    value = statistics.median(seconds)
    return Row(
        "cold start to the first saved picture, model of the demo's sizes",
        "",
        f"under {COLD_SECONDS:g} s",
        value,
        min(seconds),
        max(seconds),
        "s",
        value < COLD_SECONDS,
        f"python -m mentor.generate, wall time, {rounds} runs, precision auto, guidance 2",
    )


def save_demo(folder: Path) -> None:
    """Write a release folder with the sizes of the demo and random weights."""
    first = validate(TrainConfig, compose("train", ["stage=tokenizer", "experiment=demo"]))
    second = validate(TrainConfig, compose("train", ["stage=1", "experiment=demo"]))
    assert isinstance(first, ImageTokenizerTraining)
    assert isinstance(second, AlignmentTraining)
    torch.manual_seed(0)
    image_tokenizer = build_image_tokenizer(first.image_tokenizer).eval()
    size = second.data.image_size
    material = learn_material(second.conditioner, lambda: CAPTIONS * 2)
    codes = code_spec(image_tokenizer, size)
    generator = build_generator(second.generator, material, codes, image_tokenizer.codebook)
    save_generator(folder, generator.eval(), image_tokenizer, size, Card("benchmark"))


def memory(calls: int = 200, first: int = 50) -> Row:
    """How much a process grows that draws with ever other batches, guidance and lengths of prompts."""
    case = f"memory over {calls} calls of changing sizes"
    goal = f"under {MOST_GROWTH:.0%} more than after {first}"
    if not Path("/proc/self/statm").exists():
        return single(case, goal, 0.0, "%", None, "not measured: this system has no /proc")
    command = [sys.executable, "-m", "benchmarks.memory", str(calls), str(first)]
    done = subprocess.run(command, cwd=TOOLS, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    growth = found["last"] / found["first"] - 1
    megabytes = {name: f"{found[name] / 1e6:,.0f} MB" for name in found}
    note = f"{megabytes['first']} after {first}, {megabytes['last']} at the end, {megabytes['most']} at most"
    return single(case, goal, 100 * growth, "%", growth < MOST_GROWTH, f"{note}; batch 1 to 16, one process, fp32")


def roofline(rounds: int = 5) -> list[Row]:
    """How near drawing on a GPU comes to what its memory allows."""
    if not torch.cuda.is_available():
        note = "not measured: there is no GPU here; with one, this measures l and xl at batch 1 in bf16 with guidance"
        return [single("share of the memory's roofline on a GPU", "xl 60 %, l 35 %", 0.0, "%", None, note)]
    bandwidth = copy_bandwidth()
    rows = []
    for size, compiled in itertools.product(SHARES, (False, True)):
        least = SHARES[size]
        generator = random_generator(size_config(size))
        moved = picture_bytes(generator, rows=2, each=2)
        # One decoder for all rounds: what it has recorded is there for the next picture.
        decoder = Decoder(pack(generator.cuda(), "bf16"), compiled)
        config = SamplingConfig(guidance=GUIDANCE)
        seconds = []
        # The first two may capture graphs and choose kernels.
        for _ in range(2 + rounds):
            started = time.perf_counter()
            sample(decoder, text_condition(1), [0], config).cpu()
            seconds.append(time.perf_counter() - started)
        shares = [moved / bandwidth / taken for taken in seconds[2:]]
        value = statistics.median(shares)
        taken = statistics.median(seconds[2:])
        note = f"{taken:.3f} s a picture, {moved / 1e9:.0f} GB of weights and cache, {bandwidth / 1e9:,.0f} GB/s copied"
        rows.append(
            Row(
                f"{size}, batch 1, bf16, guidance{', compiled' * compiled}, {torch.cuda.get_device_name()}",
                "memory's roofline",
                f"at least {least:.0%}",
                100 * value,
                100 * min(shares),
                100 * max(shares),
                "%",
                value >= least,
                note,
            )
        )
    return rows


def copy_bandwidth(size: int = 4 << 30, rounds: int = 10) -> float:
    """Bytes a second, read and written, of the best of some copies within the GPU's memory."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size / min(seconds)


def picture_bytes(generator: CodeGenerator, rows: int, each: int) -> int:
    """Bytes that must be read for a picture: the weights once a token, and each row's keys and values so far.

    Args:
        generator: not packed.
        rows: sequences that are drawn together.
        each: bytes of a number.
    """
    backbone, tokens = generator.backbone, generator.spec.tokens
    weights = sum(weight.numel() for weight in backbone.parameters() if weight.dim() == 2)
    numbers = weights + generator.spec.vocab_size * backbone.config.width
    context = sum(prefix_length(generator) + done for done in range(tokens))
    stored = 2 * backbone.config.layers * backbone.kv_heads * backbone.head_width
    return each * (numbers * tokens + stored * context * rows)
