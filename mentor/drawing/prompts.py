"""The file of a batch job: one JSON object a line, all of them checked before anything is drawn."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image, UnidentifiedImageError
from pydantic import ConfigDict, Field

from mentor.config import Config, validate
from mentor.decoding.settings import SamplingConfig
from mentor.drawing.jobs import check_seeds, sampling_config
from mentor.drawing.model import Model, check_sampling
from mentor.errors import UserError
from mentor.types import parse_prompt

_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _Line(Config):
    """What a line may say; what it leaves out is as the command line has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str
    images: list[str] = Field(default_factory=list)
    num_images: int = Field(default=1, ge=1)
    seed: int | None = None
    name: str | None = None
    guidance: float = 1
    guidance_images: float | None = None
    guidance_interval: list[float] = Field(default_factory=list, min_length=2, max_length=2)
    temperature: float = 1
    top_k: int = 0
    top_p: float = 1
    sampler: str | None = None
    steps: int | None = None
    tokens_per_step: int | None = None


@dataclass(frozen=True, eq=False)
class PromptLine:
    """One line, checked.

    Attributes:
        place: file and line number, for messages.
        number: of the line, from 1.
        written: the images as the line names them.
        images: their files.
        seeds: one a picture.
        stem: begins the names of its pictures' files.
    """

    place: str
    number: int
    prompt: str
    written: tuple[str, ...]
    images: tuple[Path, ...]
    seeds: range
    stem: str
    sampling: SamplingConfig

    def file(self, seed: int) -> str:
        """The file name of one of its pictures."""
        return f"{self.stem}_{seed:06d}.png"


def read_prompts(path: Path, seed: int, sampling: Mapping[str, Any]) -> list[PromptLine]:
    """The lines of a prompt file, in order.

    Args:
        path: the file.
        seed: of lines without one.
        sampling: the settings of lines without their own.

    Raises:
        UserError: the file cannot be read, or a line is wrong, which is named by its number.
    """
    sampling_config(**sampling)  # so that a mistake on the command line is not blamed on a line
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"prompts {path} cannot be read ({error.strerror}): give a file of JSON lines") from error
    lines: list[PromptLine] = []
    stems: dict[str, int] = {}
    seen: set[Path] = set()
    for number, raw in enumerate(content.split(b"\n"), 1):
        # Editors on Windows begin files with a mark and end lines with one character more.
        text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not text.strip():
            continue
        place = f"{path} line {number}"
        try:
            line = _read_line(place, number, text, path.parent, seed, sampling)
            other = stems.setdefault(line.stem.casefold(), number)
            if other != number:
                raise UserError(
                    f"its pictures would be called {line.stem}, as those of line {other}: give another name"
                )
            for image in line.images:
                if image not in seen:
                    _check_image(image)
                    seen.add(image)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        lines.append(line)
    if not lines:
        raise UserError(f'prompts {path} has no line: write one JSON object a line, such as {{"prompt": "a red mug"}}')
    return lines


def check_lines(model: Model, lines: list[PromptLine]) -> Iterator[int]:
    """The prefix tokens of each line's prompt, all checked against what the model can do.

    Raises:
        UserError: a prompt does not fit, or asks for guidance that the model was not trained for; the line is named.
    """
    for line in lines:
        try:
            check_sampling(model, line.sampling)
            yield model.conditioner.count(parse_prompt(line.prompt, [torch.empty(0)] * len(line.images)))
        except UserError as error:
            raise UserError(f"{line.place}: {error}") from error


def _read_line(place: str, number: int, raw: bytes, folder: Path, seed: int, sampling: Mapping[str, Any]) -> PromptLine:
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
        json.dumps(data, ensure_ascii=False).encode()
    except UserError:
        raise
    except UnicodeEncodeError as error:
        raise UserError(f"has half a character ({error.object[error.start]!r}): write it whole") from error
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start + 1}): save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON ({error.msg} at column {error.colno}): write one JSON object a line") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON that can be read ({error}): write one JSON object a line") from error
    if not isinstance(data, dict):
        raise UserError(f'is no JSON object but {json.dumps(data)[:40]}: write {{"prompt": "..."}}')
    said = validate(_Line, data)
    own = {name: getattr(said, name) for name in SamplingConfig.model_fields if name in said.model_fields_set}
    first = seed if said.seed is None else said.seed
    check_seeds(first, said.num_images)
    if said.name is not None and not _STEM.fullmatch(said.name):
        raise UserError(
            f"name {said.name!r} begins the names of files: take up to 100 letters, digits and . _ -, no . in front"
        )
    if not parse_prompt(said.prompt, [torch.empty(0)] * len(said.images)):
        raise UserError("the prompt is empty: give some text, an image, or both")
    return PromptLine(
        place,
        number,
        said.prompt,
        tuple(said.images),
        tuple(folder / image for image in said.images),
        range(first, first + said.num_images),
        said.name or f"{number:06d}",
        sampling_config(**{**sampling, **own}),
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"has {twice!r} twice: leave one out")
    return dict(pairs)


def _no_number(text: str) -> NoReturn:
    raise UserError(f"has {text}, which is no number in JSON")


def _check_image(path: Path) -> None:
    """Nothing, where the file begins as an image does; whether it is whole shows when its turn comes."""
    try:
        with Image.open(path):
            pass
    except FileNotFoundError as error:
        raise UserError(f"no image file {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): give a whole PNG, JPEG or WebP file") from error
