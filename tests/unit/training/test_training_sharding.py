"""Sharded generators in a process group of one, and the files of their checkpoints; two processes are in test_fsdp."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mentor.conditioning import Condition
from mentor.errors import UserError
from mentor.models import Generator
from mentor.tokenizers import ImageTokenizer
from mentor.training.config import ObjectiveConfig, TrainConfig
from mentor.training.generator_module import GeneratorModule
from mentor.training.gradients import gradients_so_far
from mentor.training.norms import clip_gradients, total_norm
from mentor.training.optim import OptimizerConfig, build_optimizer
from mentor.training.sharded_files import own_rows, put_back, share_out, take_out, write_rows
from mentor.training.sharding import (
    Reach,
    check_sharding,
    gather_generator,
    gather_weights,
    local_part,
    reshard,
    shard,
    sharded_parameters,
    share_out_states,
    whole,
)
from mentor.types import ImageSegment, TextSegment

Settings = Callable[..., TrainConfig]


@pytest.fixture
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    """A process group of one."""
    store = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def step(generator: Generator, image_tokenizer: ImageTokenizer, references: bool) -> Tensor:
    """Gradients of a loss of two prompts, with or without pictures in them."""
    torch.manual_seed(3)
    ids = torch.randint(0, 32, (2, 8, 8))
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    prompts: list[Any] = [(TextSegment("a blue square"),)] * 2
    condition = Condition(prompts, None)
    if references:
        prompts = [(ImageSegment(picture), TextSegment("a circle")) for picture in pictures]
        condition = Condition(prompts, image_tokenizer.encode(pictures))
    logits = generator(condition, ids)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    loss.backward()
    return loss.detach()


def module_of(generator: Generator, image_tokenizer: ImageTokenizer) -> GeneratorModule:
    return GeneratorModule(generator, image_tokenizer, ObjectiveConfig(), OptimizerConfig(lr=1e-3), 10, ["segment"], 0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (("optimizer.kind=muon",), "optimizer.kind=adamw, or say trainer.strategy=ddp"),
        (("trainer.precision=16-mixed",), "trainer.precision=bf16-mixed or 32-true"),
    ],
)
def test_what_sharding_cannot_do_is_refused_in_a_line(settings: Settings, changes: tuple[str, ...], text: str) -> None:
    check_sharding(settings(*changes))
    check_sharding(settings("trainer.strategy=fsdp"))
    with pytest.raises(UserError) as caught:
        check_sharding(settings("trainer.strategy=fsdp", *changes))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_tokenizer_is_not_sharded(shapes: Path) -> None:
    from mentor.config import compose, validate

    overrides = ("stage=tokenizer", "experiment=test", f"data.root={shapes}", "trainer.strategy=fsdp")
    with pytest.raises(UserError, match="stage=tokenizer trains an image tokenizer"):
        check_sharding(validate(TrainConfig, compose("train", overrides)))


def test_a_sharded_generator_computes_and_learns_what_a_whole_one_does(
    mesh: DeviceMesh, generator: Generator, image_tokenizer: ImageTokenizer
) -> None:
    from tiny import tiny_generator

    plain = tiny_generator(image_tokenizer, layers=2, max_prefix=160)
    shard(generator, mesh, low_precision=False)
    reach = Reach(generator)
    assert all(isinstance(one, DTensor) for one in generator.parameters())
    optimizers = [build_optimizer(one, OptimizerConfig(lr=1e-2)) for one in (plain, generator)]
    for references in (False, True, False):
        expected = step(plain, image_tokenizer, references)
        reach.begin()
        assert torch.equal(step(generator, image_tokenizer, references), expected)
        reach.end()
        without = {name for name, one in plain.named_parameters() if one.grad is None}
        assert without == {name for name, one in generator.named_parameters() if one.grad is None}
        assert bool(without) != references
        norms = [
            total_norm([one.grad for one in each.parameters() if one.grad is not None]) for each in (plain, generator)
        ]
        torch.testing.assert_close(norms[1], norms[0])
        for each, norm, optimizer in zip((plain, generator), norms, optimizers, strict=True):
            clip_gradients([one for one in each.parameters() if one.grad is not None], 0.5, norm)
            optimizer.step()
            optimizer.zero_grad()
    found = gather_weights(generator)
    assert found.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_a_gradient_from_an_earlier_batch_of_an_accumulation_stays(
    mesh: DeviceMesh, generator: Generator, image_tokenizer: ImageTokenizer
) -> None:
    shard(generator, mesh, low_precision=False)
    reach = Reach(generator)
    kept = []
    for references in (True, False):
        reach.begin()
        step(generator, image_tokenizer, references)
        reach.end()
        kept.append(generator.conditioner.projector.mlp[0].weight.grad.full_tensor())
    assert kept[0].abs().sum() > 0
    assert torch.equal(*kept)


def test_the_gradient_of_an_accumulation_in_progress_has_no_zeros_for_what_has_none(
    mesh: DeviceMesh, generator: Generator, image_tokenizer: ImageTokenizer
) -> None:
    from tiny import tiny_generator

    plain = tiny_generator(image_tokenizer, layers=2, max_prefix=160)
    plain.backbone.norm.weight.requires_grad_(False)
    generator.backbone.norm.weight.requires_grad_(False)
    shard(generator, mesh, low_precision=False)
    reach = Reach(generator)
    step(plain, image_tokenizer, references=False)
    reach.begin()
    step(generator, image_tokenizer, references=False)
    reach.end()
    expected, found = gradients_so_far(plain, 1), gradients_so_far(generator, 1)
    assert expected.keys() == found.keys()
    assert "rows" in found
    assert "backbone.norm.weight" not in found
    assert not any("projector" in name for name in found)
    for name, value in expected.items():
        assert value.data_ptr() != plain.get_parameter(name).grad.data_ptr(), "training goes on adding to that one"
        assert isinstance(found[name], DTensor)
        torch.testing.assert_close(found[name].full_tensor(), value)


def test_in_low_precision_the_linear_layers_of_blocks_alone_are_gathered_in_bfloat16(
    mesh: DeviceMesh, generator: Generator, image_tokenizer: ImageTokenizer
) -> None:
    from tiny import tiny_generator

    plain = tiny_generator(image_tokenizer, layers=2, max_prefix=160)
    shard(generator, mesh, low_precision=True)
    seen: set[tuple[str, torch.dtype]] = set()

    def look(*_: Any) -> None:
        seen.update((name, one.dtype) for name, one in generator.named_parameters() if not isinstance(one, DTensor))

    for block in generator.backbone.blocks:
        block.feed_forward.down.register_forward_hook(look)
    for each in (plain, generator):
        with torch.autocast("cpu", torch.bfloat16):
            step(each, image_tokenizer, references=True)
    low = {name for name, kind in seen if kind == torch.bfloat16}
    linear = {name for name, _ in generator.named_parameters() if ".attention." in name or ".feed_forward." in name}
    assert low == linear
    assert {name for name, _ in seen} == {name for name, _ in generator.named_parameters()}
    # The arithmetic is autocast's: gradients agree far better than two roundings to bfloat16 would.
    for name, one in generator.named_parameters():
        expected = dict(plain.named_parameters())[name].grad
        assert one.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad.full_tensor(), expected, rtol=1e-4, atol=1e-6)


def test_the_first_process_can_use_and_save_a_whole_generator(
    mesh: DeviceMesh, generator: Generator, image_tokenizer: ImageTokenizer
) -> None:
    expected = {name: value.clone() for name, value in generator.state_dict().items()}
    module = module_of(generator.eval(), image_tokenizer)
    with whole(module):
        assert module.generator is generator, "nothing to do when it is not sharded"
    assert gather_generator(generator) is generator
    shard(generator, mesh, low_precision=False)
    with whole(module):
        inside = module.generator
        assert inside is not generator
        assert not isinstance(inside, FSDPModule)
        assert not inside.training
        assert all(torch.equal(inside.state_dict()[name], value) for name, value in expected.items())
        assert {name for name, _ in module.named_parameters()} == {
            f"generator.{name}" for name, _ in inside.named_parameters()
        }
    assert module.generator is generator
    assert all(isinstance(one, DTensor) for one in module.generator.parameters())


def test_what_was_gathered_is_let_go_of(
    mesh: DeviceMesh, generator: Generator, image_tokenizer: ImageTokenizer
) -> None:
    shard(generator, mesh, low_precision=False)
    with torch.no_grad():
        condition = Condition([(TextSegment("a blue square"),)], None)
        generator(condition, torch.zeros(1, 8, 8, dtype=torch.long))
    assert not isinstance(generator.rows, DTensor), "a validation leaves the root's weights gathered"
    assert len(sharded_parameters(generator)) == len(list(generator.parameters()))
    assert isinstance(generator.rows, DTensor)
    reshard(generator)
    assert local_part(generator.rows).shape == (8, 32)
    assert local_part(torch.ones(2)).shape == (2,)


def test_a_state_goes_to_the_disk_and_comes_back_sharded_or_whole(mesh: DeviceMesh, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, moment = torch.randn(5, 3), torch.randn(4).bfloat16()
    shared = share_out(weight, mesh)
    state = {
        "state_dict": {"a.weight": shared, "counter": torch.tensor(3)},
        "current_model_state": {"a.weight": shared},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(2.0), "exp_avg": share_out(moment, mesh)}}}],
        "loops": {"done": (1, "two", None)},
    }
    plain, sharded = take_out(state)
    assert set(sharded) == {
        "state_dict/a.weight",
        "current_model_state/a.weight",
        "optimizer_states/0/state/0/exp_avg",
    }
    torch.save(plain, tmp_path / "state.ckpt")
    files = write_rows(tmp_path, sharded, 0, 1)
    (name, (size, _)) = next(iter(files.items()))
    assert (tmp_path / name).stat().st_size == size
    assert len(load_file(tmp_path / name)) == 2, "what occurs twice is stored once"
    read = torch.load(tmp_path / "state.ckpt", weights_only=True)
    assert read["state_dict"]["a.weight"].device.type == "meta"
    for back in (put_back(read, tmp_path), put_back(read, tmp_path, mesh)):
        assert back["loops"] == state["loops"]
        assert back["state_dict"]["counter"] == 3
        found = [
            back["state_dict"]["a.weight"],
            back["current_model_state"]["a.weight"],
            back["optimizer_states"][0]["state"][0]["exp_avg"],
        ]
        assert [isinstance(one, DTensor) for one in found] == [back["state_dict"]["a.weight"].__class__ is DTensor] * 3
        for one, expected in zip(found, (weight, weight, moment), strict=True):
            assert torch.equal(one.full_tensor() if isinstance(one, DTensor) else one, expected)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_rows_are_shared_out_as_torch_does(rows: int, world: int) -> None:
    chunks = torch.arange(rows).chunk(world)
    for rank in range(world):
        first, last = own_rows(rows, SimpleNamespace(size=lambda: world, get_local_rank=lambda rank=rank: rank))
        expected = chunks[rank].tolist() if rank < len(chunks) else []
        assert list(range(first, last)) == expected


def write_pieces(folder: Path, pieces: list[tuple[int, Tensor]], name: str = "a/w") -> None:
    for number, (first, rows) in enumerate(pieces):
        index = {name: ("rows", first)}
        path = folder / f"rows-{number:04d}-of-{len(pieces):04d}.safetensors"
        save_file({"rows": rows}, path, metadata={"index": json.dumps(index)})


def test_rows_of_any_number_of_processes_are_joined(mesh: DeviceMesh, tmp_path: Path) -> None:
    whole_one = torch.randn(7, 2)
    write_pieces(tmp_path, [(5, whole_one[5:].clone()), (0, whole_one[:3].clone()), (3, whole_one[3:5].clone())])
    state = {"a": {"w": torch.empty(7, 2, device="meta")}}
    assert torch.equal(put_back(state, tmp_path)["a"]["w"], whole_one)
    assert torch.equal(put_back(state, tmp_path, mesh)["a"]["w"].full_tensor(), whole_one)


@pytest.mark.fault(16)
@pytest.mark.parametrize("damage", ["missing", "short", "kind", "width", "noise", "header", "number", "pickle"])
def test_damaged_rows_are_refused_in_a_line(tmp_path: Path, damage: str) -> None:
    rows = torch.randn(6, 2)
    halves = [(0, rows[:3].clone()), (3, rows[3:].clone())]
    write_pieces(tmp_path, halves)
    second = tmp_path / "rows-0001-of-0002.safetensors"
    match damage:
        case "missing":
            second.unlink()
        case "short":
            write_pieces(tmp_path, [halves[0], (4, rows[4:].clone())])
        case "kind":
            write_pieces(tmp_path, [halves[0], (3, rows[3:].half())])
        case "width":
            write_pieces(tmp_path, [halves[0], (3, torch.zeros(3, 5))])
        case "noise":
            second.write_bytes(bytes(range(256)) * 4)
        case "header":
            save_file({"rows": halves[1][1]}, second, metadata={"index": "[" * 100_000})
        case "number":
            save_file({"rows": halves[1][1]}, second, metadata={"index": '{"a/w": ["rows", "three"]}'})
        case _:
            torch.save({"rows": halves[1][1]}, second)
    with pytest.raises(UserError, match="say resume=false to start over") as caught:
        put_back({"a": {"w": torch.empty(6, 2, device="meta")}}, tmp_path)
    assert "\n" not in str(caught.value)


def test_whole_optimizer_states_are_shared_out(mesh: DeviceMesh) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(3, 4)
    before = torch.optim.AdamW(plain.parameters(), lr=0.1)
    plain(torch.ones(2, 3)).sum().backward()
    before.step()
    parameters = [nn.Parameter(share_out(one.detach(), mesh)) for one in plain.parameters()]
    after = torch.optim.AdamW(parameters, lr=0.1)
    after.load_state_dict(before.state_dict())
    share_out_states(after, mesh)
    for old, new in zip(plain.parameters(), parameters, strict=True):
        assert not isinstance(after.state[new]["step"], DTensor)
        for name in ("exp_avg", "exp_avg_sq"):
            assert isinstance(after.state[new][name], DTensor)
            assert torch.equal(after.state[new][name].full_tensor(), before.state[old][name])
