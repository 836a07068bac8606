"""Where pictures come from: one file for each kind of place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, assert_never

from pydantic import Field

from mentor.data.records import Dropped
from mentor.data.sources.coco import CocoSource, describe_coco, read_coco
from mentor.data.sources.folder import FolderSource, describe_folder, read_folder
from mentor.data.sources.huggingface import HuggingFaceSource, describe_huggingface, read_huggingface
from mentor.data.sources.items import Item
from mentor.data.sources.mentor_rows import MentorRowsSource, describe_mentor_rows, read_mentor_rows
from mentor.data.sources.subjects import SubjectsSource, describe_subjects, read_subjects
from mentor.data.sources.tar_files import TarsSource, describe_tars, read_tars

SourceConfig = Annotated[
    FolderSource | CocoSource | SubjectsSource | HuggingFaceSource | MentorRowsSource | TarsSource,
    Field(discriminator="kind"),
]


def read_items(config: SourceConfig, folder: Path) -> Iterator[Item | Dropped]:
    """What a source offers, in an order that depends on its content alone.

    Args:
        config: the source.
        folder: the recipe's, from which paths count if they exist there, else from the current folder.

    Raises:
        UserError: the source cannot be read or understood; single bad samples are `Dropped` instead.
    """
    match config:
        case FolderSource():
            return read_folder(config, folder)
        case CocoSource():
            return read_coco(config, folder)
        case SubjectsSource():
            return read_subjects(config, folder)
        case HuggingFaceSource():
            return read_huggingface(config, folder)
        case MentorRowsSource():
            return read_mentor_rows(config, folder)
        case TarsSource():
            return read_tars(config, folder)
        case _:
            assert_never(config)


def describe_inputs(config: SourceConfig, folder: Path) -> dict[str, str]:
    """What identifies a source's input, the same for a copy on another machine: digests by what they are of.

    Args:
        config: the source.
        folder: the recipe's.

    Raises:
        UserError: the source cannot be read.
    """
    match config:
        case FolderSource():
            return describe_folder(config, folder)
        case CocoSource():
            return describe_coco(config, folder)
        case SubjectsSource():
            return describe_subjects(config, folder)
        case HuggingFaceSource():
            return describe_huggingface(config, folder)
        case MentorRowsSource():
            return describe_mentor_rows(config, folder)
        case TarsSource():
            return describe_tars(config, folder)
        case _:
            assert_never(config)
