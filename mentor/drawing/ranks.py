"""Which of the processes that draw together this one is; they need not talk to each other."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mentor.errors import UserError


@dataclass(frozen=True)
class Rank:
    """One of several processes.

    Attributes:
        number: among all of them, from 0.
        world: how many there are.
        local: number among those of this machine.
        local_world: how many this machine has.
    """

    number: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @property
    def who(self) -> str:
        """What begins this process's lines for people."""
        return f"process {self.number} of {self.world}: " if self.world > 1 else ""


def find_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """Where torchrun has put this process; the only one where it has not.

    Raises:
        UserError: what the environment says cannot be.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return Rank()
    said = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    shown = " ".join(f"{name}={value}" for name, value in said.items() if value is not None)
    try:
        number, world = int(said["RANK"] or ""), int(said["WORLD_SIZE"] or "")
        local, local_world = int(said["LOCAL_RANK"] or number), int(said["LOCAL_WORLD_SIZE"] or world)
    except ValueError as error:
        raise UserError(f"{shown} does not say which process this is: set both RANK and WORLD_SIZE, or none") from error
    if not (0 <= number < world and 0 <= local < local_world):
        raise UserError(f"{shown}: ranks run from 0 to one less than the number of processes")
    return Rank(number, world, local, local_world)
