"""Folders of one subject each, as DreamBench has them: every picture with others of the same subject as its views."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from mentor.config import Config
from mentor.data.records import Dropped
from mentor.data.sources.folder import check_template, fill, picture_entries, text_of
from mentor.data.sources.items import FileBlob, Item, ItemObject, ItemView, MaskPlace
from mentor.data.sources.masks import AlphaMask, FileMask, is_transparent
from mentor.data.sources.places import (
    PICTURES,
    Entry,
    Tree,
    digest_file,
    digest_listing,
    find_folder,
    open_tree,
    stem,
)
from mentor.data.storage.decoding import BadSample
from mentor.errors import UserError

CLASSES_FILE = "prompts_and_classes.txt"


class SubjectsSource(Config):
    """A folder with one folder a subject.

    Attributes:
        kind: "subjects".
        path: the folder of the subjects' folders.
        views: at most so many other pictures of the subject go with each.
        masks: folder of masks with the pictures' relative paths (`dog/00.png` for `dog/00.jpg`), white on the subject;
            without it a mask is there only where the picture has transparency.
        classes: subject's folder -> what it is called; before prompts_and_classes.txt and the folder's own name.
        template: caption of a picture without a text beside it; `{name}` is the subject's class.
    """

    kind: Literal["subjects"]
    path: str
    views: int = Field(default=2, ge=0, le=16)
    masks: str | None = None
    classes: dict[str, str] = Field(default_factory=dict)
    template: str = "a {name}"

    @field_validator("template")
    @classmethod
    def _template(cls, template: str) -> str:
        return check_template(template)


def read_subjects(config: SubjectsSource, folder: Path) -> Iterator[Item | Dropped]:
    """The pictures by path, each with the next ones of its subject, in a circle, as views.

    Raises:
        UserError: no folder, no subjects in it, or a class for a subject that is not there.
    """
    tree = open_tree(find_folder(config.path, folder, "the folder of subjects"))
    masks = _mask_tree(config, tree, folder)
    entries = [entry for entry in tree.files() if not _within(tree, entry, masks)]
    subjects: dict[str, list[str]] = {}
    texts: dict[str, Entry] = {}
    loose: list[Dropped] = []
    for entry in entries:
        if entry.kind == ".txt":
            texts.setdefault(stem(entry.path), entry)
    for entry in picture_entries(entries):
        if isinstance(entry, Dropped):
            loose.append(entry)
        elif "/" not in entry.path:
            loose.append(Dropped(entry.path, "not in a subject's folder"))
        else:
            subjects.setdefault(entry.path.partition("/")[0], []).append(entry.path)
    if not subjects:
        raise UserError(f"{tree.root} holds no folders of pictures: give the folder that has one folder a subject")
    classes = _classes(config, tree, subjects)
    yield from loose
    for subject, paths in subjects.items():
        found = [_mask(tree, masks, path) for path in paths]
        for index, path in enumerate(paths):
            beside = texts.get(stem(path))
            caption = text_of(tree, beside, path) if beside else fill(config.template, classes[subject])
            if isinstance(caption, Dropped):
                yield caption
                continue
            others = [(index + step) % len(paths) for step in range(1, min(config.views, len(paths) - 1) + 1)]
            yield Item(
                path,
                FileBlob(f"{tree.root}/{path}"),
                (caption,) if caption else (),
                (ItemObject(classes[subject], found[index]),),
                tuple(ItemView(FileBlob(f"{tree.root}/{paths[other]}"), found[other]) for other in others),
                subject,
                {"subject": subject, "class": classes[subject]},
            )


def describe_subjects(config: SubjectsSource, folder: Path) -> dict[str, str]:
    """The sha256 of the pictures' paths and sizes and of the texts, one of the masks' and one of the class table."""
    tree = open_tree(find_folder(config.path, folder, "the folder of subjects"))
    described = {config.path: digest_listing(tree, PICTURES, {".txt"})}
    masks = _mask_tree(config, tree, folder)
    if masks is not None:
        described[f"{config.path}: masks {config.masks}"] = digest_listing(masks, PICTURES)
    if not tree.find(CLASSES_FILE).problem:
        described[f"{config.path}: {CLASSES_FILE}"] = digest_file(tree.root / CLASSES_FILE)
    return described


def read_classes(text: str) -> dict[str, str]:
    """Subject -> class from the table in DreamBench's prompts_and_classes.txt: from its header to an empty line."""
    classes: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        subject, comma, name = (part.strip() for part in line.partition(","))
        if subject == "subject_name":
            inside = True
        elif inside and not comma:
            break
        elif inside and subject and name:
            classes[subject] = name
    return classes


def clean_name(folder: str) -> str:
    """What a subject is called when only its folder says so: "dog6" is a dog, "backpack_dog" a backpack dog."""
    return " ".join(re.sub(r"[\d_\-.]+", " ", folder).split()) or folder


def _classes(config: SubjectsSource, tree: Tree, subjects: dict[str, list[str]]) -> dict[str, str]:
    for subject in config.classes:
        if subject not in subjects:
            raise UserError(f"classes: {tree.root} has no folder {subject}: there are {', '.join(list(subjects)[:20])}")
    listed: dict[str, str] = {}
    if not tree.find(CLASSES_FILE).problem:
        try:
            listed = read_classes(tree.text(CLASSES_FILE))
        except (OSError, BadSample) as error:
            raise UserError(f"{tree.root / CLASSES_FILE} cannot be read: {error}; mend or remove it") from None
    return {subject: config.classes.get(subject) or listed.get(subject) or clean_name(subject) for subject in subjects}


def _mask_tree(config: SubjectsSource, tree: Tree, folder: Path) -> Tree | None:
    if config.masks is None:
        return None
    inside = tree.root / config.masks
    return Tree(inside if inside.is_dir() else find_folder(config.masks, folder, "the folder of masks"))


def _within(tree: Tree, entry: Entry, masks: Tree | None) -> bool:
    return masks is not None and (tree.root / entry.path).is_relative_to(masks.root)


def _mask(tree: Tree, masks: Tree | None, path: str) -> MaskPlace | None:
    if masks is not None:
        kinds = [posixpath.splitext(path)[1], ".png", ".jpg", ".jpeg", ".webp"]
        for found in (masks.find(stem(path) + kind) for kind in kinds):
            if not found.problem:
                return FileMask(FileBlob(f"{masks.root}/{found.path}"))
    elif path.lower().endswith((".png", ".webp")) and is_transparent(tree.root / path):
        return AlphaMask()
    return None
