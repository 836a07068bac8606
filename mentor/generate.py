"""Pictures from prompts of text and images: `load` and `generate` in Python, `python -m mentor.generate` outside."""

import argparse
import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from mentor.data.pictures import METADATA_KEY, is_finished, open_image, read_metadata, save_picture
from mentor.drawing.batch import plan_batch, run_batch
from mentor.drawing.jobs import BATCH_SIZE, Job, check_counts, draw, plan, run_job, sampling_config
from mentor.drawing.model import PRECISIONS, Model, load
from mentor.drawing.pictures import make_grid, to_picture, to_reference
from mentor.drawing.progress import Tally, ending_cleanly
from mentor.drawing.prompts import read_prompts
from mentor.drawing.ranks import find_rank
from mentor.errors import Arguments, UserError, check_output, run_main
from mentor.marks import IMAGE_MARK
from mentor.types import parse_prompt

__all__ = [
    "BATCH_SIZE",
    "Job",
    "Model",
    "draw",
    "generate",
    "load",
    "main",
    "make_grid",
    "open_image",
    "plan",
    "read_metadata",
    "regenerate",
    "sampling_config",
    "save_picture",
    "to_picture",
    "to_reference",
]

_SAMPLING = ("guidance", "guidance_images", "guidance_interval", "temperature", "top_k", "top_p", "speculative")
_SAMPLING += ("sampler", "steps", "tokens_per_step")


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
    batch_size: int | None = None,
    on_picture: Callable[[int, Image.Image], None] | None = None,
    preview_every: int = 0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    speculative: int = 0,
    sampler: str | None = None,
    steps: int | None = None,
    tokens_per_step: int | None = None,
) -> list[Image.Image]:
    """Pictures that follow the prompt, as RGB; picture i uses seed + i and comes out the same whatever `num_images` is.

    Args:
        model: from `load`.
        prompt: text with one `<image>` for each reference image, in order; `The acorn in <image>.` names a subject.
        images: reference pictures or their files; each is cropped to a centred square and scaled to the model's size.
        num_images: how many pictures.
        guidance: 1 follows the model as trained, 2 to 4 follows the prompt more closely.
        temperature: 0 draws greedily, 1 as the model predicts; of continuous tokens it scales the noise.
        top_k: draw from the k likeliest codes only; 0 is all.
        top_p: draw from the likeliest codes with this share of the probability; 1 is all.
        seed: seed of the first picture, 0 or more.
        guidance_images: a scale of its own for the reference images; None uses `guidance` for both.
        on_step: called with (tokens done, tokens in all), for progress bars.
        batch_size: pictures that are drawn at a time; None is 32, or fewer where memory is short.
        on_picture: called with (index of the picture, the picture so far, grey where nothing is drawn yet); not with
            `speculative`, nor where a model draws latents.
        preview_every: so many tokens of a picture lie between two calls of `on_picture`; 0 calls it never.
        guidance_interval: share of a picture's tokens, or of its way from noise, between which there is guidance.
        speculative: tokens that are tried at once; 0 is one after the other. The pictures of the seeds are others then,
            drawn from the same distribution.
        sampler: of models that denoise: euler, heun, dpm++, ddim or ddpm; None is the model's own.
        steps: of denoising a picture, or each continuous token; None is the model's own.
        tokens_per_step: of masked generation: tokens drawn at a time; None is the model's own.

    Raises:
        UserError: marks and images don't match, the prompt is too long, or a setting is out of range or means nothing
            to this kind of model.
    """
    if preview_every < 0:
        raise UserError(f"preview_every {preview_every} must be 0 (never) or more")
    settings = {"guidance": guidance, "guidance_images": guidance_images, "guidance_interval": guidance_interval}
    settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "speculative": speculative}
    settings |= {"sampler": sampler, "steps": steps, "tokens_per_step": tokens_per_step}
    job = plan(model, prompt, images, num_images, seed, batch_size, **settings)
    return [picture for _, picture in draw(job, job.seeds, on_step, on_picture, preview_every)]


def regenerate(path: Path, model: Model | None = None) -> Image.Image:
    """The picture that `path` holds, made again from its own metadata.

    Raises:
        UserError: the file has no metadata, or the model is another one than the picture's, or computes otherwise.
    """
    settings = read_metadata(path)
    model = model or load(settings["model"], precision=settings["precision"], adapters=_adapters(settings))
    if model.fingerprint != settings["fingerprint"]:
        raise UserError(
            f"{path} was made by model {settings['fingerprint']}, {model.name} is {model.fingerprint}: "
            f"give the folder of that model with --model, and its adapters, if it had any, with --adapter"
        )
    if model.precision != settings["precision"]:
        raise UserError(
            f"{path} was made in precision {settings['precision']}, the model is open in {model.precision}: "
            f"open it with that precision, or leave --precision out"
        )
    try:
        references = [Image.open(io.BytesIO(base64.b64decode(image))) for image in settings["images"]]
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise UserError(f"the reference images kept in {path} cannot be read ({error})") from error
    return generate(model, settings["prompt"], references, seed=settings["seed"], **settings["sampling"])[0]


def _adapters(settings: dict[str, Any]) -> list[tuple[str, float]]:
    """The adapters that a picture's metadata name."""
    return [(str(folder), float(strength)) for folder, strength in settings["adapters"]]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = Arguments(
        prog="python -m mentor.generate",
        description="Draw pictures that follow prompts of text and images.",
        epilog='Example: python -m mentor.generate "The mug in <image>. a large mug at the left on red stripes" '
        "--model runs/demo/2/release --image mug.png --output pictures --num-images 4 --grid",
    )
    add = parser.add_argument
    add("prompt", nargs="?", help=f"text with one {IMAGE_MARK} for each --image, in order")
    add("--prompts", type=Path, metavar="FILE", help="many prompts: one JSON object a line; the same command goes on")
    add("--model", help="release folder of a trained generator, or its name on the hub, OWNER/NAME")
    add("--revision", metavar="R", help="branch, tag or commit of a model of the hub (default: main)")
    on_top = "release folder of an adapter of that model, DIR or DIR=STRENGTH; may be repeated"
    add("--adapter", action="append", default=[], metavar="DIR", help=on_top)
    add("--image", type=Path, action="append", default=[], metavar="FILE", help="reference picture; may be repeated")
    add("--output", type=Path, default=Path("outputs"), metavar="DIR", help="folder for the PNGs (default: outputs)")
    add("--num-images", type=int, metavar="N", help="pictures to draw (default: 1)")
    close = "1 is none, 2 to 4 follows the prompt closer (default: 2)"
    add("--guidance", type=float, default=2.0, metavar="G", help=close)
    apart = "guidance of its own for the images (default: as --guidance)"
    add("--guidance-images", type=float, metavar="G", help=apart)
    part = "tokens with guidance, as shares of all (default: 0 1)"
    add("--guidance-interval", type=float, nargs=2, default=(0.0, 1.0), metavar=("FROM", "TO"), help=part)
    add("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (default: 1)")
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest codes; 0 is all (default: 0)")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest codes with share P (default: 1)")
    add("--seed", type=int, default=0, metavar="S", help="seed of the first picture, the next has S + 1 (default: 0)")
    add("--batch-size", type=int, metavar="N", help="pictures drawn at a time (default: as memory allows)")
    add("--precision", choices=PRECISIONS, default="auto", help="of the weights (default: auto, what suits the device)")
    add("--speculative", type=int, default=0, metavar="N", help="tokens tried at once; 0 is one by one (default: 0)")
    add("--sampler", metavar="NAME", help="of a diffusion model: euler, heun, dpm++, ddim, ddpm (default: its own)")
    add("--steps", type=int, metavar="N", help="of denoising a picture, or each of its tokens (default: the model's)")
    masked = "of masked generation: tokens drawn at a time (default: the model's)"
    add("--tokens-per-step", type=int, metavar="N", help=masked)
    add("--grid", action="store_true", help="also write grid.png with all pictures, in place of an earlier one")
    add("--resume", action="store_true", help="keep the pictures of this very call that are there, draw the others")
    add("--overwrite", action="store_true", help="replace other pictures of the same names, else they are refused")
    add("--from-png", type=Path, metavar="FILE", help="make the picture in FILE again from the metadata in it")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--compile", action="store_true", help="on a GPU: a minute at the first picture, for those who draw many")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: draw, write PNGs, say where they are."""
    options = parse_arguments(arguments)
    check_output(options.output)
    check_counts(options.num_images, options.batch_size)
    if options.prompts:
        _draw_prompts(options)
    elif options.from_png:
        _draw_again(options)
    else:
        _draw_prompt(options)


def _draw_prompt(options: argparse.Namespace) -> None:
    """The pictures of the prompt on the command line."""
    if options.prompt is None or options.model is None:
        raise UserError(
            "give a prompt and --model DIR (or --prompts FILE, or --from-png FILE); --help explains all options"
        )
    tally = Tally(again="the same command with --resume goes on")
    with ending_cleanly(tally):
        references = [open_image(path) for path in options.image]
        if len(references) != options.prompt.count(IMAGE_MARK):
            parse_prompt(options.prompt, [torch.empty(0)] * len(references))
        model = load(
            options.model, options.device, options.precision, options.compile, options.adapter, options.revision
        )
        sampling = {name: getattr(options, name) for name in _SAMPLING}
        count = options.num_images or 1
        job = plan(model, options.prompt, references, count, options.seed, options.batch_size, **sampling)
        run_job(job, options.output, options.resume, options.overwrite, options.grid, tally)


def _draw_prompts(options: argparse.Namespace) -> None:
    """This process's share of a prompt file's pictures."""
    given = {
        "a prompt": options.prompt is not None,
        "--image": options.image,
        "--num-images": options.num_images is not None,
        "--from-png": options.from_png,
        "--grid": options.grid,
    }
    unfit = [name for name, value in given.items() if value]
    if unfit:
        raise UserError(
            f"--prompts does not go with {', '.join(unfit)}: leave that out; a line of the file has "
            '"prompt", "images" and "num_images" of its own'
        )
    if options.model is None:
        raise UserError("--prompts needs --model DIR; --help explains all options")
    rank = find_rank()
    # Each process of a machine has an accelerator of its own.
    device = f"cuda:{rank.local}" if options.device == "cuda" and rank.world > 1 else options.device
    tally = Tally(rank.who)
    with ending_cleanly(tally):
        lines = read_prompts(options.prompts, options.seed, {name: getattr(options, name) for name in _SAMPLING})
        model = load(options.model, device, options.precision, options.compile, options.adapter, options.revision)
        job = plan_batch(model, lines, rank, options.batch_size)
        run_batch(job, options.output, options.overwrite, tally)


def _draw_again(options: argparse.Namespace) -> None:
    """The picture that a PNG tells of."""
    if options.prompt or options.image:
        raise UserError("--from-png takes prompt and images from the file: leave them out")
    settings = read_metadata(options.from_png)
    precision = settings["precision"] if options.precision == "auto" else options.precision
    adapters = options.adapter or _adapters(settings)
    place = options.model or settings["model"]
    model = load(place, options.device, precision, adapters=adapters, revision=options.revision)
    picture, path = regenerate(options.from_png, model), options.output / options.from_png.name
    is_finished(path, json.loads(picture.info[METADATA_KEY]), options.overwrite)
    save_picture(picture, path)
    print(path)


if __name__ == "__main__":
    run_main(main)
