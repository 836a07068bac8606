from pathlib import Path

import pytest
import torch

from mentor.errors import UserError
from mentor.training.checkpoints import AtomicCheckpointIO


class Payload:
    """Something that only running code could bring back."""


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    files = AtomicCheckpointIO()
    path = tmp_path / "new" / "last.ckpt"
    files.save_checkpoint({"a": torch.arange(3), "b": {"c": 1.5}}, path)
    loaded = files.load_checkpoint(path)
    assert loaded["a"].tolist() == [0, 1, 2]
    assert loaded["b"] == {"c": 1.5}
    assert [found.name for found in path.parent.iterdir()] == ["last.ckpt"]
    files.remove_checkpoint(path)
    assert not path.exists()


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    files.save_checkpoint({"step": 1}, path)

    def fail(content: object, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match="No space left"):
        files.save_checkpoint({"step": 2}, path)
    assert files.load_checkpoint(path) == {"step": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("weights_only", [None, False])
def test_nothing_that_needs_code_is_read(tmp_path: Path, weights_only: bool | None) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"payload": Payload()}, path)
    with pytest.raises(UserError, match="cannot be read"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"last\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
