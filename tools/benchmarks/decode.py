"""Decoding: pictures of ours against transformers, bare products and doing without a cache, and what precision costs.

A case is drawn by everyone in turn, round by round, on one thread. All of a picture counts, prompt and draws included.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.models import CAPTIONS, GRID, draw_pictures, prefix_length, random_generator, size_config
from benchmarks.peers import Llama, Products, uncached_difference, uncached_seconds
from benchmarks.rows import Row, ratio, single, timed
from benchmarks.serving import cold_start, memory, roofline
from mentor.conditioning import Condition
from mentor.errors import UserError
from mentor.models import CodeGenerator
from mentor.models.checkpoint import load_generator
from mentor.models.packing import pack
from mentor.nn.packed import Precision
from mentor.sampling import SamplingConfig, sample
from mentor.types import TextSegment

TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOKENS = GRID[0] * GRID[1]
CACHES = ("hf dynamic", "hf static")
LOOP = "hf loop"
LONG = 15.0
NEAR = 1e-4


@dataclass(frozen=True)
class Case:
    """What is drawn.

    Attributes:
        size: a file of configs/backbone.
        batch: pictures at a time.
        precision: ours and, but for int8, the peer's.
        guided: with guidance, two rows a picture.
    """

    size: str
    batch: int
    precision: Precision
    guided: bool

    def __str__(self) -> str:
        peer = " (peer fp32)" if self.precision == "int8" else ""
        return f"{self.size}, batch {self.batch}, {self.precision}{peer}, {'' if self.guided else 'no '}guidance"

    def goal(self, peer: str) -> float | None:
        """The least ratio that was asked for; None where the row is only reported."""
        plain, guided = None, None
        match peer, self.size, self.precision:
            case "hf", "b", "int8":
                plain, guided = 3.0, 6.0
            case "hf", "b", _:
                plain, guided = (1.2, 2.3) if self.batch == 1 else (1.5, 2.2)
            case "hf", "tiny", _:
                plain, guided = 1.5, 2.2
            case "products", "b", "fp32":
                plain, guided = 0.8, 1.2 if self.batch == 1 else None
        return guided if self.guided else plain


def measure_decode(work: Path, quick: bool, model: Path | None = None) -> list[Row]:
    """All rows; `model` is a release folder, for what precision costs a trained model."""
    rows: list[Row] = []

    def add(*new: Row) -> None:
        rows.extend(new)
        for row in new:
            told = f"{row.case} {row.peer}: {row.value:,.4g} {row.unit} (goal: {row.goal}; {row.note})"
            Console(stderr=True).print(told, highlight=False)

    tokens, rounds = (64, 2) if quick else (TOKENS, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        add(*quality(model, "tiny" if quick else "b"))
        for size, batches in {"tiny": (1, 4, 16), "b": (1,) if quick else (1, 4, 16)}.items():
            for precision in TYPES:
                rivals = Rivals(size, precision)
                for batch in batches:
                    for guided in (False, True):
                        add(*rivals.compare(batch, guided, tokens, rounds))
            add(*uncached(size, rounds))
        add(*roofline())
        add(memory())
        add(cold_start(work))
    finally:
        torch.set_num_threads(threads)
    return rows


class Rivals:
    """Ours and the peers at one size and precision.

    Args:
        size: a file of configs/backbone.
        precision: of the peers; beside fp32, b is also drawn in int8.
    """

    def __init__(self, size: str, precision: Precision) -> None:
        self.size = size
        self.precision: Precision = precision
        backbone = size_config(size)
        generator = random_generator(backbone)
        prefix = prefix_length(generator)
        self.small = pack(copy.deepcopy(generator), "int8") if (size, precision) == ("b", "fp32") else None
        self.ours = pack(generator, precision)
        self.llama = Llama(backbone, prefix, TYPES[precision])
        self.products = Products(backbone) if precision == "fp32" else None

    def compare(self, batch: int, guided: bool, tokens: int, rounds: int) -> list[Row]:
        """The rows of one batch size, with or without guidance."""
        case = Case(self.size, batch, self.precision, guided)
        small = Case(self.size, batch, "int8", guided)
        seconds = contest(self.entrants(batch, guided), tokens, rounds)
        ours = seconds["ours"]
        fastest, other = sorted(CACHES, key=lambda name: seconds[name][0])
        length = "" if tokens == TOKENS else f"{tokens} tokens, not {TOKENS}"
        told = f"{fastest.removeprefix('hf ')} cache; the other took {seconds[other][0]:.2f} s"
        told = "; ".join(part for part in (told, length) if part)
        theirs = seconds[fastest]
        rows = [ratio(str(case), "hf", case.goal("hf"), ours, theirs, told)]
        if "ours int8" in seconds:
            rows.append(ratio(str(small), "hf", small.goal("hf"), seconds["ours int8"], theirs, told))
        for peer in ("products", LOOP):
            if peer in seconds:
                known = seconds[peer]
                rows.append(ratio(str(case), peer, case.goal(peer), ours[: len(known)], known, length))
        return rows

    def entrants(self, batch: int, guided: bool) -> dict[str, Callable[[int], None]]:
        """Who draws, by name; each is called with the number of tokens."""
        ours, small, llama, products = self.ours, self.small, self.llama, self.products
        named: dict[str, Callable[[int], None]] = {"ours": lambda tokens: draw_pictures(ours, batch, guided, tokens)}
        if small is not None and batch == 1:
            named["ours int8"] = lambda tokens: draw_pictures(small, batch, guided, tokens)
        named["hf dynamic"] = lambda tokens: llama.generate(batch, guided, False, tokens)
        named["hf static"] = lambda tokens: llama.generate(batch, guided, True, tokens)
        if guided:
            named[LOOP] = lambda tokens: llama.loop(batch, tokens)
        if products is not None:
            named["products"] = lambda tokens: products.run(2 * batch if guided else batch, tokens)
        return named


def contest(entrants: Mapping[str, Callable[[int], None]], tokens: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of everyone, round by round in turn, after a row of the grid to warm up.

    After the first round the slower of the two caches of `generate` is out, and so is a loop that takes long.
    """
    for draw in entrants.values():
        draw(GRID[1])
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    running = list(entrants)
    for number in range(rounds):
        # Whoever begins has the colder caches.
        for name in reversed(running) if number % 2 else running:
            seconds[name].append(timed(partial(entrants[name], tokens)))
        if number == 0:
            running.remove(max(CACHES, key=lambda name: seconds[name][0]))
            if LOOP in running and seconds[LOOP][0] > LONG:
                running.remove(LOOP)
    return seconds


def uncached(size: str, rounds: int) -> list[Row]:
    """One picture with the cache against running the model over the whole sequence anew for each token."""
    plain = random_generator(size_config(size))
    cached = pack(copy.deepcopy(plain), "fp32")
    rows = []
    for guided in (False, True):
        case = Case(size, 1, "fp32", guided)
        difference = uncached_difference(cached, plain, guided)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(timed(partial(draw_pictures, cached, 1, guided, TOKENS)))
            theirs.append(uncached_seconds(plain, guided))
        note = f"peer: 9 of the {TOKENS} tokens timed and integrated; logits differ by {difference:.1e} at most"
        rows.append(ratio(str(case), "uncached", 8.0, ours, theirs, note))
        rows.append(
            single(f"{case}, largest difference of logits to uncached", "1e-4", difference, "", difference <= NEAR)
        )
    return rows


@torch.inference_mode()
def quality(model: Path | None, size: str) -> list[Row]:
    """What bf16 and int8 change of the predictions of fp32, for tokens that fp32 has drawn."""
    if model is None:
        generator, about = random_generator(size_config(size)), f"random weights of size {size}: no measure of quality"
    else:
        generator, about = load_generator(model).generator, f"the model in {model}"
    if not isinstance(generator, CodeGenerator):
        raise UserError(
            f"{model} draws latents, and what precisions change is measured of codes: give a model of codes"
        )
    condition = Condition([(TextSegment(caption),) for caption in CAPTIONS], None)
    ids = sample(generator, condition, range(len(CAPTIONS)), SamplingConfig())
    exact = log_probabilities(generator, condition, ids)
    rows = []
    precisions: tuple[Precision, ...] = ("bf16", "int8")
    for precision in precisions:
        found = log_probabilities(pack(copy.deepcopy(generator), precision), condition, ids)
        divergence = (exact.exp() * (exact - found)).sum(dim=-1).mean().item()
        same = (exact.argmax(dim=-1) == found.argmax(dim=-1)).float().mean().item()
        note = f"{ids.numel()} tokens of {len(CAPTIONS)} pictures; {about}"
        rows.append(single(f"quality, {precision}: mean KL(fp32 || {precision})", "-", divergence, "nats", None, note))
        rows.append(single(f"quality, {precision}: same first choice as fp32", "-", 100 * same, "%", None, note))
    return rows


def log_probabilities(generator: CodeGenerator, condition: Condition, ids: torch.Tensor) -> torch.Tensor:
    """Logarithms of the probabilities of every token, given those before."""
    return generator(condition, ids).float().log_softmax(dim=-1)
