"""Tars in WebDataset's layout, img2dataset's among them; pictures stay where they are until they are read."""

import glob
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from mentor.config import Config
from mentor.data.records import Dropped
from mentor.data.sources.items import Item
from mentor.data.sources.tables import NOT_UTF8, captions_of
from mentor.data.storage.decoding import LIMITS, BadSample, decode_json, decode_text
from mentor.data.storage.tars import Member, TarDamage, members
from mentor.errors import UserError

_JSON = "json."


class TarsSource(Config):
    """Local tars, whose samples are rewritten by the recipe's steps.

    Attributes:
        kind: "tars".
        paths: path or glob of tars, a folder of tars, or several of these.
        image: endings that are the picture, the first there is counts.
        caption: endings or JSON fields ("json.caption") that are the caption, the first there is counts; none if empty.
        keep: JSON fields that are kept as attributes.
        skip_damaged: whether a damaged tar is left out and counted instead of ending the work.
    """

    kind: Literal["tars"]
    paths: str | tuple[str, ...]
    image: str = "jpg;jpeg;png;webp"
    caption: str = "txt"
    keep: tuple[str, ...] = ()
    skip_damaged: bool = False

    @field_validator("image", "caption")
    @classmethod
    def _endings(cls, text: str) -> str:
        if any(part.strip(". ") != part for part in text.split(";")):
            raise ValueError('write endings without their dots and spaces, such as "jpg;png"')
        return text


@dataclass(frozen=True)
class TarBlob:
    """A member of a tar."""

    path: Path
    offset: int
    size: int

    def length(self) -> int | None:
        """The member's size."""
        return self.size

    def read(self) -> bytes:
        """The member's bytes.

        Raises:
            OSError: the tar cannot be read, or is shorter than it was.
        """
        file = os.open(self.path, os.O_RDONLY)
        try:
            content = b""
            while len(content) < self.size:
                part = os.pread(file, self.size - len(content), self.offset + len(content))
                if not part:
                    raise OSError(f"{self.path} ends within a member")
                content += part
            return content
        finally:
            os.close(file)


def read_tars(config: TarsSource, folder: Path) -> Iterator[Item | Dropped]:
    """The samples of the tars by path, in their order within each.

    Raises:
        UserError: no tar is found, or one is damaged.
    """
    paths = _find_tars(config, folder)
    top = os.path.commonpath([path.parent for path in paths])
    finished = [_stats(path).exists() for path in paths]
    for path, done in zip(paths, finished, strict=True):
        name = path.relative_to(top).as_posix()
        if any(finished) and not done:
            yield Dropped(name, "unfinished shard", f"no {_stats(path).name} beside it")
            continue
        try:
            # All of a tar is read before any of its samples counts: halves of one may be far apart.
            outcomes = list(_samples(config, path, name))
        except (TarDamage, OSError) as error:
            if not config.skip_damaged:
                raise UserError(
                    f"{path} is damaged: {error}; get it again, or leave damaged tars out with skip_damaged: true"
                ) from None
            yield Dropped(name, "damaged tar", str(error))
            continue
        yield from outcomes


def describe_tars(config: TarsSource, folder: Path) -> dict[str, str]:
    """The names and sizes of the tars."""
    paths = _find_tars(config, folder)
    top = os.path.commonpath([path.parent for path in paths])
    return {path.relative_to(top).as_posix(): f"{path.stat().st_size} bytes" for path in paths}


@dataclass
class _Sample:
    """Members that share a key and stand together."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


def split_name(name: str) -> tuple[str, str]:
    """Key and ending of a member as WebDataset sees them: the ending begins at the first dot of the last part."""
    place, _, last = name.rpartition("/")
    first, dot, kind = last.partition(".")
    return (f"{place}/{first}" if place else first, kind.lower()) if dot and first else ("", "")


def _find_tars(config: TarsSource, folder: Path) -> list[Path]:
    found: dict[Path, None] = {}
    for typed in [config.paths] if isinstance(config.paths, str) else config.paths:
        if "::" in typed or ":" in typed.split("/")[0]:
            raise UserError(f"paths: {typed!r} is no local path: kind tars reads local tars, copy them first")
        wanted = Path(typed).expanduser()
        places = list(dict.fromkeys([(folder / wanted).absolute(), wanted.absolute()]))
        for place in places:
            matches = sorted(place.glob("*.tar")) if place.is_dir() else _matches(place)
            if matches:
                found.update(dict.fromkeys(matches))
                break
        else:
            raise UserError(f"no tar matches {typed}: looked for {' and '.join(map(str, places))}")
    return list(found)


def _matches(place: Path) -> list[Path]:
    # A name that exists is meant as it stands, brackets and all.
    names = [str(place)] if place.exists() else glob.glob(str(place), recursive=True)  # noqa: PTH207
    return [Path(name) for name in sorted(names) if Path(name).is_file()]


def _stats(path: Path) -> Path:
    """Beside each finished shard img2dataset leaves its statistics."""
    return path.with_name(f"{path.stem}_stats.json")


def _samples(config: TarsSource, path: Path, name: str) -> Iterator[Item | Dropped]:
    samples, odd = _grouped(config, path)
    yield from (Dropped(f"{name}/{member.name}", "not a plain file", member.odd) for member in odd)
    images = config.image.split(";")
    places = Counter(sample.key for sample in samples)
    seen: dict[str, set[str]] = {}
    torn = set()
    for sample in samples:
        before = seen.setdefault(sample.key, set())
        # The same key again with other endings is the other half; with the same ones it is a second sample.
        if before and not before & sample.members.keys():
            torn.add(sample.key)
        before.update(sample.members)
    number: Counter[str] = Counter()
    for sample in samples:
        number[sample.key] += 1
        origin = f"{name}/{sample.key}" + (f" ({number[sample.key]})" if places[sample.key] > 1 else "")
        picture = next((sample.members[kind] for kind in images if kind in sample.members), None)
        if sample.key in torn:
            yield Dropped(origin, "members of a sample are apart", ", ".join(sample.members))
        elif number[sample.key] > 1:
            yield Dropped(origin, "duplicate key", sample.key)
        elif picture is None:
            yield Dropped(origin, "no picture", ", ".join(sample.members))
        else:
            yield _item(config, path, f"{name}/{sample.key}", sample, picture)


def _grouped(config: TarsSource, path: Path) -> tuple[list[_Sample], list[Member]]:
    """The samples of a tar in order, with the texts that are asked for, and the members that are no plain files."""
    fields = _fields(config)
    kinds = {"json" if part.startswith(_JSON) else part for part in fields}

    def wanted(member: Member) -> bool:
        return split_name(member.name)[1] in kinds and member.size <= LIMITS.text_bytes

    samples: list[_Sample] = []
    odd: list[Member] = []
    with path.open("rb") as file:
        for member, content in members(file, wanted):
            key, kind = split_name(member.name)
            if member.odd:
                odd.append(member)
            elif key:
                if not samples or samples[-1].key != key or kind in samples[-1].members:
                    samples.append(_Sample(key))
                samples[-1].members[kind] = member
                if kind in kinds:
                    samples[-1].texts[kind] = content
    return samples, odd


def _fields(config: TarsSource) -> Sequence[str]:
    return [*filter(None, config.caption.split(";")), *(_JSON + name for name in config.keep)]


def _item(config: TarsSource, path: Path, origin: str, sample: _Sample, picture: Member) -> Item | Dropped:
    parts = _fields(config)
    for kind in sample.texts:
        if sample.members[kind].size > LIMITS.text_bytes:
            return Dropped(origin, "text too large", kind)
    try:
        words = decode_json(sample.texts["json"]) if "json" in sample.texts and any(map(_is_field, parts)) else {}
        if not isinstance(words, dict):
            raise BadSample("damaged json", "no object")
        captions = _captions(config, sample, words)
    except BadSample as bad:
        return Dropped(origin, NOT_UTF8 if "UTF-8" in bad.reason else bad.reason, bad.detail)
    attributes = {name: words[name] for name in config.keep if name in words}
    key = posixpath.basename(sample.key)
    return Item(
        origin,
        TarBlob(path, picture.offset, picture.size),
        captions,
        attributes={"shard": path.name, "key": key, **attributes},
    )


def _captions(config: TarsSource, sample: _Sample, words: dict[str, Any]) -> tuple[str, ...]:
    """The captions of the first place that has some.

    Raises:
        BadSample: one is not UTF-8, or no text.
    """
    for part in filter(None, config.caption.split(";")):
        if _is_field(part):
            captions = captions_of(words.get(part.removeprefix(_JSON)))
        else:
            captions = captions_of(decode_text(sample.texts.get(part, b"")))
        if captions is None:
            raise BadSample("damaged json", f"{part} is no text")
        if captions:
            return captions
    return ()


def _is_field(part: str) -> bool:
    return part.startswith(_JSON)
