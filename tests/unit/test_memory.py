"""Free memory: what the machine says, a container's limit, and no answer at all."""

from pathlib import Path

import pytest
import torch

from mentor import memory

GB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB free and no limits."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {16 * 2**20} kB\nMemFree: 100 kB\nMemAvailable: {8 * 2**20} kB\n")
    (tmp_path / "own").write_text("")
    (tmp_path / "groups").mkdir()
    for name, path in (("_MEMINFO", "meminfo"), ("_OWN_GROUPS", "own"), ("_GROUPS", "groups")):
        monkeypatch.setattr(memory, name, tmp_path / path)
    return tmp_path


def limit(folder: Path, most: str, used: int, spare: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (most, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{'' if version == 2 else 'total_'}inactive_file {spare}\n")


def test_the_machine_says_what_can_be_taken_without_swapping(machine: Path) -> None:
    assert memory.free_memory(accelerator=False) == 8 * GB


def test_a_containers_limit_counts_less_what_it_uses_but_for_what_it_would_give_up(machine: Path) -> None:
    (machine / "own").write_text("0::/job/step\n")
    limit(machine / "groups" / "job" / "step", "max", 1 * GB, 0, 2)
    limit(machine / "groups" / "job", str(4 * GB), 3 * GB, GB // 2, 2)
    assert memory.free_memory(accelerator=False) == GB + GB // 2


def test_the_limit_seen_from_within_a_container_stands_at_the_root(machine: Path) -> None:
    (machine / "own").write_text("5:cpu:/\n4:memory:/docker/abc\n")
    limit(machine / "groups" / "memory", str(2 * GB), 3 * GB, 0, 1)
    assert memory.free_memory(accelerator=False) == 0, "more is used than is allowed"


def test_a_limit_above_the_machines_memory_is_none(machine: Path) -> None:
    (machine / "own").write_text("0::/\n")
    limit(machine / "groups", str(64 * GB), 0, 0, 2)
    assert memory.free_memory(accelerator=False) == 8 * GB


def test_a_machine_that_does_not_say_has_a_number_or_none(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "meminfo").unlink()
    assert memory.free_memory(accelerator=False) > 0
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.free_memory(accelerator=False) == 0


def test_no_accelerator_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.free_memory(accelerator=True) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert memory.free_memory(accelerator=True) == 7
