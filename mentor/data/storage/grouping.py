"""The members of a stranger's tar put together to samples, by WebDataset's rule and within limits.

A sample is a row of neighbours whose names agree up to the first dot of the last part; the rest of the name, in lower
case, is the ending. Only plain members with the wanted endings are read, if their sizes are within the limits;
compressed members, pickles and whatever else are passed over.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mentor.data.storage.decoding import BadSample, Limits
from mentor.data.storage.tars import Member


@dataclass
class Encoded:
    """What is wanted of one key, still encoded.

    Attributes:
        key: as in the tar.
        picture: the file of the preferred ending among those seen.
        rank: of that ending; smaller is preferred.
        caption: the file that the caption is in.
        members: how many it has so far.
        endings: of those that were wanted.
        wrong: the first thing that makes it unusable.
    """

    key: str
    picture: bytes | None = None
    rank: int = 99
    caption: bytes | None = None
    members: int = 0
    endings: set[str] = field(default_factory=set)
    wrong: BadSample | None = None

    @property
    def size(self) -> int:
        """Bytes that wait in memory."""
        return len(self.picture or b"") + len(self.caption or b"")


class Groups:
    """Samples from members: `wanted` and `add` are told of every plain member of one tar in turn.

    Args:
        image: endings of the picture, the preferred one first, separated by semicolons.
        caption: the ending of the file with the caption; what follows a dot plays no part, nothing wants none.
        limits: of a sample.
        choose: told the number of a sample and its key, says whether it is wanted at all.
    """

    def __init__(self, image: str, caption: str, limits: Limits, choose: Callable[[int, str], bool]) -> None:
        self._pictures, self._caption = image.split(";"), caption.partition(".")[0]
        self._limits, self._choose = limits, choose
        self._number = -1
        self._key = ""
        self._ending = ""
        self._current: Encoded | None = None
        self._done: list[Encoded] = []
        # Hashes, since a shard's names may be long.
        self._keys: set[int] = set()

    def wanted(self, member: Member) -> bool:
        """Whether the member's content is needed; asked before it is read."""
        self._ending = ""
        key, ending = _split(member.name)
        if not key:
            return False
        if key != self._key:
            self._begin(key)
        sample = self._current
        if sample is None or sample.wrong is not None:
            return False
        sample.members += 1
        sample.wrong = self._fault(sample, member, ending)
        if sample.wrong is None and (ending in self._pictures or ending == self._caption):
            sample.endings.add(ending)
            worse = ending in self._pictures and self._pictures.index(ending) > sample.rank
            self._ending = "" if worse else ending
        return bool(self._ending)

    def add(self, content: bytes) -> None:
        """Take the content of the member that was asked for last, if it was wanted."""
        if self._current is None or not self._ending:
            return
        if self._ending in self._pictures:
            self._current.picture, self._current.rank = content, self._pictures.index(self._ending)
        else:
            self._current.caption = content

    def end(self) -> None:
        """The tar is through: the sample that was being put together is whole."""
        if self._current is not None:
            self._done.append(self._current)
        self._current = None

    def ready(self) -> Iterator[Encoded]:
        """The samples that are whole."""
        done, self._done = self._done, []
        yield from done

    def _begin(self, key: str) -> None:
        self.end()
        self._key = key
        self._number += 1
        again = hash(key) in self._keys
        self._keys.add(hash(key))
        if self._choose(self._number, key):
            wrong = BadSample("duplicate key", "samples of the same name stand apart") if again else None
            self._current = Encoded(key, wrong=wrong)

    def _fault(self, sample: Encoded, member: Member, ending: str) -> BadSample | None:
        limits = self._limits
        picture, text = ending in self._pictures, ending == self._caption
        allowed = limits.picture_bytes if picture else limits.text_bytes
        if len(member.name) > limits.name_length:
            return BadSample("name too long", f"{len(member.name)} letters, at most {limits.name_length} are allowed")
        if ending in sample.endings:
            return BadSample("member twice", f"two members of the sample end in {ending}")
        if sample.members > limits.members:
            return BadSample("too many members", f"more than {limits.members}")
        if (picture or text) and member.size > allowed:
            kind = "picture" if picture else "json" if ending == "json" else "text"
            return BadSample(f"{kind} too large", f"{member.size} bytes, at most {allowed} are allowed")
        return None


def _split(name: str) -> tuple[str, str]:
    """A member's key and ending; an empty key when its name has none."""
    # Names need not be UTF-8; what is not becomes readable.
    name = name.encode(errors="backslashreplace").decode().removeprefix("./")
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (folder + slash + stem, ending.lower()) if stem and ending else ("", "")
