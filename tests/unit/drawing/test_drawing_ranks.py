"""Which process of how many: what torchrun says, and what nobody could mean."""

import pytest

from mentor.drawing.ranks import Rank, find_rank
from mentor.errors import UserError


def test_without_torchrun_there_is_one_process() -> None:
    assert find_rank({}) == Rank(0, 1, 0, 1) and Rank().who == ""


def test_torchrun_says_who_this_is() -> None:
    said = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert find_rank(said) == Rank(5, 8, 1, 4)
    assert find_rank({"RANK": "1", "WORLD_SIZE": "2"}) == Rank(1, 2, 1, 2)
    assert Rank(1, 2).who == "process 1 of 2: "


@pytest.mark.parametrize(
    "said",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2"},
    ],
)
def test_what_cannot_be_is_refused(said: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"RANK|WORLD_SIZE"):
        find_rank(said)
