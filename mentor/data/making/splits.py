"""Who is held out: names by their hash, photographs by their own and by what they show."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mentor.data.making.recipes import HeldOutConfig
from mentor.data.sources.archives import Cutout, Photo


def is_held_out(name: str, config: HeldOutConfig) -> bool:
    """Whether a name belongs to the held-out split: a fixed coin, the same in every recipe with the same salt."""
    digest = hashlib.sha256(f"{config.salt}:{normalise(name)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < config.share * 2**64


def normalise(name: str) -> str:
    """The name by which subjects are compared: lower case, single spaces."""
    return " ".join(name.lower().split())


def split_cutouts(cutouts: Sequence[Cutout], config: HeldOutConfig) -> dict[str, dict[str, list[Cutout]]]:
    """Split -> subject name -> its cut-outs in all styles; a subject is in one split alone, or in both by scene."""
    subjects: dict[str, dict[str, list[Cutout]]] = {"train": {}, "heldout": {}}
    for cutout in sorted(cutouts, key=lambda cutout: (normalise(cutout.name), cutout.style, cutout.id)):
        splits = ["heldout" if is_held_out(cutout.name, config) else "train"]
        for split in subjects if config.by == "scene" else splits:
            subjects[split].setdefault(normalise(cutout.name), []).append(cutout)
    return subjects


def split_photos(photos: Sequence[Photo], subjects: Iterable[str], config: HeldOutConfig) -> dict[str, list[Photo]]:
    """Split -> photographs.

    A photograph is held out by the hash of its id, and besides whenever it shows or mentions a held-out name, so that
    training never sees one. The objects of a held-out photograph that are not held out themselves lose their label:
    no labelled object occurs in both splits.

    Args:
        photos: all photographs.
        subjects: names of the cut-outs' held-out subjects, which captions are searched for.
        config: share and salt.
    """
    names = sorted(re.escape(normalise(name)) for name in subjects)
    mention = re.compile(rf"\b(?:{'|'.join(names)})(?:e?s)?\b") if names else None
    splits: dict[str, list[Photo]] = {"train": [], "heldout": []}
    for photo in sorted(photos, key=lambda photo: photo.id):
        labels = {photo.label, *(name for name, _ in photo.objects)} - {""}
        text = normalise(" | ".join([*photo.captions, photo.background, *labels]))
        shows = any(is_held_out(label, config) for label in labels) or (mention is not None and mention.search(text))
        if shows or is_held_out(photo.id, config):
            kept = tuple(thing for thing in photo.objects if is_held_out(thing[0], config))
            splits["heldout"].append(replace(photo, objects=kept))
        else:
            splits["train"].append(photo)
    return splits
