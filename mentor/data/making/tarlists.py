"""Which tars are meant, which of them are finished, and what a manifest calls them."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mentor.data.storage.remote import Unreadable, ask, is_remote, list_files, shown
from mentor.errors import UserError

# img2dataset writes this beside a tar when the tar is complete.
STATS = "_stats.json"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_ASKERS = 16
_NAMED = 5


@dataclass(frozen=True)
class Tar:
    """A tar to be indexed.

    Attributes:
        name: absolute path or URL.
        size: in bytes; None where the server does not tell.
        path: what the manifest calls it.
    """

    name: str
    size: int | None
    path: str = ""


def list_tars(paths: Sequence[str]) -> list[Tar]:
    """All tars that paths, patterns, URLs and folders name, with their sizes, sorted by name.

    Raises:
        UserError: there are none, or something else is among them.
    """
    names: set[str] = set()
    for pattern in paths:
        folder = not is_remote(pattern) and Path(pattern).is_dir()
        for name in sorted(map(str, Path(pattern).glob("*.tar"))) if folder else list_files(pattern):
            plain = name.partition("?")[0].lower() if is_remote(name) else name.lower()
            if plain.endswith(_PACKED):
                raise UserError(f"{shown(name)} is compressed, and its samples could not be read at random: unpack it")
            if not plain.endswith(".tar"):
                raise UserError(f"{shown(name)} is no tar: give paths or patterns that end in .tar, or a folder")
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise UserError(f"{name!r}: the name is not UTF-8, which no manifest can hold: rename the file")
            # Not resolved: a link stays where its owner put it.
            names.add(name if is_remote(name) else str(Path(os.path.normpath(Path(name).absolute()))))
    if not names:
        raise UserError("no tars were given: give paths, patterns such as data/*.tar, or URLs")
    with ThreadPoolExecutor(_ASKERS) as pool:
        return list(pool.map(_look_up, sorted(names)))


def _look_up(name: str) -> Tar:
    if is_remote(name):
        return Tar(name, ask(name).get("size"))
    try:
        return Tar(name, Path(name).stat().st_size)
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): check the path") from None


def split_finished(tars: Sequence[Tar]) -> tuple[list[Tar], list[Tar]]:
    """The tars that are complete, and those that img2dataset is still writing or has given up."""
    folders: dict[str, list[Tar]] = {}
    for tar in tars:
        folders.setdefault(tar.name.rpartition("/")[0], []).append(tar)
    unfinished: set[Tar] = set()
    for folder, inside in folders.items():
        known = _stats_files(folder, inside)
        if known:
            unfinished |= {tar for tar in inside if _stats_name(tar) not in known}
    return [tar for tar in tars if tar not in unfinished], [tar for tar in tars if tar in unfinished]


def _stats_files(folder: str, tars: Sequence[Tar]) -> set[str]:
    """Names of the `_stats.json` files in a folder, on a web server of the tars' own; none if nothing is told."""
    if not is_remote(folder):
        return {path.name for path in Path(folder or "/").glob(f"*{STATS}")}
    wanted = sorted({_stats_name(tar) for tar in tars})
    try:
        if not folder.startswith("http"):
            return {name.rpartition("/")[2] for name in list_files(f"{folder}/*{STATS}")}
        # Web servers list nothing.
        with ThreadPoolExecutor(_ASKERS) as pool:
            there = pool.map(_exists, [f"{folder}/{name}" for name in wanted])
            return {name for name, exists in zip(wanted, there, strict=True) if exists}
    except UserError:
        return set()


def _exists(url: str) -> bool:
    try:
        ask(url)
    except Unreadable:
        return False
    return True


def _stats_name(tar: Tar) -> str:
    return re.sub(r"\.tar(\?.*)?$", STATS, tar.name.rpartition("/")[2], flags=re.IGNORECASE)


def common_folder(names: Sequence[str]) -> str | None:
    """The innermost folder or URL that all names lie in; None if there is none."""
    schemes = {name.partition("://")[0] if is_remote(name) else "" for name in names}
    if len(schemes) > 1:
        return None
    if schemes == {""}:
        return os.path.commonpath([name.rpartition("/")[0] or "/" for name in names])
    parts = [name.split("/")[:-1] for name in names]
    same = 0
    while all(len(one) > same and one[same] == parts[0][same] for one in parts):
        same += 1
    # Scheme, nothing, host or bucket.
    return "/".join(parts[0][:same]) if same >= 3 else None


def place_tars(tars: Sequence[Tar], output: Path) -> tuple[str | None, list[Tar]]:
    """What the manifest's paths are relative to, if not its own folder; and the tars with these paths."""
    home = Path(os.path.normpath(output.absolute()))
    names = [tar.name for tar in tars]
    if not any(is_remote(name) for name in names) and all(Path(name).is_relative_to(home) for name in names):
        return None, [Tar(tar.name, tar.size, str(Path(tar.name).relative_to(home))) for tar in tars]
    base = common_folder(names)
    if base is None:
        return str(home), [Tar(tar.name, tar.size, tar.name) for tar in tars]
    skipped = len(base.rstrip("/")) + 1
    return base, [Tar(tar.name, tar.size, tar.name[skipped:]) for tar in tars]


def name_some(tars: Sequence[Tar]) -> str:
    """The first few tars, for messages."""
    named = ", ".join(shown(tar.name) for tar in tars[:_NAMED])
    return named + (f" and {len(tars) - _NAMED} more" if len(tars) > _NAMED else "")
