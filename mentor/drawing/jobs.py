"""The pictures of one prompt: planned, drawn, written."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import ValidationError

from mentor import __version__
from mentor.conditioning import Condition, encode_condition
from mentor.data.pictures import (
    METADATA_KEY,
    encode_png,
    is_finished,
    open_image,
    remove_leftovers,
    save_picture,
)
from mentor.decoding.settings import SamplingConfig
from mentor.drawing.loop import Room, Watcher, draw_all
from mentor.drawing.memory import fitting
from mentor.drawing.model import Model, check_sampling
from mentor.drawing.pictures import make_grid, to_picture, to_reference
from mentor.drawing.progress import Tally, drawing_bar
from mentor.errors import UserError
from mentor.hub import spelled
from mentor.sampling import Request
from mentor.types import Prompt, parse_prompt

BATCH_SIZE = 32
# One more than the largest seed.
SEEDS = 2**63


@dataclass(frozen=True)
class Job:
    """Pictures that are to be drawn, all checked.

    Attributes:
        about: what the metadata of every picture say, but for the seed.
        seeds: one a picture.
        batch_size: pictures that are drawn at a time.
    """

    model: Model
    prompt: Prompt
    sampling: SamplingConfig
    about: dict[str, Any]
    seeds: range
    batch_size: int

    def condition(self) -> Condition:
        """The prompt with its images encoded."""
        model = self.model
        encode, needed = model.release.image_tokenizer.encode, model.conditioner.reads_codes
        return encode_condition([self.prompt], encode, model.device, needed)

    def sign(self, picture: Image.Image, seed: int) -> None:
        """Write down in the picture how it was made."""
        picture.info[METADATA_KEY] = json.dumps(self.about | {"seed": seed}, ensure_ascii=False)


def plan(
    model: Model,
    prompt: str,
    images: Sequence[Image.Image | str | Path],
    num_images: int,
    seed: int,
    batch_size: int | None = None,
    **sampling: Any,
) -> Job:
    """The job that `generate` does with the same arguments.

    Raises:
        UserError: as `generate` does.
    """
    check_counts(num_images, batch_size)
    check_seeds(seed, num_images)
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is no UTF-8 text (character {error.start + 1}): type it anew") from error
    config = sampling_config(**sampling)
    check_sampling(model, config)
    pictures = [open_image(image) if isinstance(image, str | Path) else image for image in images]
    references = [to_reference(picture, model.image_size) for picture in pictures]
    parsed = parse_prompt(prompt, references)
    if not parsed:
        raise UserError("the prompt is empty: give some text, an image, or both")
    length = model.conditioner.count(parsed)
    about = {"prompt": prompt, "sampling": config.model_dump(mode="json"), "size": model.image_size}
    about |= {"model": model.name, "fingerprint": model.fingerprint, "mentor": __version__}
    if model.adapters:
        about["adapters"] = [[spelled(each.adapter.folder), each.strength] for each in model.adapters]
    about |= {"precision": model.precision, "images": [encode_png(to_picture(reference)) for reference in references]}
    size = batch_size or fitting(model, config, [length], BATCH_SIZE)
    return Job(model, parsed, config, about, range(seed, seed + num_images), size)


def check_counts(num_images: int | None, batch_size: int | None) -> None:
    """Nothing, where the counts can be.

    Raises:
        UserError: one is too small.
    """
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} must be at least 1")


def check_seeds(seed: int, count: int) -> None:
    """Nothing, where so many seeds from this one on can be.

    Raises:
        UserError: they cannot.
    """
    if not 0 <= seed < SEEDS - count:
        raise UserError(f"seed {seed} must be 0 or more and below 2^63")


def sampling_config(**settings: Any) -> SamplingConfig:
    """The checked settings; what is out of range becomes a `UserError` of one line."""
    for name, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} {value} must be a finite number")
    try:
        return SamplingConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {message}" if where else message) from error


@torch.inference_mode()
def draw(
    job: Job,
    wanted: Collection[int],
    on_step: Callable[[int, int], None] | None = None,
    on_picture: Callable[[int, Image.Image], None] | None = None,
    preview_every: int = 0,
) -> Iterator[tuple[int, Image.Image]]:
    """Seed and picture of those whose seeds are wanted, each as soon as it is drawn.

    Which pictures share a batch does not depend on what is wanted, so neither does the rounding of their numbers: what
    an interrupted job lacked comes out as it would have.

    Args:
        job: what to draw.
        wanted: seeds.
        on_step: called with (tokens done, tokens in all).
        on_picture: called with (index of the picture, the picture so far), every so many tokens.
        preview_every: so many.
    """
    size = job.batch_size
    batches = [job.seeds[first : first + size] for first in range(0, len(job.seeds), size)]
    batches = [batch for batch in batches if any(seed in wanted for seed in batch)]
    if not batches:
        return
    condition = job.condition()
    shown = on_picture and (lambda seed, picture: on_picture(seed - job.seeds[0], picture))
    watcher = Watcher[int](on_step, job.model.tokens * sum(map(len, batches)), shown, preview_every)
    room = Room(size)
    for batch in batches:
        drawn = draw_all(job.model, job.sampling, batch, lambda seed: Request(condition, seed), room, watcher)
        for seed, picture in drawn:
            if seed in wanted:
                job.sign(picture, seed)
                yield seed, picture


def run_job(job: Job, folder: Path, resume: bool, overwrite: bool, grid: bool, tally: Tally) -> None:
    """Draw the pictures, write each as soon as it is there, and say where, less those that were finished before.

    Args:
        job: what to draw.
        folder: where to.
        resume: whether to keep those that are there.
        overwrite: whether to replace other pictures of the same names.
        grid: whether to make a grid of all of them.
        tally: counts them.

    Raises:
        UserError: another picture has one of the names, before anything is drawn; or a file cannot be written.
    """
    paths = {seed: folder / f"{seed:06d}.png" for seed in job.seeds}
    there = {seed for seed, path in paths.items() if is_finished(path, job.about | {"seed": seed}, overwrite)}
    wanted = [seed for seed in job.seeds if not (resume and seed in there)]
    tally.start(len(paths) - len(wanted), len(paths))
    remove_leftovers(folder)
    with drawing_bar(tally) as bar:
        for seed, picture in draw(job, wanted, bar.step):
            save_picture(picture, paths[seed])
            bar.finish(str(paths[seed]))
    if grid:
        save_picture(make_grid([open_image(path) for path in paths.values()]), folder / "grid.png")
        print(folder / "grid.png")
