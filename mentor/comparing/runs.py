"""Trainings that are to be compared: run folders read with all that came before them, and refused where unfair."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentor.config import read_yaml
from mentor.data.storage.shards import ShardSet
from mentor.errors import UserError
from mentor.models.checkpoint import read_config

SUMMARY = "summary.json"
SETTINGS = "config.yaml"
RELEASE = "release"


@dataclass(frozen=True)
class Stage:
    """One finished training.

    Attributes:
        folder: its run folder.
        settings: its config.yaml.
        summary: its summary.json.
        release: config.json of its release folder.
    """

    folder: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    release: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """Seconds of compute: wall seconds times processes."""
        return float(self.summary["seconds"]) * self.processes

    @property
    def processes(self) -> int:
        """Processes that shared the work."""
        return int(self.summary["processes"])

    @property
    def updates(self) -> int:
        """Updates in all."""
        return int(self.summary["max_steps"])

    @property
    def samples(self) -> int:
        """Samples that it saw."""
        return int(self.summary["samples"])

    @property
    def release_folder(self) -> Path:
        """Folder of its release."""
        return self.folder / RELEASE

    @property
    def data(self) -> str:
        """Fingerprint of the data that it was trained on."""
        return str(self.release.get("data", {}).get("fingerprint", "?"))

    def place_of(self, setting: str) -> Path | None:
        """Where a folder is that the settings name; None where they name none.

        Settings count from the folder that training was started in, which need not be this one.
        """
        given = self.settings.get(setting)
        return None if given is None else find_place(str(given), self.folder, self.settings)


@dataclass(frozen=True)
class Trained:
    """A contestant: the last training of a chain, in which each begins with what the one before it released.

    Attributes:
        name: what tables and pictures call it.
        stages: the chain, the first training first.
        before: release that the chain began with whose training is not there; None where it began with nothing.
        image_tokenizer: the training of the image tokenizer, where it is there.
    """

    name: str
    stages: tuple[Stage, ...]
    before: str | None = None
    image_tokenizer: Stage | None = None

    @property
    def last(self) -> Stage:
        """The training that is compared."""
        return self.stages[-1]

    @property
    def head(self) -> Mapping[str, Any]:
        """Settings of the generator's head."""
        return self.last.release["generator"]["head"]

    @property
    def kind(self) -> str:
        """Kind of its head: ar, dit, diffusion."""
        return str(self.head["kind"])

    @property
    def image_size(self) -> int:
        """Pixels of a picture's side."""
        return int(self.last.release["image_size"])

    @property
    def data(self) -> tuple[str, ...]:
        """Fingerprints of all data that it was trained on, in order."""
        return tuple(sorted({one for stage in self.stages for one in stage.data.split(", ")}))

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the image tokenizer in the release."""
        return str(read_config(self.last.release_folder / "image_tokenizer")["fingerprint"])


def read_runs(arguments: Sequence[str]) -> list[Trained]:
    """The runs that a command line names, each as FOLDER or NAME=FOLDER.

    Raises:
        UserError: they are no runs, not finished, or cannot be compared fairly.
    """
    if len(arguments) < 2:
        raise UserError(
            f"a comparison needs at least two runs, found {len(arguments)}: say --runs FOLDER FOLDER with the run "
            "folders of two finished trainings"
        )
    given = [split_name(argument) for argument in arguments]
    folders = [folder for _, folder in given]
    places = Counter(folder.resolve() for folder in folders)
    for folder in folders:
        if places[folder.resolve()] > 1:
            raise UserError(f"the run {folder} is given {places[folder.resolve()]} times: give each run once")
    stages = [read_stage(folder) for folder in folders]
    names = [name or found for (name, _), found in zip(given, distinguishing(folders), strict=True)]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{count} runs are called {name!r}: give them names of their own with NAME=FOLDER")
    runs = [read_chain(name, stage) for name, stage in zip(names, stages, strict=True)]
    refuse_unlike(runs)
    return runs


def split_name(argument: str) -> tuple[str, Path]:
    """Name and folder of `NAME=FOLDER`; an empty name and the folder where there is no name."""
    name, equals, folder = argument.partition("=")
    return (name, Path(folder)) if equals and name and not Path(argument).is_dir() else ("", Path(argument))


def distinguishing(folders: Sequence[Path]) -> list[str]:
    """For each folder the shortest part of its path that tells it from the others: one name, or else its last names."""
    parts = [folder.resolve().parts for folder in folders]
    least = min(len(names) for names in parts)
    for depth in range(1, least + 1):
        single = [names[-depth] for names in parts]
        if len(set(single)) == len(parts):
            return single
    for depth in range(2, max(len(names) for names in parts) + 1):
        several = ["/".join(names[-depth:]) for names in parts]
        if len(set(several)) == len(parts):
            return several
    return [str(folder) for folder in folders]


def read_stage(folder: Path) -> Stage:
    """The finished training of a generator in a run folder.

    Raises:
        UserError: the folder is no run, or the run is not finished, or trained something else.
    """
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder} is no run folder (no {SETTINGS} in it): give the run.dir of a finished training")
    settings = read_yaml(folder / SETTINGS)
    summary = read_summary(folder)
    if summary.get("status") != "finished" or not (folder / RELEASE / "config.json").is_file():
        raise UserError(
            f"the run {folder} is not finished (it is at step {summary.get('step', '?')} of "
            f"{summary.get('max_steps', '?')}, status {summary.get('status', '?')!r}): start its training again, "
            "which goes on from its last checkpoint"
        )
    missing = [name for name in ("seconds", "processes", "max_steps", "samples") if name not in summary]
    if missing:
        raise UserError(
            f"{folder / SUMMARY} does not tell {', '.join(missing)}: compare runs that this version trained"
        )
    release = read_config(folder / RELEASE)
    if release["kind"] != "generator":
        raise UserError(
            f"the run {folder} trained {'an' if release['kind'][0] in 'aei' else 'a'} "
            f"{release['kind'].replace('_', ' ')}, and generators are compared: give the run folder of a later stage"
        )
    return Stage(folder, settings, summary, release)


def read_summary(folder: Path) -> dict[str, Any]:
    """What a run says of itself.

    Raises:
        UserError: its file is missing or damaged.
    """
    path = folder / SUMMARY
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{folder} is no run folder ({path.name}: {error.strerror}): give the run.dir of a finished training"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): compare another run") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (no mapping in it): compare another run")
    return found


def read_chain(name: str, last: Stage) -> Trained:
    """The run with all trainings that it builds on.

    Raises:
        UserError: one of them is not finished any more, or the chain bites its own tail.
    """
    stages, before = [last], None
    while (place := stages[0].place_of("init_from")) is not None:
        folder = place.parent
        if not (folder / SETTINGS).is_file() or not (folder / SUMMARY).is_file():
            before = str(stages[0].settings["init_from"])
            break
        if folder.resolve() in {stage.folder.resolve() for stage in stages}:
            raise UserError(f"the run {last.folder} begins with its own release {place}: compare another run")
        stages.insert(0, read_stage(folder))
    return Trained(name, tuple(stages), before, find_tokenizer(stages))


def find_tokenizer(stages: Sequence[Stage]) -> Stage | None:
    """The training of the image tokenizer that the first stage used, where its run folder is still there."""
    place = stages[0].place_of("image_tokenizer_from")
    if place is None or not (place.parent / SETTINGS).is_file() or not (place.parent / SUMMARY).is_file():
        return None
    folder = place.parent
    summary = read_summary(folder)
    if not {"seconds", "processes", "max_steps", "samples"} <= summary.keys():
        return None
    return Stage(folder, read_yaml(folder / SETTINGS), summary, read_config(place))


def find_place(given: str, folder: Path, settings: Mapping[str, Any]) -> Path:
    """A path of a run's settings: as it was where the training was started, which its own run.dir tells, or from here.

    Args:
        given: the path.
        folder: the run folder.
        settings: the run's.
    """
    own = Path(str(settings.get("run", {}).get("dir", "")))
    for place in (folder, folder.resolve()):
        if not own.is_absolute() and own.parts and place.parts[-len(own.parts) :] == own.parts:
            found = place.parents[len(own.parts) - 1] / given
            if found.exists():
                return found
    return Path(given)


def refuse_unlike(runs: Sequence[Trained]) -> None:
    """Nothing, where all were trained on the same data and draw pictures of one size.

    Raises:
        UserError: they differ from the first.
    """
    first, *others = runs
    for other in others:
        if other.data != first.data:
            raise UserError(
                f"the runs were trained on different data: {first.name} on {', '.join(first.data)}, {other.name} on "
                f"{', '.join(other.data)}: compare runs that were trained on the same"
            )
    for other in others:
        if other.image_size != first.image_size:
            raise UserError(
                f"the runs draw pictures of different sizes: {first.name} of {first.image_size} px, {other.name} of "
                f"{other.image_size} px: compare runs of the same data.image_size"
            )


def open_data(runs: Sequence[Trained], given: str | None) -> ShardSet:
    """The held-out shards that the runs are measured on.

    Args:
        runs: what is compared.
        given: folder of the shards; None takes the one that the first run's settings name.

    Raises:
        UserError: it is not there, or its data are not those that the runs were trained on.
    """
    last = runs[0].last
    root = last.settings.get("data", {}).get("root")
    if given is None and not root:
        raise UserError(f"the settings of {last.folder} name no data.root: say --data FOLDER")
    place = Path(given) if given is not None else find_place(str(root), last.folder, last.settings)
    shards = ShardSet(place, "heldout")
    if shards.fingerprint not in runs[0].data:
        raise UserError(
            f"the data in {place} are {shards.fingerprint}, and the runs were trained on {', '.join(runs[0].data)}: "
            "give the folder of those with --data FOLDER"
        )
    return shards
