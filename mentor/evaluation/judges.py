"""Scores of pictures that answer a task's examples: one judge a task, all with the same signature.

The same judge scores what the model drew, the ground truth, its round trip through the image tokenizer (the ceiling), a
picture made for another example (chance), and the input left as it is: so a report can say what a number is worth.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mentor.data.order import seed_from
from mentor.data.tensors import to_pixels
from mentor.evaluation.metrics import intersection_over_union, psnr
from mentor.evaluation.oracles import SceneOracle, mask_on_black
from mentor.evaluation.retrieval import Cutout, SubjectOracle, cut_out
from mentor.types import Example, prompt_images

Scores = Mapping[str, Float[np.ndarray, "b"]]


class Judge(Protocol):
    """Scores pictures; the first score named is the task's headline."""

    def __call__(self, examples: Sequence[Example], images: Float[Tensor, "b c y x"]) -> Scores:
        """A number for each picture under each score's name; higher is better."""
        ...


class LikenessJudge:
    """Reconstruction: PSNR against the target."""

    def __call__(self, examples: Sequence[Example], images: Float[Tensor, "b c y x"]) -> Scores:
        """PSNR of each picture."""
        return {"psnr": psnr(images, targets_of(examples)).numpy()}


class MaskJudge:
    """Segmentation: IoU of the mask read off the picture on black with the true mask."""

    def __call__(self, examples: Sequence[Example], images: Float[Tensor, "b c y x"]) -> Scores:
        """IoU of each picture."""
        masks = [mask_on_black(to_pixels(image)) for image in images]
        pairs = zip(masks, examples, strict=True)
        return {"iou": np.array([intersection_over_union(mask, example.facts["mask"]) for mask, example in pairs])}


class GainJudge:
    """Recovery: dB that the picture is nearer to the target than the input was, if left as it is."""

    def __call__(self, examples: Sequence[Example], images: Float[Tensor, "b c y x"]) -> Scores:
        """Gain and PSNR of each picture."""
        targets = targets_of(examples)
        inputs = torch.stack([prompt_images(example.prompt)[0] for example in examples])
        reached = psnr(images, targets)
        return {"psnr_gain": (reached - psnr(inputs, targets)).numpy(), "psnr": reached.numpy()}


class PromptJudge:
    """Text to image: whether background and places are as the caption says, both for the headline."""

    def __init__(self, scenes: SceneOracle) -> None:
        self._scenes = scenes

    def __call__(self, examples: Sequence[Example], images: Float[Tensor, "b c y x"]) -> Scores:
        """1 or 0 for both together, the background, and the places."""
        follows = [
            self._scenes.follows(to_pixels(image), background_of(example), places_of(example))
            for example, image in zip(examples, images, strict=True)
        ]
        background, places = np.array(follows, dtype=np.float32).reshape(-1, 2).T
        return {"prompt_following": background * places, "background": background, "place": places}


class SubjectJudge:
    """Subject-driven generation: CP, the subject found among others, and PF, the prompt followed.

    Args:
        scenes: reads background and places.
        examples: all examples whose references may be candidates.
        candidates: how many there are for each picture, its own reference among them.
        seed: decides which, and in which order.
    """

    def __init__(self, scenes: SceneOracle, examples: Sequence[Example], candidates: int, seed: int) -> None:
        self._prompt = PromptJudge(scenes)
        self._subjects = SubjectOracle(scenes)
        self._cutouts = {example.key: reference_cutout(example) for example in examples}
        self._rivals = {example.key: rivals(example, examples, candidates, seed) for example in examples}
        self.candidates = min(len(keys) for keys in self._rivals.values()) if self._rivals else 0

    def __call__(self, examples: Sequence[Example], images: Float[Tensor, "b c y x"]) -> Scores:
        """CP and PF of each picture, 1 or 0, and what they are made of."""
        found, lead = [], []
        for example, image in zip(examples, images, strict=True):
            keys = self._rivals[example.key]
            distances = self._subjects.distances(
                to_pixels(image), [self._cutouts[key] for key in keys], example.facts["place"]
            )
            own = keys.index(example.key)
            found.append(float(int(np.argmin(distances)) == own))
            lead.append(float(np.delete(distances, own).min(initial=np.inf) - distances[own]))
        followed = self._prompt(examples, images)
        return {
            "cp": np.array(found, dtype=np.float32),
            "pf": followed["prompt_following"],
            "background": followed["background"],
            "place": followed["place"],
            # How clearly the own reference wins or loses; orders the cases of a report.
            "lead": np.array(lead, dtype=np.float32),
        }


def rivals(example: Example, examples: Sequence[Example], count: int, seed: int) -> list[str]:
    """Keys of `count` examples with different subjects, the example's own among them, in seeded random order.

    There are fewer when there are not that many subjects.
    """
    rng = random.Random(seed_from("candidates", seed, example.key))
    seen, keys = {example.facts["subject"]}, [example.key]
    for other in rng.sample(list(examples), len(examples)):
        if len(keys) < count and other.facts["subject"] not in seen:
            seen.add(other.facts["subject"])
            keys.append(other.key)
    rng.shuffle(keys)
    return keys


def reference_cutout(example: Example) -> Cutout:
    """The subject as the example's reference picture shows it."""
    return cut_out(to_pixels(prompt_images(example.prompt)[0]), example.facts["reference_mask"])


def targets_of(examples: Sequence[Example]) -> Float[Tensor, "b c y x"]:
    """The examples' targets in one tensor."""
    return torch.stack([example.target for example in examples])


def background_of(example: Example) -> str:
    """The phrase of the background that the caption asks for."""
    return example.facts["background"]["phrase"]


def places_of(example: Example) -> list[str]:
    """The places that the caption asks for, one an object."""
    return [thing["place"] for thing in example.facts["objects"]]


def readable(attributes: Mapping[str, Any]) -> bool:
    """Whether the scene oracle can read a record's picture: a scene on a background that can be rendered."""
    background = attributes.get("background")
    return attributes.get("kind") == "scene" and bool(background) and background["kind"] != "photo"
