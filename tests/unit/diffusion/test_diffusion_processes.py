"""What every process keeps, and what each makes of its settings."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from mentor.config import validate
from mentor.diffusion import DDPMConfig, FlowConfig, ProcessConfig, build_process
from mentor.errors import UserError

PROCESSES = [
    FlowConfig(),
    FlowConfig(shift=3.0, time_mean=-0.5, time_std=1.5),
    DDPMConfig(),
    DDPMConfig(steps=200),
    DDPMConfig(schedule="linear"),
    DDPMConfig(schedule="scaled_linear"),
    DDPMConfig(prediction="v"),
    DDPMConfig(prediction="v", zero_snr=True),
]
NAMES = [repr(config) for config in PROCESSES]
every_process = pytest.mark.parametrize("config", PROCESSES, ids=NAMES)


def batch(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@every_process
@pytest.mark.parametrize("shape", [(64, 8), (64, 5, 8), (64, 3, 4, 4)])
def test_the_target_stands_for_the_clean_sample(config: ProcessConfig, shape: tuple[int, ...]) -> None:
    process, (clean, noise) = build_process(config), batch(*shape)
    # Above this the noise says next to nothing of a sample, in numbers of single precision.
    time = torch.linspace(0, 0.9, 64).mul(process.span).floor()
    noisy, target = process.noisy(clean, noise, time), process.target(clean, noise, time)
    assert noisy.shape == target.shape == shape
    torch.testing.assert_close(process.clean(noisy, target, time), clean, atol=2e-4, rtol=0)


@every_process
def test_numbers_of_single_precision_stay_so(config: ProcessConfig) -> None:
    process, (clean, noise) = build_process(config), batch(4, 8)
    time = process.times(torch.rand(4, generator=torch.Generator().manual_seed(1)))
    noisy, target = process.noisy(clean, noise, time), process.target(clean, noise, time)
    made = (time, noisy, target, process.clean(noisy, target, time))
    assert {tensor.dtype for tensor in made} == {torch.float32}


@every_process
def test_each_sample_has_a_time_of_its_own(config: ProcessConfig) -> None:
    process, (clean, noise) = build_process(config), batch(6, 3, 8)
    time = torch.linspace(0, 0.9, 6).mul(process.span).floor()
    alone = [process.noisy(clean[i : i + 1], noise[i : i + 1], time[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(process.noisy(clean, noise, time), torch.cat(alone))


@every_process
def test_training_times_lie_in_range_and_rise(config: ProcessConfig) -> None:
    process = build_process(config)
    uniform = torch.cat([torch.tensor([0.0, 1e-12]), torch.linspace(0.001, 0.999, 500), torch.tensor([1 - 2**-24])])
    time = process.times(uniform)
    assert time.isfinite().all() and time.min() >= 0 and time.max() <= process.span
    assert (time.diff() >= 0).all()
    if isinstance(config, DDPMConfig):
        assert time.max() == config.steps - 1 and torch.equal(time, time.floor())


@every_process
def test_a_time_depends_on_its_own_chance_alone(config: ProcessConfig) -> None:
    process, uniform = build_process(config), torch.rand(10, generator=torch.Generator().manual_seed(2))
    assert torch.equal(process.times(uniform)[3:4], process.times(uniform[3:4]))


@every_process
def test_samples_begin_clean_and_end_as_noise(config: ProcessConfig) -> None:
    process, (clean, noise) = build_process(config), batch(2, 8)
    last = process.span - isinstance(config, DDPMConfig)
    ends = process.noisy(clean, noise, torch.tensor([0.0, last]))
    assert (ends[0] - clean[0]).abs().max() < 0.15
    assert (ends[1] - noise[1]).abs().max() < 0.15


@pytest.mark.parametrize("config", [one for one in PROCESSES if one.kind == "ddpm"])
def test_ddpm_keeps_the_variance(config: DDPMConfig) -> None:
    process, (clean, noise) = build_process(config), batch(20_000, 1)
    for share in (0.0, 0.3, 0.6, 0.9):
        time = torch.full((20_000,), float(int(share * config.steps)))
        assert process.noisy(clean, noise, time).std().item() == pytest.approx(1, abs=0.02)


def test_flow_is_a_straight_line() -> None:
    process, (clean, noise) = build_process(FlowConfig(shift=3.0)), batch(1, 8)
    for share in (0.0, 0.25, 1.0):
        expected = (1 - share) * clean + share * noise
        torch.testing.assert_close(process.noisy(clean, noise, torch.tensor([1000 * share])), expected)
    assert torch.equal(process.target(clean, noise, torch.tensor([250.0])), noise - clean)


def test_a_shift_moves_training_times_towards_noise() -> None:
    uniform = torch.linspace(0.01, 0.99, 99)
    plain = build_process(FlowConfig()).times(uniform) / 1000
    shifted = build_process(FlowConfig(shift=3.0)).times(uniform) / 1000
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    assert plain[49] == pytest.approx(0.5) and shifted[49] == pytest.approx(0.75)


def test_the_mean_of_the_logits_moves_the_median() -> None:
    median = build_process(FlowConfig(time_mean=1.0, time_std=0.5)).times(torch.tensor([0.5]))
    assert median.item() == pytest.approx(1000 / (1 + math.exp(-1)), rel=1e-5)


def test_zero_snr_leaves_nothing_of_the_sample() -> None:
    clean, noise = batch(4, 8)
    last = torch.full((4,), 999.0)
    config = DDPMConfig(prediction="v", schedule="linear")
    assert torch.equal(build_process(config.model_copy(update={"zero_snr": True})).noisy(clean, noise, last), noise)
    assert not torch.equal(build_process(config).noisy(clean, noise, last), noise)


def test_zero_snr_is_no_place_for_epsilon() -> None:
    with pytest.raises(ValidationError, match=r"zero_snr leaves nothing of the sample.*take prediction=v"):
        DDPMConfig(prediction="epsilon", zero_snr=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "flow", "shift": 0.0},
        {"kind": "flow", "time_std": 0.0},
        {"kind": "flow", "steps": 10},
        {"kind": "ddpm", "prediction": "sample"},
        {"kind": "ddpm", "schedule": "sigmoid"},
        {"kind": "ddpm", "steps": 1},
        {"kind": "score"},
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(reversed(wrong))):
        validate(ProcessConfig, wrong)


@every_process
def test_configurations_survive_json(config: ProcessConfig) -> None:
    assert TypeAdapter(ProcessConfig).validate_json(config.model_dump_json()) == config
