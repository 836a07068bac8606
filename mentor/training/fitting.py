"""Do the parts of a training fit each other? Asked of settings, sizes and names; no weights are needed."""

from collections.abc import Iterable, Mapping

import torch

from mentor.conditioning import Conditioner, ConditionerConfig, NativeConfig
from mentor.data.codes import codes_command
from mentor.data.packs import CodeLayout
from mentor.errors import UserError
from mentor.models import ARHeadConfig, DiTConfig, GeneratorConfig
from mentor.models.heads import HeadConfig
from mentor.training.folder import differences
from mentor.types import CodeSpec, ImageSegment

# Tasks whose prompts show no picture.
_WITHOUT_REFERENCE = {"text_to_image"}


def check_same(folder: str, theirs: Mapping[str, object], ours: Mapping[str, object], prefix: str = "") -> None:
    """Nothing, where the model in the release folder `init_from` has the parts that the settings describe.

    Args:
        folder: the release folder.
        theirs: its model's settings.
        ours: what this run says.
        prefix: of the settings' names, with a dot at its end.

    Raises:
        UserError: it has others.
    """
    if differing := differences(theirs, ours):
        named = "; ".join(f"{prefix}{one}" for one in differing[:5])
        raise UserError(f"init_from {folder} is another model ({named}): make the settings agree")


def check_head(stage: str, head: HeadConfig, label_smoothing: float) -> None:
    """Nothing, where the stage trains generators of this head, and the loss has what is asked of it.

    Raises:
        UserError: another stage does, or it has not.
    """
    diffusion = stage.startswith("diffusion")
    if isinstance(head, DiTConfig) != diffusion:
        # As the names of the stages begin.
        right = {"1": "diffusion", "2": "diffusion_2", "diffusion": "1", "diffusion_2": "2"}[stage]
        what = "an autoregressive model" if diffusion else "a diffusion transformer"
        raise UserError(f"stage={stage} does not train {what}: say stage={right}, or choose another model")
    if label_smoothing and not isinstance(head, ARHeadConfig):
        raise UserError(
            f"objective.label_smoothing={label_smoothing:g} spreads the probability of a code, and this model draws "
            "none: leave it out"
        )


def check_size(image_size: int, spec: CodeSpec, grid: tuple[int, int], factor: int) -> None:
    """Nothing, where pictures of this size have the grid of codes that the generator was made for.

    Args:
        image_size: of the data, in pixels.
        spec: of the codes that the image tokenizer makes of such pictures.
        grid: the generator's rows and columns.
        factor: pixels to a code's side.

    Raises:
        UserError: they have another one.
    """
    if spec.grid != grid:
        side = grid[0] * factor
        raise UserError(
            f"data.image_size {image_size} does not fit the generator, which was made for {side}: "
            f"say data.image_size={side}"
        )


def check_codes(codes: CodeLayout, places: str, fingerprint: str, spec: CodeSpec, generator: GeneratorConfig) -> None:
    """Nothing, where the generator may learn from these codes.

    Args:
        codes: what they are.
        places: where they are.
        fingerprint: of the run's image tokenizer.
        spec: of the codes that it makes.
        generator: what is to learn.

    Raises:
        UserError: they are another image tokenizer's, or lack what the generator reads or draws.
    """
    conditioner, head = generator.conditioner, generator.head
    if not isinstance(head, ARHeadConfig) and head.latents == "continuous":
        raise UserError(
            f"the codes in {places} tell nothing of latents before they became codes, which head.latents=continuous "
            "draws: say head.latents=quantised, or data.root=DIR with the pictures"
        )
    command = codes_command()
    if codes.tokenizer != fingerprint:
        raise UserError(
            f"the codes in {places} were made by image tokenizer {codes.tokenizer}, but this run has {fingerprint}: "
            f"make them anew with `{command}`, RELEASE being this run's image tokenizer"
        )
    if (tuple(codes.grid), codes.vocabulary) != (spec.grid, spec.vocab_size):
        raise UserError(
            f"the codes in {places} are {codes.grid} of {codes.vocabulary}, the generator takes {spec.grid} of "
            f"{spec.vocab_size}: make them anew with `{command}`"
        )
    if reads_features(conditioner) and codes.feature_width != spec.feature_width:
        raise UserError(
            f"the conditioner reads features of width {spec.feature_width}, the codes in {places} have "
            f"{codes.feature_width or 'none'}: make them anew with `{command} --features yes`, "
            "or say conditioner.image_features=[latents]"
        )


def shows_references(tasks: Iterable[str]) -> bool:
    """Whether a task's prompt has an image."""
    return bool(set(tasks) - _WITHOUT_REFERENCE)


def check_references(conditioner: Conditioner, tasks: Iterable[str], codes: bool = False) -> None:
    """Nothing, where the conditioner can read the prompts of these tasks.

    Args:
        conditioner: what reads them.
        tasks: of the data.
        codes: whether codes stand for the prompts' images.

    Raises:
        UserError: it reads no images, or none but pixels where there are codes, or has no room for one.
    """
    shown = sorted(set(tasks) - _WITHOUT_REFERENCE)
    if not shown:
        return
    if not conditioner.reads_images:
        left = " ".join(f"data.mixture.{task}=0" for task in shown)
        raise UserError(f"the conditioner reads no images, and prompts of {', '.join(shown)} have one: say {left}")
    if codes and not conditioner.reads_codes:
        raise UserError(
            f"the conditioner reads the pixels of images, which prompts of {', '.join(shown)} have, and these data "
            "are codes: say data.root=DIR with the pictures"
        )
    try:
        conditioner.count((ImageSegment(torch.zeros(3, 2, 2)),))
    except UserError as error:
        raise UserError(
            f"a prompt with a picture does not fit ({error}): give the conditioner more room (max_prefix=null for a "
            "native one, or more slots), or make pictures smaller with data.image_size"
        ) from error


def reads_features(config: ConditionerConfig) -> bool:
    """Whether the conditioner looks at `Codes.features`."""
    return isinstance(config, NativeConfig) and "features" in config.image_features
