"""Picture files: references that people give, and drawn pictures, which carry how they were made."""

import base64
import io
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, PngInfo

from mentor.data.storage.whole import PARTIAL, unwritable, whole_file
from mentor.errors import UserError

METADATA_KEY = "mentor"
# What a picture follows from, as its metadata call it. The model's folder and the version may be others.
CAUSES = ("prompt", "sampling", "size", "seed", "images", "fingerprint", "precision")
# What older pictures do not say of themselves.
UNSAID: dict[str, Any] = {"precision": "fp32", "adapters": []}
UNSAID_OF_SAMPLING: dict[str, Any] = {"guidance_interval": [0.0, 1.0], "speculative": 0}
UNSAID_OF_SAMPLING |= {"sampler": None, "steps": None, "tokens_per_step": None}
GIVE_OURS = "give a PNG that mentor.generate wrote"


def open_image(path: str | Path) -> Image.Image:
    """The picture in a file, turned as its EXIF data says.

    Raises:
        UserError: there is no such file, or it is no whole picture.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGBA" if picture.has_transparency_data else "RGB")
    except FileNotFoundError as error:
        raise UserError(f"no image file {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): give a whole PNG, JPEG or WebP file") from error


def encode_png(picture: Image.Image) -> str:
    """The picture's PNG bytes in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG with its metadata, whole or not at all.

    Raises:
        UserError: the place cannot be written.
    """
    info = PngInfo()
    if METADATA_KEY in picture.info:
        text = picture.info[METADATA_KEY]
        # Pillow refuses a file with more compressed text than this; many large references are more.
        info.add_itxt(METADATA_KEY, text, zip=len(text.encode()) < MAX_TEXT_CHUNK)
    try:
        with whole_file(path, str(os.getpid())) as file:
            picture.save(file, "PNG", pnginfo=info)
    except OSError as error:
        raise unwritable(path, error) from error


def remove_leftovers(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove half-written pictures of processes that are no more; those of others are their own business.

    Args:
        folder: where to look.
        names: files whose halves may go, where another machine's processes may be writing others; None is all.
    """
    for partial in folder.glob(f"*.png.*{PARTIAL}"):
        if names is not None and partial.name.rsplit(".", 2)[0] not in names:
            continue
        try:
            os.kill(int(partial.name.split(".")[-2]), 0)
        except ProcessLookupError:
            partial.unlink(missing_ok=True)
        except (ValueError, OverflowError, PermissionError):
            continue


def is_finished(path: Path, about: dict[str, Any], overwrite: bool) -> bool:
    """Whether `path` is the whole picture that the metadata `about` belong to; if not, it may be written.

    Raises:
        UserError: it is another picture, or none that can be read, and `overwrite` does not allow to replace it.
    """
    if not os.path.lexists(path):
        return False
    try:
        found = read_metadata(path)
        different = [name for name in CAUSES if found.get(name) != about[name]]
        if different:
            raise UserError(f"{path} is another picture ({', '.join(different)} differ)")
    except UserError as error:
        if overwrite:
            return False
        what = str(error).removesuffix(f": {GIVE_OURS}")
        raise UserError(f"{what} and would be lost: choose another --output, or say --overwrite") from error
    return True


def read_metadata(path: Path) -> dict[str, Any]:
    """What a generated PNG says of how it was made, with what older ones leave unsaid.

    Raises:
        UserError: the file is no picture, or no picture of ours.
    """
    try:
        with Image.open(path) as picture:
            text = getattr(picture, "text", {}).get(METADATA_KEY)
        settings = json.loads(text) if text else None
    except FileNotFoundError as error:
        raise UserError(f"no image file {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {GIVE_OURS}") from error
    wanted = {"prompt", "sampling", "seed", "images", "model", "fingerprint"}
    if not isinstance(settings, dict) or not wanted <= settings.keys() or not isinstance(settings["sampling"], dict):
        raise UserError(f"{path} has no record of how it was made: {GIVE_OURS}")
    return UNSAID | settings | {"sampling": UNSAID_OF_SAMPLING | settings["sampling"]}
