"""A release measured on held-out examples: seeded, each number beside its ceiling, chance and doing nothing.

Text-to-image and subject-driven generation use records on procedural backgrounds only, since those are what the scene
oracle can read; the other tasks use all held-out records that they can.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mentor.adapters import Place, attach, load_adapters
from mentor.conditioning import encode_condition
from mentor.data.examples import ExampleMaker, usable_positions
from mentor.data.order import Sample, permutation, seed_from
from mentor.data.storage.shards import ShardSet
from mentor.data.tensors import to_pixels, to_tensor
from mentor.data.transforms import fit_pixels
from mentor.errors import UserError
from mentor.evaluation.config import EvaluationConfig
from mentor.evaluation.judges import (
    GainJudge,
    Judge,
    LikenessJudge,
    MaskJudge,
    PromptJudge,
    SubjectJudge,
    readable,
    targets_of,
)
from mentor.evaluation.metrics import imbalance, product, psnr
from mentor.evaluation.oracles import Pixels, SceneOracle
from mentor.hub import fetch, spelled
from mentor.models import AnyGenerator, count_parameters
from mentor.models.checkpoint import load_generator, load_image_tokenizer, read_config
from mentor.sampling import SamplingConfig, sample
from mentor.tokenizers import ImageTokenizer
from mentor.types import Example, prompt_images, prompt_text

OnProgress = Callable[[str, int, int], None]

# Tasks whose answer a picture on a photograph cannot be judged by.
READ_BY_ORACLE = ("text_to_image", "subject")
# Tasks whose input, left as it is, would be an answer of sorts.
WITH_INPUT = ("segment", "recover", "subject")
# Scores that order cases and are no measure of their own.
ORDERING = ("lead",)


@dataclass(frozen=True)
class Contestant:
    """What is measured; `generator` is None when the release is an image tokenizer alone."""

    folder: Path
    image_tokenizer: ImageTokenizer
    generator: AnyGenerator | None
    image_size: int
    config: Mapping[str, Any]
    device: torch.device


@dataclass(frozen=True)
class Case:
    """One example with what the model drew; `scores` as the task's judge gave them, the headline first."""

    task: str
    key: str
    prompt: str
    reference: Pixels | None
    target: Pixels
    output: Pixels
    scores: Mapping[str, float]

    @property
    def order(self) -> tuple[float, ...]:
        """What cases are ranked by, the best highest: the headline (CP x PF for subjects), then what else there is."""
        scores = self.scores
        headline = scores["cp"] * scores["pf"] if "cp" in scores else next(iter(scores.values()))
        likeness = -float(np.square(self.output.astype(np.float32) - self.target).mean())
        return headline, *scores.values(), likeness


@dataclass(frozen=True)
class Results:
    """Flat `task/measure` keys with their values, and the cases of each task in order of drawing."""

    metrics: dict[str, float]
    cases: dict[str, list[Case]]


def load_contestant(folder: Path, device: str = "cpu", adapters: Sequence[Place] = ()) -> Contestant:
    """The release in a folder, a generator's or an image tokenizer's, ready to be measured.

    Args:
        folder: the release folder, or its name on the hub.
        device: where to measure.
        adapters: what is put on a generator.

    Raises:
        UserError: the folder is no release, the device is not there, or an adapter does not fit.
    """
    folder = fetch(folder)
    kind = read_config(folder)["kind"]
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}): take cpu or cuda") from error
    if kind == "generator":
        release = load_generator(folder)
        attach(release.generator, load_adapters(adapters, release, spelled(folder)))
        generator = release.generator.to(place)
        return Contestant(
            folder, release.image_tokenizer.to(place), generator, release.image_size, release.config, place
        )
    if adapters:
        raise UserError(f"{folder} holds an image tokenizer, which has no adapters: leave adapters out")
    config = read_config(folder)
    return Contestant(folder, load_image_tokenizer(folder).to(place), None, config["image_size"], config, place)


def evaluate(
    contestant: Contestant, shards: ShardSet, config: EvaluationConfig, on_progress: OnProgress | None = None
) -> Results:
    """Every measure of `contestant` on the held-out `shards`; of an image tokenizer alone those of the tokenizer.

    Raises:
        UserError: a task has no usable record, or a shard is damaged.
    """
    started = time.monotonic()
    report = on_progress or (lambda task, done, total: None)
    metrics: dict[str, float] = {}
    cases: dict[str, list[Case]] = {}
    if config.counts.tokenizer:
        metrics |= measure_tokenizer(contestant, shards, config, report)
    if contestant.generator is not None:
        scenes = SceneOracle(contestant.image_size)
        for task in config.tasks:
            examples = make_examples(task, shards, config, contestant.image_size)
            judge = make_judge(task, scenes, examples, config)
            measured, cases[task] = measure_task(contestant, task, examples, judge, config, report)
            metrics |= measured
    metrics["seconds/total"] = round(config.seconds_before + time.monotonic() - started, 1)
    return Results(metrics, cases)


@torch.inference_mode()
def measure_tokenizer(
    contestant: Contestant, shards: ShardSet, config: EvaluationConfig, report: OnProgress
) -> dict[str, float]:
    """PSNR of the round trip, and the share of all codes that the held-out pictures use at least once."""
    rows = [Sample(0, shard, position) for shard, count in enumerate(shards.counts) for position in range(count)]
    chosen = [rows[index] for index in permutation(len(rows), "tokenizer", config.seed)][: config.counts.tokenizer]
    counts = torch.zeros(contestant.image_tokenizer.vocab_size, dtype=torch.long)
    values: list[Tensor] = []
    for first in range(0, len(chosen), config.batch_size):
        part = chosen[first : first + config.batch_size]
        pictures = [shards.record(row.shard, row.position).image for row in part]
        images = torch.stack([to_tensor(fit_pixels(picture, contestant.image_size)) for picture in pictures])
        codes = contestant.image_tokenizer.encode(images.to(contestant.device))
        values.append(psnr(contestant.image_tokenizer.decode(codes.latents).cpu(), images))
        counts += torch.bincount(codes.ids.flatten().cpu(), minlength=len(counts))
        report("tokenizer", first + len(part), len(chosen))
    shares = counts[counts > 0].double() / counts.sum()
    return {
        "tokenizer/psnr": float(torch.cat(values).mean()),
        "tokenizer/usage": float((counts > 0).double().mean()),
        "tokenizer/perplexity": float(torch.exp(-(shares * shares.log()).sum())),
        "tokenizer/count": float(len(chosen)),
    }


def make_examples(task: str, shards: ShardSet, config: EvaluationConfig, image_size: int) -> list[Example]:
    """The task's held-out examples: a seeded choice, the same for every model at this picture size.

    Raises:
        UserError: no held-out record can be used.
    """
    usable = usable_positions(shards, [task])[task]
    rows = [Sample(0, shard, int(position)) for shard, positions in enumerate(usable) for position in positions]
    if task in READ_BY_ORACLE:
        rows = [row for row in rows if readable(shards.description(row.shard, row.position)["attributes"])]
        if not rows:
            raise UserError(
                f"no held-out record of {shards.root} is a scene on a background other than a photograph, which "
                f"{task} is judged by: evaluate other data or say counts.{task}=0"
            )
    chosen = [rows[index] for index in permutation(len(rows), "evaluate", config.seed, task)]
    maker = ExampleMaker(
        shards,
        config.seed,
        image_size,
        config.image_only,
        config.recover_min_scale,
        config.recover_distort,
        config.recover_distractors,
    )
    return [maker.example(task, row) for row in chosen[: getattr(config.counts, task)]]


def make_judge(task: str, scenes: SceneOracle, examples: Sequence[Example], config: EvaluationConfig) -> Judge:
    """Who scores the pictures of a task."""
    match task:
        case "reconstruct":
            return LikenessJudge()
        case "segment":
            return MaskJudge()
        case "text_to_image":
            return PromptJudge(scenes)
        case "recover":
            return GainJudge()
        case "subject":
            return SubjectJudge(scenes, examples, config.candidates, config.seed)
        case _:
            raise UserError(f"the task {task!r} has no judge: say counts.{task}=0")


def measure_task(
    contestant: Contestant,
    task: str,
    examples: Sequence[Example],
    judge: Judge,
    config: EvaluationConfig,
    report: OnProgress,
) -> tuple[dict[str, float], list[Case]]:
    """A task's measures, each with `_error` (standard error of the mean), and its cases.

    Beside a measure stand the same for the ground truth (`_truth`), its round trip through the image tokenizer
    (`_ceiling`), the ground truth of another example (`_chance`) and the input left as it is (`_nothing`).
    """
    outputs = draw(contestant, task, examples, config.sampling_of(task), config, report)
    targets = targets_of(examples)
    answers = {"": outputs, "_truth": targets, "_ceiling": round_trip(contestant, targets, config.batch_size)}
    if len(examples) > 1:
        answers["_chance"] = targets.roll(1, dims=0)
    if task in WITH_INPUT:
        answers["_nothing"] = torch.stack([prompt_images(example.prompt)[0] for example in examples])
    metrics: dict[str, float] = {f"{task}/count": float(len(examples))}
    own = judge(examples, outputs)
    for suffix, images in answers.items():
        scores = own if not suffix else judge(examples, images)
        means = {name: float(np.mean(values)) for name, values in scores.items() if name not in ORDERING}
        if task == "subject":
            means |= combine_subject(means)
        metrics |= {f"{task}/{name}{suffix}": value for name, value in means.items()}
    for name, values in own.items():
        if name not in ORDERING:
            metrics[f"{task}/{name}_error"] = float(np.std(values) / np.sqrt(len(values)))
    if task == "reconstruct":
        metrics["reconstruct/ceiling_psnr"] = metrics.pop("reconstruct/psnr_ceiling")
    if isinstance(judge, SubjectJudge):
        metrics["subject/candidates"] = float(judge.candidates)
    return metrics, make_cases(task, examples, outputs, own)


def combine_subject(means: Mapping[str, float]) -> dict[str, float]:
    """CP x PF, and how far the two are out of balance where that is defined."""
    combined = {"cp_pf": product(means["cp"], means["pf"])}
    balance = imbalance(means["cp"], means["pf"])
    return combined if balance is None else combined | {"imbalance": balance}


def make_cases(
    task: str, examples: Sequence[Example], outputs: Float[Tensor, "b c y x"], scores: Mapping[str, np.ndarray]
) -> list[Case]:
    """The examples with their outputs and scores, for looking at."""
    cases = []
    for index, (example, output) in enumerate(zip(examples, outputs, strict=True)):
        images = prompt_images(example.prompt)
        cases.append(
            Case(
                task=task,
                key=example.key,
                prompt=prompt_text(example.prompt),
                reference=to_pixels(images[0]) if images else None,
                target=to_pixels(example.target),
                output=to_pixels(output),
                scores={name: float(values[index]) for name, values in scores.items()},
            )
        )
    return cases


@torch.inference_mode()
def draw(
    contestant: Contestant,
    task: str,
    examples: Sequence[Example],
    sampling: SamplingConfig,
    config: EvaluationConfig,
    report: OnProgress,
) -> Float[Tensor, "b c y x"]:
    """What the generator answers, a picture for each example; each depends on its own seed alone."""
    generator, image_tokenizer = contestant.generator, contestant.image_tokenizer
    assert generator is not None
    parts = []
    for first in range(0, len(examples), config.batch_size):
        batch = examples[first : first + config.batch_size]
        prompts = [example.prompt for example in batch]
        needed = generator.conditioner.reads_codes
        condition = encode_condition(prompts, image_tokenizer.encode, contestant.device, needed)
        seeds = [seed_from("draw", config.seed, task, example.key) % 2**63 for example in batch]
        drawn = sample(generator, condition, seeds, sampling)
        parts.append(image_tokenizer.picture(drawn, generator.draws == "quantised").float().cpu())
        report(task, first + len(batch), len(examples))
    return torch.cat(parts)


@torch.inference_mode()
def round_trip(contestant: Contestant, images: Float[Tensor, "b c y x"], batch_size: int) -> Float[Tensor, "b c y x"]:
    """The images through the image tokenizer and back: the best that any generator of its codes can draw."""
    tokenizer = contestant.image_tokenizer
    parts = [
        tokenizer.decode(tokenizer.encode(part.to(contestant.device)).latents) for part in images.split(batch_size)
    ]
    return torch.cat(parts).float().cpu()


def parameters_by_part(contestant: Contestant) -> dict[str, int]:
    """Parameters of the image tokenizer and of each part of the generator."""
    parts = {"image tokenizer": count_parameters(contestant.image_tokenizer)["total"]}
    if contestant.generator is not None:
        counted = count_parameters(contestant.generator)
        parts |= {f"generator: {name}": count for name, count in counted.items()}
    return parts
