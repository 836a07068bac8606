"""Pictures from a prompt of text and images: `load` and `generate` in Python, `python -m mentor.generate` outside."""

import argparse
import base64
import io
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mentor import __version__
from mentor.conditioning import encode_condition
from mentor.data.pictures import (
    METADATA_KEY,
    encode_png,
    is_finished,
    open_image,
    read_metadata,
    remove_leftovers,
    save_picture,
)
from mentor.errors import Arguments, UserError, check_output, run_main
from mentor.marks import IMAGE_MARK
from mentor.models.checkpoint import Release, load_generator
from mentor.sampling import SamplingConfig, sample
from mentor.types import Prompt, parse_prompt

BATCH_SIZE = 32


@dataclass(frozen=True)
class Model:
    """A release folder, opened: what `generate` draws with."""

    release: Release
    folder: Path
    device: torch.device

    @property
    def image_size(self) -> int:
        """Width and height of the pictures, in pixels."""
        return self.release.image_size


def load(folder: str | Path, device: str = "cpu") -> Model:
    """The model in a release folder, ready to draw.

    Raises:
        UserError: the folder is not the release of a generator, or the device is not there.
    """
    release = load_generator(Path(folder))
    try:
        place = torch.device(device)
        release.generator.to(place)
        release.image_tokenizer.to(place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}): take cpu or cuda") from error
    return Model(release, Path(folder), place)


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


def generate(
    model: Model,
    prompt: str,
    images: Sequence[Image.Image | str | Path] = (),
    num_images: int = 1,
    guidance: float = 2.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    guidance_images: float | None = None,
    on_step: Callable[[int, int], None] | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[Image.Image]:
    """Pictures that follow the prompt, as RGB; picture i uses seed + i and comes out the same whatever `num_images` is.

    Args:
        model: from `load`.
        prompt: text with one `<image>` for each reference image, in order; `The acorn in <image>.` names a subject.
        images: reference pictures or their files; each is cropped to a centred square and scaled to the model's size.
        num_images: how many pictures.
        guidance: 1 follows the model as trained, 2 to 4 follows the prompt more closely.
        temperature: 0 draws greedily, 1 as the model predicts.
        top_k: draw from the k likeliest codes only; 0 is all.
        top_p: draw from the likeliest codes with this share of the probability; 1 is all.
        seed: seed of the first picture, 0 or more.
        guidance_images: a scale of its own for the reference images; None uses `guidance` for both.
        on_step: called with (tokens done, tokens in all), for progress bars.
        batch_size: pictures that are drawn at a time.

    Raises:
        UserError: marks and images don't match, the prompt is too long, or a setting is out of range.
    """
    settings = {"guidance": guidance, "guidance_images": guidance_images, "temperature": temperature}
    job = plan(model, prompt, images, num_images, seed, batch_size, top_k=top_k, top_p=top_p, **settings)
    return [picture for _, picture in draw(job, job.seeds, on_step)]


def plan(
    model: Model,
    prompt: str,
    images: Sequence[Image.Image | str | Path],
    num_images: int,
    seed: int,
    batch_size: int,
    **sampling: Any,
) -> Job:
    """The job that `generate` does with the same arguments.

    Raises:
        UserError: as `generate` does.
    """
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    if not 0 <= seed < 2**63 - num_images:
        raise UserError(f"seed {seed} must be 0 or more and below 2^63")
    config = sampling_config(**sampling)
    pictures = [open_image(image) if isinstance(image, str | Path) else image for image in images]
    references = [to_reference(picture, model.image_size) for picture in pictures]
    parsed = parse_prompt(prompt, references)
    if not parsed:
        raise UserError("the prompt is empty: give some text, an image, or both")
    about = {"prompt": prompt, "sampling": config.model_dump(), "size": model.image_size}
    about |= {"model": str(model.folder), "fingerprint": model.release.fingerprint, "mentor": __version__}
    about["images"] = [encode_png(to_picture(reference)) for reference in references]
    return Job(model, parsed, config, about, range(seed, seed + num_images), batch_size)


@torch.inference_mode()
def draw(
    job: Job, wanted: Collection[int], on_step: Callable[[int, int], None] | None = None
) -> Iterator[tuple[int, Image.Image]]:
    """Seed and picture of those whose seeds are wanted, each as soon as its batch is drawn.

    Which pictures share a batch does not depend on what is wanted, so neither does the rounding of their numbers: what
    an interrupted job lacked comes out as it would have.
    """
    model, release, size = job.model, job.model.release, job.batch_size
    batches = [job.seeds[first : first + size] for first in range(0, len(job.seeds), size)]
    batches = [batch for batch in batches if any(seed in wanted for seed in batch)]
    done, total = 0, release_tokens(model) * sum(map(len, batches))
    for seeds in batches:
        condition = encode_condition([job.prompt] * len(seeds), release.image_tokenizer.encode, model.device)
        report = _scaled(on_step, done, len(seeds), total)
        ids = sample(release.generator, condition, seeds, job.sampling, on_step=report)
        done += release_tokens(model) * len(seeds)
        for seed, grid in zip(seeds, ids, strict=True):
            if seed in wanted:
                # One at a time: convolutions round differently in batches of different size, by up to one grey level.
                picture = to_picture(release.image_tokenizer.decode_ids(grid.unsqueeze(0))[0].cpu())
                picture.info[METADATA_KEY] = json.dumps(job.about | {"seed": seed}, ensure_ascii=False)
                yield seed, picture


def _scaled(
    on_step: Callable[[int, int], None] | None, done: int, pictures: int, total: int
) -> Callable[[int, int], None] | None:
    """`on_step` for one batch among several: counts the tokens of all its pictures after those of earlier batches."""
    return on_step and (lambda step, _: on_step(done + step * pictures, total))


def release_tokens(model: Model) -> int:
    """Image tokens of one picture."""
    return model.release.generator.spec.tokens


def sampling_config(**settings: Any) -> SamplingConfig:
    """The checked settings; what is out of range becomes a `UserError` of one line."""
    try:
        return SamplingConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {message}" if where else message) from error


def to_reference(picture: Image.Image, size: int) -> Float[Tensor, "c y x"]:
    """The picture as the model sees it: on white where transparent, centred square, `size` pixels, in [-1, 1]."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    square = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(square, dtype=np.float32))
    return rearrange(pixels / 127.5 - 1, "y x c -> c y x")


def to_picture(pixels: Float[Tensor, "c y x"]) -> Image.Image:
    """An RGB picture of pixels in [-1, 1]."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(rearrange(values, "c y x -> y x c").numpy())


def regenerate(path: Path, model: Model | None = None) -> Image.Image:
    """The picture that `path` holds, made again from its own metadata.

    Raises:
        UserError: the file has no metadata, or the model is another one than the picture's.
    """
    settings = read_metadata(path)
    model = model or load(settings["model"])
    if model.release.fingerprint != settings["fingerprint"]:
        raise UserError(
            f"{path} was made by model {settings['fingerprint']}, {model.folder} is {model.release.fingerprint}: "
            f"give the folder of that model with --model"
        )
    try:
        references = [Image.open(io.BytesIO(base64.b64decode(image))) for image in settings["images"]]
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise UserError(f"the reference images kept in {path} cannot be read ({error})") from error
    return generate(model, settings["prompt"], references, seed=settings["seed"], **settings["sampling"])[0]


def make_grid(pictures: Sequence[Image.Image], gap: int = 2) -> Image.Image:
    """The pictures side by side, in rows of nearly equal count, on white."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = Arguments(
        prog="python -m mentor.generate",
        description="Draw pictures that follow a prompt of text and images.",
        epilog='Example: python -m mentor.generate "The mug in <image>. a large mug at the left on red stripes" '
        "--model runs/demo/2/release --image mug.png --output pictures --num-images 4 --grid",
    )
    add = parser.add_argument
    add("prompt", nargs="?", help=f"text with one {IMAGE_MARK} for each --image, in order")
    add("--model", type=Path, help="release folder of a trained generator")
    add("--image", type=Path, action="append", default=[], metavar="FILE", help="reference picture; may be repeated")
    add("--output", type=Path, default=Path("outputs"), metavar="DIR", help="folder for the PNGs (default: outputs)")
    add("--num-images", type=int, default=1, metavar="N", help="pictures to draw (default: 1)")
    add(
        "--guidance",
        type=float,
        default=2.0,
        metavar="G",
        help="1 is none, 2 to 4 follows the prompt closer (default: 2)",
    )
    add(
        "--guidance-images", type=float, metavar="G", help="guidance of its own for the images (default: as --guidance)"
    )
    add("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (default: 1)")
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest codes; 0 is all (default: 0)")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest codes with share P (default: 1)")
    add("--seed", type=int, default=0, metavar="S", help="seed of the first picture, the next has S + 1 (default: 0)")
    add("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help="pictures drawn at a time (default: 32)")
    add("--grid", action="store_true", help="also write grid.png with all pictures, in place of an earlier one")
    add("--resume", action="store_true", help="keep the pictures of this very call that are there, draw the others")
    add("--overwrite", action="store_true", help="replace other pictures of the same names, else they are refused")
    add("--from-png", type=Path, metavar="FILE", help="make the picture in FILE again from the metadata in it")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: draw, write PNGs, say where they are."""
    options = parse_arguments(arguments)
    check_output(options.output)
    if options.from_png:
        if options.prompt or options.image:
            raise UserError("--from-png takes prompt and images from the file: leave them out")
        model = load(options.model, options.device) if options.model else None
        picture, path = regenerate(options.from_png, model), options.output / options.from_png.name
        is_finished(path, json.loads(picture.info[METADATA_KEY]), options.overwrite)
        save_picture(picture, path)
        print(path)
        return
    if options.prompt is None or options.model is None:
        raise UserError("give a prompt and --model DIR (or --from-png FILE); --help explains all options")
    references = [open_image(path) for path in options.image]
    if len(references) != options.prompt.count(IMAGE_MARK):
        parse_prompt(options.prompt, [torch.empty(0)] * len(references))
    model = load(options.model, options.device)
    names = ["num_images", "seed", "batch_size", "guidance", "guidance_images", "temperature", "top_k", "top_p"]
    job = plan(model, options.prompt, references, **{name: getattr(options, name) for name in names})
    for path in run_job(job, options.output, options.resume, options.overwrite, options.grid):
        print(path)


def run_job(job: Job, folder: Path, resume: bool, overwrite: bool, grid: bool) -> list[Path]:
    """Draw the pictures and write each as soon as it is there; the files, less those that were finished before.

    Raises:
        UserError: another picture has one of the names, before anything is drawn; or a file cannot be written.
    """
    paths = {seed: folder / f"{seed:06d}.png" for seed in job.seeds}
    there = {seed for seed, path in paths.items() if is_finished(path, job.about | {"seed": seed}, overwrite)}
    wanted = [seed for seed in job.seeds if not (resume and seed in there)]
    if len(wanted) < len(paths):
        print(f"{len(paths) - len(wanted)} of {len(paths)} pictures are there already", file=sys.stderr)
    remove_leftovers(folder)
    columns = (TextColumn("drawing"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("drawing")
        for seed, picture in draw(job, wanted, lambda done, total: progress.update(task, completed=done, total=total)):
            save_picture(picture, paths[seed])
    written = [paths[seed] for seed in wanted]
    if grid:
        written.append(folder / "grid.png")
        save_picture(make_grid([open_image(path) for path in paths.values()]), written[-1])
    return written


if __name__ == "__main__":
    run_main(main)
