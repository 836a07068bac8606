"""A recipe's records, each a pure function of the recipe, the split and the record's number."""

import random
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from mentor.data.making.recipes import LoadedRecipe, SceneConfig
from mentor.data.making.scenes import (
    COLOURS,
    OPPOSITE_PLACES,
    PLACES,
    Background,
    all_backgrounds,
    box_corner,
    box_side,
    compose_fitted,
    fit,
    render_background,
    square,
)
from mentor.data.making.splits import is_held_out, split_cutouts, split_photos
from mentor.data.records import Record, RecordObject, View
from mentor.data.sources.archives import Cutout, Photo, read_cutouts, read_photos
from mentor.data.storage.manifest import SPLITS
from mentor.errors import UserError

FREE_SIDE = (0.45, 0.85)

_TOO_CLOSE = 90.0
_LEAST_OBJECT = 0.02
# Scenes that are drawn before one is found that may be in its split.
_MOST_DRAWS = 500


class Composer:
    """Makes the records of one recipe, in any order.

    Attributes:
        plan: split -> what each record is: ("scene", number) or ("photo", number), well mixed.
        subjects: split -> subject name -> its cut-outs.
        photos: split -> photographs.

    Raises:
        UserError: the sources cannot be read or yield no record.
    """

    def __init__(self, loaded: LoadedRecipe):
        recipe = self.recipe = loaded.recipe
        cutouts = read_cutouts(recipe.subjects, loaded.folder) if recipe.subjects else []
        photos = read_photos(recipe.photographs, loaded.folder) if recipe.photographs else []
        self.subjects = split_cutouts(cutouts, recipe.heldout)
        named = self.subjects["heldout"] if recipe.heldout.by == "subject" else ()
        self.photos = split_photos(photos, named, recipe.heldout)
        # A held-out scene stands before a held-out photograph of something that training has words for.
        known = {photo.background for photo in self.photos["train"]} - {""}
        self._backdrops = {
            split: [photo for photo in self.photos[split] if photo.background in known] for split in SPLITS
        }
        self.plan = self._plan()
        self._fitted = lru_cache(maxsize=8192)(self._fit)
        self._rendered = lru_cache(maxsize=4096)(self._render)
        self._mean_colour = lru_cache(maxsize=None)(lambda cutout_id: _mean_colour(self._by_id[cutout_id]))
        self._by_id = {cutout.id: cutout for cutout in cutouts}
        self._photo_by_id = {photo.id: photo for photo in photos}

    def record(self, split: str, position: int) -> Record:
        """The record at a position of a split's plan."""
        kind, number = self.plan[split][position]
        if kind == "photo":
            return self._photo_record(split, number)
        return self._scene_record(split, number)

    def _plan(self) -> dict[str, list[tuple[str, int]]]:
        recipe = self.recipe
        plan: dict[str, list[tuple[str, int]]] = {}
        for split in SPLITS:
            scenes = getattr(recipe.scenes, split) if recipe.scenes else 0
            if scenes and recipe.scenes and len(self.subjects[split]) < (2 if recipe.scenes.two_objects else 1):
                raise UserError(
                    f"recipe {recipe.name}: {len(self.subjects[split])} subject(s) in {split} are too few for scenes: "
                    "change subjects, heldout.share or heldout.salt"
                )
            if scenes and recipe.scenes and recipe.scenes.backgrounds.get("photo") and not self._backdrops[split]:
                raise UserError(
                    f"recipe {recipe.name}: no photograph in {split} can be a background: "
                    "set scenes.backgrounds.photo to 0 or change photographs"
                )
            photos = len(self.photos[split]) if recipe.photo_records else 0
            plan[split] = [("scene", number) for number in range(scenes)] + [
                ("photo", number) for number in range(photos)
            ]
            random.Random(f"{recipe.seed}:{split}:plan").shuffle(plan[split])
        total = sum(map(len, plan.values()))
        if not plan["train"] or (recipe.heldout.share and not plan["heldout"]):
            counts = ", ".join(f"{len(plan[split])} in {split}" for split in SPLITS)
            raise UserError(f"recipe {recipe.name} yields too few records ({counts}): check its sources and counts")
        if recipe.limit is not None and recipe.limit < total:
            heldout = min(len(plan["heldout"]), max(1, round(recipe.limit * len(plan["heldout"]) / total)))
            if recipe.limit - heldout < 1:
                raise UserError(f"limit={recipe.limit} leaves a split without records: say limit=2 or more")
            plan = {"train": plan["train"][: recipe.limit - heldout], "heldout": plan["heldout"][:heldout]}
        return plan

    @cached_property
    def _schedule(self) -> dict[str, list[Cutout]]:
        """Split -> the subject's cut-out of each scene: rounds over all subjects, so that all get equally many."""
        schedule: dict[str, list[Cutout]] = {}
        for split in SPLITS:
            scenes = getattr(self.recipe.scenes, split) if self.recipe.scenes else 0
            schedule[split] = []
            turn = 0
            while len(schedule[split]) < scenes:
                names = list(self.subjects[split])
                random.Random(f"{self.recipe.seed}:{split}:round {turn}").shuffle(names)
                schedule[split] += [
                    self.subjects[split][name][turn % len(self.subjects[split][name])] for name in names
                ]
                turn += 1
        return schedule

    def _scene_record(self, split: str, number: int) -> Record:
        recipe, config = self.recipe, self._scene_config
        rng = random.Random(f"{recipe.seed}:{split}:scene {number}")
        subject = self._schedule[split][number]
        cutouts, sizes, places, background, photo = self._layout(rng, split, subject)
        boxes, facts = [], []
        for cutout, size, place in zip(cutouts, sizes, places, strict=True):
            side = box_side(size, recipe.size)
            left, top = box_corner(place, side, recipe.size)
            boxes.append((self._fitted(cutout.id, side), left, top))
            facts.append({"place": place, "size": size, "box": [left, top, left + side, top + side]})
        image, masks = compose_fitted(self._pixels(background, photo), boxes)
        views, photos = [], [photo]
        for index in range(config.views):
            view, view_photo = self._view(rng, split, index, subject, sizes[0], places[0], background)
            views.append(view)
            photos.append(view_photo)
        credits = [*(cutout.credit for cutout in cutouts), *(seen.credit for seen in photos if seen)]
        described = " and ".join(
            f"{_article(cutout)}{size} {cutout.name} {place}"
            for cutout, size, place in zip(cutouts, sizes, places, strict=True)
        )
        return Record(
            key=f"{split}-scene-{number:06d}",
            image=image,
            captions=(f"{described} on {background.phrase}",),
            objects=tuple(
                RecordObject(
                    cutout.name,
                    mask,
                    f"{cutout.name} {fact['place']}" if len(cutouts) > 1 else "",
                    {**cutout.attributes, **fact, "style": cutout.style, "id": cutout.id},
                )
                for cutout, mask, fact in zip(cutouts, masks, facts, strict=True)
            ),
            views=tuple(views),
            subject=subject.name,
            attributes={
                "kind": "scene",
                "background": _describe(background),
                "style": subject.style,
                "credits": [dict(credit) for credit in {credit["id"]: credit for credit in credits}.values()],
            },
        )

    def _layout(
        self, rng: random.Random, split: str, subject: Cutout
    ) -> tuple[list[Cutout], list[str], list[str], Background, Photo | None]:
        """Objects with their sizes and places, and what is behind them, as may be in this split.

        Raises:
            UserError: nothing that was drawn may.
        """
        recipe, config = self.recipe, self._scene_config
        for _ in range(_MOST_DRAWS):
            if rng.random() < config.two_objects:
                cutouts = [subject, self._companion(rng, split, subject)]
                sizes, places = ["small", "small"], list(rng.choice(OPPOSITE_PLACES))
            else:
                cutouts = [subject]
                sizes, places = ["large" if rng.random() < config.large else "small"], [rng.choice(list(PLACES))]
            background, photo = self._background(rng, split, cutouts)
            layout = " ".join([*sizes, *places, background.phrase])
            if recipe.heldout.by == "subject" or is_held_out(layout, recipe.heldout) == (split == "heldout"):
                return cutouts, sizes, places, background, photo
        raise UserError(
            f"recipe {recipe.name}: {_MOST_DRAWS} scenes that were drawn for {split} are all of the other split: "
            "change heldout.share or heldout.salt, or give more kinds of backgrounds"
        )

    def _view(
        self, rng: random.Random, split: str, index: int, subject: Cutout, size: str, place: str, seen: Background
    ) -> tuple[View, Photo | None]:
        """Another picture of the subject: even ones keep the size and the lattice, odd ones have neither."""
        canvas = self.recipe.size
        background, photo = self._background(rng, split, [subject], seen)
        if index % 2 == 0:
            view_place = rng.choice([name for name in PLACES if name != place])
            side = box_side(size, canvas)
            left, top = box_corner(view_place, side, canvas)
            box = self._fitted(subject.id, side)
            facts: dict[str, Any] = {"alignment": "aligned", "place": view_place, "size": size}
        else:
            side = round(rng.uniform(*FREE_SIDE) * canvas)
            left, top = rng.randint(0, canvas - side), rng.randint(0, canvas - side)
            box = self._fit(subject.id, side)
            facts = {"alignment": "free", "place": None, "size": None}
        image, masks = compose_fitted(self._pixels(background, photo), [(box, left, top)])
        attributes = {
            "kind": "scene",
            "background": _describe(background),
            "style": subject.style,
            **facts,
            "box": [left, top, left + side, top + side],
        }
        return View(image, masks[0], attributes), photo

    def _companion(self, rng: random.Random, split: str, subject: Cutout) -> Cutout:
        """A second object: another subject of the same split, in the same style where it exists in it."""
        names = list(self.subjects[split])
        others = subject_cutouts = self.subjects[split][rng.choice([name for name in names if name != subject.name])]
        same = [cutout for cutout in subject_cutouts if cutout.style == subject.style]
        return rng.choice(same or others)

    def _background(
        self, rng: random.Random, split: str, cutouts: Sequence[Cutout], seen: Background | None = None
    ) -> tuple[Background, Photo | None]:
        """A background other than `seen`, not of a colour in which a cut-out would vanish."""
        weights = self._scene_config.backgrounds
        kinds = sorted(weights)
        (kind,) = rng.choices(kinds, [weights[kind] for kind in kinds])
        if kind == "photo":
            fitting = [photo for photo in self._backdrops[split] if seen is None or photo.background != seen.colour]
            photo = rng.choice(fitting or self._backdrops[split])
            return Background("photo", photo.background), photo
        named = {cutout.attributes.get("colour") for cutout in cutouts}
        choices = [background for background in all_backgrounds() if background.kind == kind and background != seen]
        fitting = [background for background in choices if background.colour not in named]
        if kind in ("plain", "gradient"):
            means = [self._mean_colour(cutout.id) for cutout in cutouts]
            fitting = [
                background
                for background in fitting
                if all(np.linalg.norm(np.subtract(COLOURS[background.colour], mean)) > _TOO_CLOSE for mean in means)
            ] or fitting
        return rng.choice(fitting), None

    def _photo_record(self, split: str, number: int) -> Record:
        photo, size = self.photos[split][number], self.recipe.size
        objects = []
        for name, read in photo.objects:
            mask = square(read(), size)
            if mask.mean() >= _LEAST_OBJECT:
                objects.append(RecordObject(name, mask, "", {"share": round(float(mask.mean()), 4)}))
        return Record(
            key=f"{split}-photo-{number:06d}",
            image=square(photo.read(), size),
            captions=photo.captions,
            objects=tuple(objects),
            attributes={"kind": "photo", "label": photo.label, "credits": [dict(photo.credit)]},
        )

    @property
    def _scene_config(self) -> SceneConfig:
        assert self.recipe.scenes is not None
        return self.recipe.scenes

    def _fit(self, cutout_id: str, side: int) -> np.ndarray:
        return fit(self._by_id[cutout_id].read(), side)

    def _pixels(self, background: Background, photo: Photo | None) -> np.ndarray:
        return self._rendered(background, photo.id if photo else "")

    def _render(self, background: Background, photo_id: str) -> np.ndarray:
        photo = self._photo_by_id[photo_id].read() if photo_id else None
        return render_background(background, self.recipe.size, photo)


def _article(cutout: Cutout) -> str:
    """What stands before "large" or "small"."""
    return "a " if cutout.number == "singular" else ""


def _describe(background: Background) -> Mapping[str, str]:
    return {"kind": background.kind, "colour": background.colour, "phrase": background.phrase}


def _mean_colour(cutout: Cutout) -> np.ndarray:
    pixels = cutout.read().reshape(-1, 4).astype(np.float32)
    return (pixels[:, :3] * pixels[:, 3:]).sum(0) / pixels[:, 3].sum()
