"""The contract that every quantizer keeps, and what is special to each."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import distributed

from mentor.errors import UserError
from mentor.tokenizers import (
    EMAVQConfig,
    FSQConfig,
    Quantizer,
    QuantizerConfig,
    VectorQuantizer,
    VQConfig,
    build_quantizer,
)
from mentor.tokenizers.clustering import Draws, draw_vectors, kmeans
from mentor.tokenizers.geometry import Space, Sphere

CONFIGS = {
    "vq": VQConfig(codes=64, width=6),
    "vq in space": VQConfig(codes=64, width=6, unit=False),
    "ema_vq": EMAVQConfig(codes=64, width=6),
    "fsq": FSQConfig(levels=(5, 4, 3)),
}
LEARNING = ("vq", "vq in space", "ema_vq")


@pytest.fixture(params=CONFIGS)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    torch.manual_seed(0)
    return build_quantizer(CONFIGS[request.param])


def latents_for(quantizer: Quantizer, batch: int = 3, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, quantizer.width, 5, 7, generator=generator)


def state_of(quantizer: Quantizer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_shapes_and_types(quantizer: Quantizer) -> None:
    quantized = quantizer(latents_for(quantizer))
    assert quantized.latents.shape == (3, quantizer.width, 5, 7)
    assert quantized.ids.shape == (3, 5, 7)
    assert quantized.ids.dtype == torch.int64
    assert quantized.loss.shape == ()
    assert torch.isfinite(quantized.loss)
    assert quantizer.codebook.shape == (quantizer.vocab_size, quantizer.width)
    assert quantized.ids.min() >= 0
    assert quantized.ids.max() < quantizer.vocab_size


def test_every_id_survives_the_round_trip(quantizer: Quantizer) -> None:
    ids = torch.arange(quantizer.vocab_size)
    assert torch.equal(quantizer.nearest(quantizer.codebook[ids]), ids)
    assert len(quantizer.codebook.unique(dim=0)) == quantizer.vocab_size


def test_latents_are_the_code_vectors(quantizer: Quantizer) -> None:
    quantizer.eval()
    quantized = quantizer(latents_for(quantizer))
    assert torch.equal(quantized.latents, quantizer.lookup(quantized.ids))
    picked = quantizer.codebook[quantized.ids[1, 2, 3]]
    assert torch.equal(quantized.latents[1, :, 2, 3], picked)


def test_the_nearest_code_is_chosen(quantizer: Quantizer) -> None:
    quantizer.eval()
    latents = latents_for(quantizer)
    placed = quantizer.place(latents.permute(0, 2, 3, 1).reshape(-1, quantizer.width))
    distances = (placed.unsqueeze(1) - quantizer.codebook).norm(dim=-1)
    chosen = distances.gather(1, quantizer(latents).ids.reshape(-1, 1)).squeeze(1)
    torch.testing.assert_close(chosen, distances.min(dim=1).values)


def test_gradients_reach_the_encoder(quantizer: Quantizer) -> None:
    latents = latents_for(quantizer).requires_grad_()
    quantized = quantizer(latents)
    (quantized.latents * torch.linspace(-1, 1, quantized.latents.numel()).view_as(latents)).sum().backward()
    assert latents.grad is not None and torch.isfinite(latents.grad).all()
    assert (latents.grad.abs().sum(dim=1) > 0).all()


def test_eval_mode_is_deterministic_and_changes_nothing(quantizer: Quantizer) -> None:
    quantizer.eval()
    before = state_of(quantizer)
    first, second = quantizer(latents_for(quantizer)), quantizer(latents_for(quantizer))
    assert torch.equal(first.latents, second.latents) and torch.equal(first.ids, second.ids)
    relaxed = [quantizer.relax(latents_for(quantizer)).latents for _ in range(2)]
    assert torch.equal(*relaxed)
    assert same_state(before, state_of(quantizer))


def test_float32_inside_autocast(quantizer: Quantizer) -> None:
    quantizer.eval()
    latents = latents_for(quantizer)
    plain = quantizer(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = quantizer(latents)
        half = quantizer(latents.bfloat16())
    assert torch.equal(plain.ids, mixed.ids) and torch.equal(plain.latents, mixed.latents)
    assert mixed.latents.dtype == half.latents.dtype == torch.float32
    assert torch.equal(half.ids, quantizer(latents.bfloat16().float()).ids)


def test_a_wrong_width_is_refused(quantizer: Quantizer) -> None:
    wrong = torch.randn(2, quantizer.width + 1, 4, 4)
    for call in (quantizer, quantizer.relax, quantizer.start):
        with pytest.raises(UserError, match=rf"it takes \(batch, {quantizer.width}, rows, columns\)"):
            call(wrong)


def test_relaxed_latents_are_continuous_and_noisy_in_training(quantizer: Quantizer) -> None:
    latents = latents_for(quantizer).requires_grad_()
    quantizer.eval()
    exact = quantizer.relax(latents)
    assert not torch.equal(exact.latents, quantizer(latents).latents)
    quantizer.train()
    noisy = quantizer.relax(latents)
    assert 0.01 < (noisy.latents - exact.latents).std() < 0.5
    (noisy.latents.square().sum() + noisy.latents.sum() + noisy.loss).backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    assert all(weight.grad is not None for weight in quantizer.parameters())


def test_start_fits_the_codes_to_the_batch(quantizer: Quantizer) -> None:
    generator = torch.Generator().manual_seed(3)
    corner = torch.randn(1, quantizer.width, 1, 1, generator=generator)
    latents = corner + 0.2 * torch.randn(8, quantizer.width, 8, 8, generator=generator)
    assert not quantizer.started
    quantizer.eval()
    before = (quantizer(latents).latents - quantizer.relax(latents).latents).square().mean()
    quantizer.start(latents)
    after = (quantizer(latents).latents - quantizer.relax(latents).latents).square().mean()
    assert quantizer.started
    fixed = isinstance(quantizer.config, FSQConfig)
    assert torch.equal(before, after) if fixed else after < 0.3 * before


def test_training_from_a_start_keeps_the_codes_in_use(quantizer: Quantizer) -> None:
    torch.manual_seed(0)
    quantizer.start(latents_for(quantizer, batch=16))
    for seed in range(60):
        quantizer(latents_for(quantizer, batch=16, seed=seed))
    quantizer.eval()
    ids = quantizer(latents_for(quantizer, batch=64, seed=99)).ids
    assert len(ids.unique()) >= 0.9 * quantizer.vocab_size


def test_weights_load_into_a_fresh_one(quantizer: Quantizer) -> None:
    quantizer.start(latents_for(quantizer))
    fresh = build_quantizer(quantizer.config)
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh.codebook, quantizer.codebook)
    assert fresh.started


def test_the_union_knows_its_kinds() -> None:
    adapter = TypeAdapter(QuantizerConfig)
    assert adapter.validate_python({"kind": "fsq", "levels": [8, 5]}) == FSQConfig(levels=(8, 5))
    for config in CONFIGS.values():
        assert adapter.validate_python(config.model_dump()) == config
    with pytest.raises(ValidationError, match="kind"):
        adapter.validate_python({"kind": "lfq"})
    with pytest.raises(ValidationError):
        FSQConfig(levels=(8, 2))


def dead_and_alive() -> tuple[VectorQuantizer, torch.Tensor]:
    """A codebook of which only a few codes are near the latents, and these latents."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(VQConfig(codes=32, width=4))
    with torch.no_grad():
        quantizer.embedding.weight[:, 0] = -5.0
        quantizer.embedding.weight[:4, 0] = 5.0
    latents = torch.randn(4, 4, 6, 6)
    latents[:, 0] = 3.0
    return quantizer, latents


def test_no_code_counts_as_used_at_the_start() -> None:
    quantizer = VectorQuantizer(VQConfig(codes=16, width=4))
    assert not quantizer.usage.any()
    latents = quantizer.codebook[5].view(1, 4, 1, 1).expand(2, 4, 3, 3)
    quantizer(latents)
    assert quantizer.usage.nonzero().flatten().tolist() == [5]


def test_dead_codes_restart_on_vectors_of_the_batch() -> None:
    quantizer, latents = dead_and_alive()
    for _ in range(20):
        quantizer(latents)
    assert (quantizer.codebook[:, 0] > 0).sum() == 4
    quantizer(latents)
    vectors = quantizer.place(latents.permute(0, 2, 3, 1).reshape(-1, 4))
    assert (quantizer.codebook[:, 0] > 0).all()
    nearest = (quantizer.codebook @ vectors.T).max(dim=1).values
    torch.testing.assert_close(nearest[4:], torch.ones(28))
    assert quantizer.age[4:].tolist() == [1.0] * 28


def test_a_restart_happens_before_the_codes_are_used_so_that_backward_works() -> None:
    quantizer, latents = dead_and_alive()
    latents.requires_grad_()
    for _ in range(30):
        quantized = quantizer(latents)
        (quantized.latents.sum() + quantized.loss).backward()
    assert torch.isfinite(quantizer.embedding.weight.grad).all()


def test_codes_that_were_just_fitted_to_the_batch_wait_for_the_next_one() -> None:
    """Their gradient is zero but for rounding, which another order of a sum changes and Adam makes a step of."""
    quantizer, latents = dead_and_alive()

    def moved() -> torch.Tensor:
        quantizer.zero_grad()
        quantizer(latents).loss.backward()
        assert quantizer.embedding.weight.grad is not None
        return quantizer.embedding.weight.grad.any(dim=1)

    quantizer.start(latents)
    assert not moved().any() and moved().any()
    with torch.no_grad():
        quantizer.embedding.weight[20:, 0] = -5.0
    quantizer.usage[20:] = 0
    quantizer.age.fill_(30)
    assert not moved()[20:].any() and quantizer.age[20:].tolist() == [1.0] * 12
    assert moved()[20:].any()


def test_restarting_can_be_turned_off() -> None:
    quantizer, latents = dead_and_alive()
    silent = VectorQuantizer(quantizer.config.model_copy(update={"restart_below": 0.0}))
    silent.load_state_dict(quantizer.state_dict())
    before = silent.codebook
    for _ in range(40):
        silent(latents)
    assert torch.equal(silent.codebook, before)


def test_commitment_weighs_the_encoders_side_of_the_loss() -> None:
    torch.manual_seed(0)
    gradients = []
    for commitment in (0.25, 0.5):
        quantizer = VectorQuantizer(VQConfig(codes=16, width=4, commitment=commitment)).eval()
        torch.manual_seed(1)
        quantizer.embedding.weight.data.normal_()
        latents = torch.randn(2, 4, 3, 3, requires_grad=True)
        quantizer(latents).loss.backward()
        gradients.append((latents.grad, quantizer.embedding.weight.grad))
    torch.testing.assert_close(gradients[1][0], 2 * gradients[0][0])
    torch.testing.assert_close(gradients[1][1], gradients[0][1])


def test_kmeans_finds_clusters_and_fills_empty_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    vectors = truth[torch.arange(500) % 5] + 0.05 * torch.randn(500, 8, generator=generator)
    # Sorted by cluster, so that all first centres lie in one and most others begin badly.
    mixed = torch.cat((vectors[::5], *(vectors[k::5] for k in range(1, 5))))
    centres, shares = kmeans(mixed, 5, Sphere(), rounds=30)
    assert (centres @ truth.T).max(dim=0).values.min() > 0.99
    torch.testing.assert_close(shares, torch.full((5,), 0.2))


def test_kmeans_in_space_tells_lengths_apart() -> None:
    direction = torch.tensor([[0.6, 0.8]])
    places = torch.cat((direction, 3 * direction, -direction))
    # The first three are alike, so that two clusters begin empty.
    vectors = places[torch.tensor([0, 0, 0, 1, 1, 2])]
    centres, shares = kmeans(vectors, 3, Space())
    assert torch.cdist(places, centres).min(dim=1).values.max() < 1e-6
    assert sorted((shares * 6).round().tolist()) == [1, 2, 3]


def test_drawing_takes_each_vector_once_at_most() -> None:
    vectors = torch.arange(10.0).unsqueeze(1)
    for most, drawn in ((4, 4), (10, 10), (25, 10)):
        assert len(draw_vectors(vectors, most, Draws("a", (0, 1))).unique()) == drawn


def test_heavy_vectors_are_drawn_sooner_as_often_as_their_weight_says() -> None:
    vectors, weights = torch.arange(3.0).unsqueeze(1), torch.tensor([1.0, 2.0, 5.0])
    orders = [draw_vectors(vectors, 2, Draws(str(seed), (0,)), weights) for seed in range(4000)]
    counts = torch.stack(orders).squeeze(2).long()
    first = counts[:, 0].bincount() / 4000
    torch.testing.assert_close(first, weights / 8, atol=0.03, rtol=0)
    # After the heaviest, the others share what is left as they would without it (Plackett-Luce).
    then = counts[counts[:, 0] == 2, 1].bincount(minlength=3).float()
    torch.testing.assert_close(then / then.sum(), torch.tensor([1 / 3, 2 / 3, 0.0]), atol=0.04, rtol=0)


def test_chance_belongs_to_a_picture_and_not_to_its_neighbours(quantizer: Quantizer) -> None:
    latents = latents_for(quantizer, batch=4)
    together = quantizer.relax(latents, Draws("3/1", range(4))).latents
    for places in ([0, 2], [3, 1]):
        assert torch.equal(quantizer.relax(latents[places], Draws("3/1", places)).latents, together[places])
    assert not torch.equal(quantizer.relax(latents, Draws("3/2", range(4))).latents, together)
    same = quantizer.relax(latents[:1].expand(2, -1, -1, -1), Draws("3/1", (0, 1))).latents
    assert not torch.equal(same[0], same[1])


def test_chance_is_spread_as_it_should_be() -> None:
    vectors = torch.zeros(4000, 5)
    draws = Draws("seed", range(100))
    normal, uniform = draws.normal("a", vectors), draws.uniform("a", vectors)
    assert abs(float(normal.mean())) < 0.03 and float(normal.std()) == pytest.approx(1, abs=0.03)
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.02)
    times = draws.exponential("a", vectors)
    assert float(times.mean()) == pytest.approx(1, abs=0.07) and float(times.std()) == pytest.approx(1, abs=0.1)
    assert not torch.equal(draws.normal("b", vectors), normal)


def learn(kind: str, mine: Sequence[int], processes: int) -> tuple[dict[str, torch.Tensor], int]:
    """A start and 50 steps on the pictures `mine` of six: the state at the end, and how many codes restarted."""
    torch.manual_seed(0)
    # Forgetful, so that codes die soon.
    decay = "decay" if kind == "ema_vq" else "usage_decay"
    quantizer = build_quantizer(CONFIGS[kind].model_copy(update={decay: 0.8}))
    # Chance of its own, which must not matter.
    torch.manual_seed(10 + len(mine))
    restarts = 0
    for step in range(51):
        generator = torch.Generator().manual_seed(step)
        latents = torch.randn(6, quantizer.width, 4, 4, generator=generator)
        # They drift, so that codes that were good once lose their vectors.
        latents[:, 0] += 0.1 * step
        latents = latents[list(mine)].requires_grad_()
        draws = Draws(f"0/{step}", mine)
        if step == 0:
            quantizer.start(latents, draws)
            continue
        before = quantizer.codebook.detach().clone()
        quantized = quantizer(latents, draws)
        restarts += int(((quantizer.codebook * before).sum(dim=1) < 0.7).sum())
        (quantized.latents.mean() + quantized.loss).mul(len(mine) / 6).backward()
        for weight in quantizer.parameters():
            assert weight.grad is not None
            if processes > 1:
                distributed.all_reduce(weight.grad)
            weight.data -= 0.1 * weight.grad
            weight.grad = None
    return quantizer.state_dict(), restarts


def learn_as_a_rank(rank: int, folder: Path) -> None:
    """What one of two processes does, one of which has twice as many pictures; its states go into files."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for kind in LEARNING:
        state, _ = learn(kind, ([0, 2, 4, 5], [1, 3])[rank], 2)
        torch.save(state, folder / f"{kind}{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_choose_and_restart_codes_as_one_does(tmp_path: Path) -> None:
    # Fresh interpreters: a fork would inherit threads that do not run in it.
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    path = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    processes = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}) for command in commands]
    try:
        assert [process.wait(timeout=200) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for kind in LEARNING:
        states = [torch.load(tmp_path / f"{kind}{rank}.pt", weights_only=True) for rank in range(2)]
        assert same_state(*states), kind
        alone, restarts = learn(kind, range(6), 1)
        assert restarts > 10, kind
        for name, value in alone.items():
            torch.testing.assert_close(states[0][name], value, atol=1e-5, rtol=0, msg=f"{kind} {name}")


if __name__ == "__main__":
    learn_as_a_rank(int(sys.argv[1]), Path(sys.argv[2]))
