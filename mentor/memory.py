"""Free memory, of this machine or of its accelerator."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
# Files of a control group: its limit, what it uses, and how the part of that is called which is given up when needed.
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def free_memory(accelerator: bool, device: torch.device | None = None) -> int:
    """Bytes that a process could take here, on the accelerator or in main memory; 0 where that cannot be told.

    Args:
        accelerator: whether the accelerator's memory is asked for.
        device: which accelerator; None is the process's own.
    """
    if accelerator:
        return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else 0
    machine = _of_machine()
    # A container's limit may be far below what its machine has.
    return min([machine, *_of_groups()]) if machine else 0


def _of_machine() -> int:
    """Bytes that programs could still take without anything being swapped out."""
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _of_groups() -> Iterator[int]:
    """Bytes that each control group above this process leaves free."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            root, names = _GROUPS, _VERSION_2
        elif "memory" in controllers.split(","):
            root, names = _GROUPS / "memory", _VERSION_1
        else:
            continue
        own = PurePosixPath(path.strip("/"))
        # Inside a container the path may be that of the world outside; its own limit then stands at the root.
        for group in dict.fromkeys((own, *own.parents)):
            free = _left(root / group, *names)
            if free is not None:
                yield free


def _left(group: Path, limit: str, used: str, spare: str) -> int | None:
    """Bytes below the limit of a control group; None where it has none."""
    try:
        most = int((group / limit).read_text())
        taken = int((group / used).read_text())
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, most - taken + int(kept.get(spare, 0)))
    except (OSError, ValueError):
        return None
