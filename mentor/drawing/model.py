"""What is drawn with: a release folder, opened on a device in a precision."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch

from mentor.adapters import Applied, Place, attach, load_adapters
from mentor.conditioning import Conditioner
from mentor.decoding.fitting import check_fit
from mentor.decoding.settings import SamplingConfig
from mentor.errors import UserError
from mentor.hub import fetch, spelled
from mentor.models.checkpoint import Release, load_generator
from mentor.models.decoder import Decoder
from mentor.models.packing import PrecisionChoice, choose_precision, pack

PRECISIONS: tuple[PrecisionChoice, ...] = get_args(PrecisionChoice)


@dataclass(frozen=True)
class Model:
    """A release folder, opened: what `generate` draws with.

    Attributes:
        folder: of the release; that in the hub's cache where it is from the hub.
        precision: of the generator's weights.
        decoder: the generator, ready to write codes.
        adapters: what is on it.
    """

    release: Release
    folder: Path
    device: torch.device
    precision: str
    decoder: Decoder
    adapters: Sequence[Applied] = ()

    @property
    def name(self) -> str:
        """What loads the release again: its folder, or OWNER/NAME@COMMIT on the hub."""
        return spelled(self.folder)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that name the weights, those of adapters and their strengths among them."""
        own = self.release.fingerprint
        if not self.adapters:
            return own
        # Updates of weights commute, edits do not.
        parts = [f"{each.adapter.fingerprint}={each.strength!r}" for each in self.adapters]
        return hashlib.sha256(" ".join([own, *parts]).encode()).hexdigest()[:16]

    @property
    def image_size(self) -> int:
        """Width and height of the pictures, in pixels."""
        return self.release.image_size

    @property
    def conditioner(self) -> Conditioner:
        """What reads the prompts."""
        return self.release.generator.conditioner

    @property
    def tokens(self) -> int:
        """Image tokens of one picture."""
        return self.release.generator.spec.tokens


def load(
    folder: str | Path,
    device: str = "cpu",
    precision: str = "auto",
    compiled: bool = False,
    adapters: Sequence[Place] = (),
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
) -> Model:
    """The model in a release folder or on the hub, ready to draw.

    Args:
        folder: the release folder of a generator; or its name on the hub, OWNER/NAME or OWNER/NAME@REVISION.
        device: where to draw, such as cpu or cuda.
        precision: of the generator's weights: fp32 is what was trained, bf16 and int8 are faster where the processor
            has them; auto takes the fastest that does no harm.
        compiled: compile the steps that a GPU records: a minute at the first picture, for those who draw many.
        adapters: release folders of adapters that were trained on this model, `FOLDER` or `(FOLDER, STRENGTH)`.
        revision: branch, tag or commit on the hub; None is the main branch.
        cache_dir: where releases from the hub are kept; None is the hub's own cache (HF_HUB_CACHE).
        token: for private and gated repositories; None is the one of HF_TOKEN or of `hf auth login`.

    Raises:
        UserError: the folder is not the release of a generator, the hub does not give it, the device is not there,
            there is no such precision, or an adapter is none or belongs to another model.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r}: choose {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    fetched = fetch(folder, revision, cache_dir, token)
    release = load_generator(fetched)
    applied = load_adapters(adapters, release, spelled(fetched))
    attach(release.generator, applied)
    try:
        place = torch.device(device)
        if compiled and place.type == "cpu":
            raise UserError("compiling pays on a GPU alone: leave --compile out, or take --device cuda")
        release.generator.to(place)
        release.image_tokenizer.to(place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}): take cpu or cuda") from error
    chosen = prepare(release, precision, place)
    return Model(release, fetched, place, chosen, Decoder(release.generator, compiled), applied)


def prepare(release: Release, precision: str, device: torch.device) -> str:
    """The precision that the generator computes in from now on; `auto` becomes the one that suits the device."""
    chosen = choose_precision(cast(PrecisionChoice, precision), device)
    pack(release.generator, chosen)
    return chosen


def check_sampling(model: Model, config: SamplingConfig) -> None:
    """Nothing, where the model can be drawn from so.

    Raises:
        UserError: a setting means nothing to a model of this kind; or guidance is asked of a model that has never met a
            prompt of which nothing is left.
    """
    generator = model.release.generator
    check_fit(config, generator.config.head, generator.spec.tokens)
    scales = [config.guidance, config.guidance if config.guidance_images is None else config.guidance_images]
    if scales == [1, 1] or null_trained(model.release.config.get("training") or {}):
        return
    shown = f"guidance {config.guidance:g}" + (f" and guidance_images {scales[1]:g}" if scales[1] != scales[0] else "")
    raise UserError(
        f"{shown} needs a model that was trained with prompts left out, and {model.name} was not "
        f"(objective.guidance.everything=0): take guidance 1, for the images too"
    )


def null_trained(training: dict[str, Any]) -> bool:
    """Whether a release's record of its training lets one think that the null condition was trained."""
    # Records without the first entry say nothing of the training before, if there was one.
    fresh = training.get("init_from") is None
    known = not (fresh and training.get("objective.guidance.everything") == 0)
    return bool(training.get("null_condition_trained", known))
