"""Which ways of drawing a kind of model is tried with, and which of all points nobody beats in both."""

from collections.abc import Mapping, Sequence
from typing import Any

from mentor.errors import UserError

Changes = Mapping[str, Any]

SWEEPS: dict[str, tuple[Changes, ...]] = {
    "ar": ({}, {"guidance": 1.0}, {"speculative": 8}),
    "dit": tuple({"steps": steps} for steps in (1, 2, 4, 8, 16, 32)),
    "diffusion": tuple({"steps": steps} for steps in (5, 10, 25)),
}
# Tokens at a time, for what draws them in any order.
AT_ONCE = (2, 4, 12)


def sweep_of(head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The changes to its sampling that a model with this head is tried with.

    Raises:
        UserError: there is no table for this kind.
    """
    kind = str(head["kind"])
    if kind not in SWEEPS:
        raise UserError(f"the head {kind!r} has no table of samplings: known are {', '.join(SWEEPS)}")
    if head.get("order") != "random":
        return [dict(changes) for changes in SWEEPS[kind]]
    return [{**changes, "tokens_per_step": at_once} for at_once in AT_ONCE for changes in SWEEPS[kind]]


def in_words(changes: Changes) -> str:
    """The changes on one line."""
    return ", ".join(f"{name} {value}" for name, value in changes.items()) or "as it is evaluated"


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (seconds, quality) points that none beats: no other is as fast and as good, and better in one.

    In order of seconds.
    """
    kept = [
        index
        for index, (seconds, quality) in enumerate(points)
        if not any(
            other[0] <= seconds and other[1] >= quality and other != (seconds, quality)
            for place, other in enumerate(points)
            if place != index
        )
    ]
    return sorted(kept, key=lambda index: points[index])
