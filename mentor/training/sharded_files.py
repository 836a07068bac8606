"""The files of a sharded training's checkpoint: each process writes what it holds, any number of processes reads it.

`state.ckpt` has everything but the sharded tensors; in the place of each stands a tensor without content (on torch's
`meta` device) that tells its shape and type. `rows-0000-of-0002.safetensors` has the rows that process 0 of two held
of each sharded tensor. Its header says for each tensor, by its path in the state, such as `state_dict/generator.rows`,
under which name its rows are (those that occur twice, as frozen weights do, are stored once) and the number of the
first of them. Nothing of this runs code when it is read, as the index of torch's own format for sharded checkpoints
does, which is a pickle.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from mentor.errors import UserError
from mentor.training.checkpoint_files import sha256_of

_PATTERN = "rows-*.safetensors"
_INDEX = "index"


class _Piece(NamedTuple):
    """Rows of one tensor in one file, from `first` to `last` (not included), and their name there."""

    first: int
    last: int
    file: Any
    name: str


def take_out(state: Any) -> tuple[Any, dict[str, DTensor]]:
    """The state with tensors without content in the place of sharded ones; and those by their path in it."""
    sharded: dict[str, DTensor] = {}

    def place_holder(path: str, value: Tensor) -> Tensor:
        if not isinstance(value, DTensor):
            return value
        sharded[path] = value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    return map_tensors(state, place_holder), sharded


def write_rows(folder: Path, sharded: Mapping[str, DTensor], rank: int, world: int) -> dict[str, tuple[int, str]]:
    """Write this process's rows of the tensors into `folder`; its file's name with size and SHA-256.

    Raises:
        OSError: the file cannot be written.
    """
    path = folder / f"rows-{rank:04d}-of-{world:04d}.safetensors"
    rows: dict[str, Tensor] = {}
    index: dict[str, tuple[str, int]] = {}
    stored: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in sharded.items():
        first, last = own_rows(tensor.shape[0], tensor.device_mesh)
        local = tensor.to_local().detach()
        if tensor.placements != (Shard(0),) or len(local) != last - first:
            raise RuntimeError(f"{name} is not sharded by rows: {tensor.placements}, {tuple(local.shape)} here")
        if last > first:
            key = stored.setdefault((local.data_ptr(), local.shape), name)
            index[name] = key, first
            if key == name:
                rows[name] = local.contiguous().cpu()
    try:
        save_file(rows, path, metadata={_INDEX: json.dumps(index)})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(folder.stat().st_mode & 0o666)  # safetensors lets the owner alone read them
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {path.name: (path.stat().st_size, sha256_of(path))}


def put_back(state: Any, checkpoint: Path, mesh: DeviceMesh | None = None) -> Any:
    """The state with the sharded tensors of the checkpoint where `take_out` took them from.

    Args:
        state: what `state.ckpt` holds; of a checkpoint that is not sharded, it stays as it is.
        checkpoint: the folder.
        mesh: the processes to share the tensors out to, however many wrote them; None gives whole tensors on the CPU.

    Raises:
        UserError: files are missing, damaged, or do not fit each other.
    """
    pieces = _open_pieces(checkpoint)

    def fill(path: str, value: Tensor) -> Tensor:
        if value.device.type != "meta":
            return value
        found = pieces.get(path, [])
        if mesh is None:
            return _read(checkpoint, path, found, value, 0, value.shape[0])
        local = _read(checkpoint, path, found, value, *own_rows(value.shape[0], mesh))
        return sharded_from(local, value, mesh)

    return map_tensors(state, fill)


def share_out(whole: Tensor, mesh: DeviceMesh) -> DTensor:
    """A tensor that all processes have as a whole, sharded by rows."""
    first, last = own_rows(whole.shape[0], mesh)
    return sharded_from(whole[first:last].clone(), whole, mesh)


def sharded_from(local: Tensor, like: Tensor, mesh: DeviceMesh) -> DTensor:
    """The sharded tensor of which `local` is this process's part; `like` tells the shape of all of it."""
    local = local.to(mesh.device_type)
    shape = torch.Size(like.shape)
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=_strides(shape))


def own_rows(rows: int, mesh: DeviceMesh) -> tuple[int, int]:
    """First and last (not included) of this process's rows; as `torch.chunk` and FSDP share them out."""
    share = -(-rows // mesh.size())
    first = min(mesh.get_local_rank() * share, rows)
    return first, min(first + share, rows)


def map_tensors(value: Any, change: Callable[[str, Tensor], Any], path: str = "") -> Any:
    """Plain containers with each tensor in them changed; `change` also gets its path, keys joined by slashes."""
    below = f"{path}/" if path else ""
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, Mapping):
        return {key: map_tensors(one, change, f"{below}{key}") for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map_tensors(one, change, f"{below}{number}") for number, one in enumerate(value))
    return value


def _open_pieces(checkpoint: Path) -> dict[str, list[_Piece]]:
    pieces: dict[str, list[_Piece]] = {}
    for path in sorted(checkpoint.glob(_PATTERN)):
        try:
            file = safe_open(path, framework="pt")
            for name, (key, first) in json.loads((file.metadata() or {})[_INDEX]).items():
                last = int(first) + int(file.get_slice(key).get_shape()[0])
                pieces.setdefault(name, []).append(_Piece(int(first), last, file, key))
        except (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} cannot be read ({str(error)[:120] or type(error).__name__}): say resume=false to start over"
            ) from error
    return pieces


def _read(checkpoint: Path, name: str, pieces: Sequence[_Piece], like: Tensor, first: int, last: int) -> Tensor:
    """Rows `first` to `last` of a tensor, from wherever they are."""
    parts, done = [torch.empty(0, *like.shape[1:], dtype=like.dtype)], first
    for piece in sorted(pieces, key=lambda one: one.first):
        start, end = max(done, piece.first), min(last, piece.last)
        if start == done and start < end:
            part = piece.file.get_slice(piece.name)[start - piece.first : end - piece.first]
            if part.shape[1:] != like.shape[1:] or part.dtype != like.dtype:
                break
            parts.append(part)
            done = end
    if done < last:
        raise UserError(
            f"the checkpoint {checkpoint} has not all rows of {name} ({done} of {last} are there, or of another kind): "
            "say resume=false to start over"
        )
    return torch.cat(parts)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= size
    return tuple(strides)
