"""What a step is said to take, against what torch's profiler sees and what can be counted by hand."""

from collections.abc import Callable

import pytest
import torch
from planned import ADVERSARIAL, WHOLE, opened, stage_tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from mentor.data.streammodule import TrainingData
from mentor.errors import UserError
from mentor.training import demand as demand_module
from mentor.training.averaging import Averaging
from mentor.training.blueprint import draw_blueprint
from mentor.training.build import build_module
from mentor.training.config import TrainConfig
from mentor.training.demand import Demand, Load, estimate_demand, process_load
from mentor.training.generator_module import GeneratorModule
from mentor.training.memory import count_states
from mentor.training.rehearsal import bare_trainer
from mentor.training.tracing import trace
from mentor.types import TextSegment

Settings = Callable[..., TrainConfig]


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that the profiler sees allocated at once while `work` lasts."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        work()
    live = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def planned(config: TrainConfig, world: int = 1, accelerator: bool = False) -> tuple[Load, Demand]:
    datamodule = opened(config)
    blueprint = draw_blueprint(config, datamodule)
    load = process_load(config, blueprint, world, codes=False)
    return load, estimate_demand(config, blueprint, load, accelerator)


def longest_prefix(config: TrainConfig, batches: int) -> int:
    """Tokens of the longest prefix in the first batches."""
    datamodule = opened(config)
    module = build_module(config, datamodule)
    assert isinstance(module, GeneratorModule)
    conditioner = module.generator.conditioner
    lengths = []
    for batch, _ in zip(datamodule.train_dataloader(), range(batches), strict=False):
        for prompt in batch.prompts:
            texts = [segment.text for segment in prompt if isinstance(segment, TextSegment)]
            words = sum(len(conditioner.text_tokenizer.encode(text)) for text in texts)
            lengths.append(words + module.generator.spec.tokens * (len(prompt) - len(texts)) + 1)
    return max(lengths)


def test_a_trace_sees_what_the_profiler_sees() -> None:
    def work(module: nn.Module) -> Tensor:
        x = torch.zeros(64, 300)
        y = F.gelu(module(x)).softmax(dim=-1)
        z = y @ y.T
        del y
        return (z.reshape(32, 128).view(-1)[::2] * 2).square().mean()

    module = nn.Linear(300, 500)
    seen = peak_of(lambda: trace_for_real(module, work))
    with torch.device("meta"):
        module = nn.Linear(300, 500)
    traced = trace([module], lambda: work(module))
    assert traced.bytes == pytest.approx(seen, rel=0.01)
    # Forward; and backward once for the weights of the layer, whose input needs none, and twice for y @ y.T.
    assert traced.flops == 2 * 64 * 300 * 500 * 2 + 2 * 64 * 500 * 64 * 3


def trace_for_real(module: nn.Module, work: Callable[[nn.Module], Tensor]) -> None:
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    work(module).backward()


def test_a_trace_counts_no_gradients_of_weights() -> None:
    def work(module: nn.Module) -> Tensor:
        return module(torch.zeros(1, 400)).sum()

    module = nn.Sequential(*(nn.Linear(400, 400) for _ in range(8)))
    seen = peak_of(lambda: trace_for_real(module, work))
    with torch.device("meta"):
        module = nn.Sequential(*(nn.Linear(400, 400) for _ in range(8)))
    assert trace([module], lambda: work(module)).bytes == pytest.approx(seen, rel=0.01)
    assert seen < 2 * 4 * 400 * 400


def test_a_trace_without_a_loss_goes_forward_only() -> None:
    with torch.device("meta"):
        module = nn.Linear(20, 30)

    def work() -> None:
        module(torch.zeros(10, 20))

    traced = trace([module], work)
    assert (traced.bytes, traced.flops) == (4 * 10 * (20 + 30), 2 * 10 * 20 * 30)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("1", ("trainer.precision=32-true",)),
        ("1", ("trainer.precision=bf16-mixed", "ema=null")),
        ("tokenizer", ("data.mixture.segment=1", "data.mixture.reconstruct=0", "data.batch_size=8")),
        ("tokenizer", ("data.batch_size=8", *ADVERSARIAL)),
    ],
)
def test_a_real_run_takes_about_as_much_memory_as_is_planned(
    settings: Settings, stage: str, changes: tuple[str, ...]
) -> None:
    """Less by what operations take within them, more by what the first batches have no use for."""
    sizes = ("backbone.width=128", "backbone.layers=4", "data.batch_size=8")
    config = settings(*WHOLE, *sizes, *changes) if stage == "1" else stage_tokenizer(settings(), *changes)
    if stage == "1":
        config = settings(*WHOLE, *sizes, *changes, f"conditioner.max_prefix={longest_prefix(config, 3)}")
    datamodule: TrainingData = opened(config)
    blueprint = draw_blueprint(config, datamodule)
    states = count_states(blueprint, config.ema is not None)
    demand = estimate_demand(config, blueprint, process_load(config, blueprint, 1, codes=False), accelerator=False)
    averages = [] if config.ema is None else [Averaging(config.ema.decay)]

    def run() -> None:
        bare_trainer(config, 1, averages).fit(build_module(config, datamodule), datamodule=datamodule)

    assert demand.step > states.total
    assert (states.total + demand.most) / peak_of(run) == pytest.approx(1.0, abs=0.15)


def test_layers_are_alike(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("backbone.layers=6", "trainer.validate_every=1")
    _, from_few = planned(config)
    original = demand_module._trace_generator
    whole = lambda config, generator, layers, *rest, **more: original(config, generator, 6, *rest, **more)  # noqa: E731
    monkeypatch.setattr(demand_module, "_trace_generator", whole)
    _, from_all = planned(config)
    assert from_few.flops == from_all.flops
    assert from_few.step == pytest.approx(from_all.step, rel=0.01)
    assert from_few.validation == pytest.approx(from_all.validation, rel=0.01)


@pytest.mark.parametrize("accelerator", [False, True])
def test_work_follows_the_rule_of_six(settings: Settings, accelerator: bool) -> None:
    """6 for each weight of a matrix and each token it meets, and 12 n^2 d for the attention of a layer.

    Fused, its backward pass makes the scores anew: 14 n^2 d.
    """
    width, layers, rows, tokens, codes = 256, 6, 4, 64, 32
    hidden, prefix = 768, 2 * tokens + 256
    config = settings(f"backbone.width={width}", f"backbone.layers={layers}", "trainer.precision=bf16-mixed")
    load, demand = planned(config, accelerator=accelerator)
    assert (load.rows, load.prefix) == (rows, prefix)
    n = prefix + tokens - 1
    matrices = layers * n * (4 * width * width + 3 * width * hidden) + tokens * width * codes
    attention = (14 if accelerator else 12) * layers * n * n * width
    # In the last layer the prefix is spared all that only its own states would need.
    spared = 6 * prefix * (3 * width * hidden + width * width) + 12 * prefix * n * width
    expected = rows * (6 * matrices + attention - spared)
    assert demand.flops == pytest.approx(expected, rel=0.02)


def test_each_process_has_its_share(settings: Settings) -> None:
    config = settings("data.batch_size=8", "trainer.validate_every=1")
    (alone, all_of_it), (shared, part) = planned(config), planned(config, world=4)
    assert (alone.rows, shared.rows) == (8, 2)
    assert (alone.validation_rows, shared.validation_rows) == (8, 2)
    assert (alone.pictures, shared.pictures) == (16, 4)
    assert part.flops == pytest.approx(all_of_it.flops / 4, rel=0.1)
    assert part.encoding == pytest.approx(all_of_it.encoding / 4, rel=0.1)


@pytest.mark.parametrize(
    ("left_out", "pictures", "references"),
    [(("reconstruct", "segment"), 4, 0), (("segment", "text_to_image"), 4, 1), (("reconstruct",), 8, 1)],
)
def test_pictures_that_are_encoded_follow_from_the_tasks(
    settings: Settings, left_out: tuple[str, ...], pictures: int, references: int
) -> None:
    config = settings("data.warmup_steps=0", *(f"data.mixture.{task}=0" for task in left_out))
    load, _ = planned(config)
    assert (load.pictures, load.references) == (pictures, references)


def test_codes_that_are_there_already_need_no_encoding(settings: Settings) -> None:
    config = settings()
    blueprint = draw_blueprint(config, opened(config))
    made, given = (process_load(config, blueprint, 1, codes=codes) for codes in (False, True))
    assert (given.pictures, given.validation_pictures) == (0, 0)
    encoded, stored = (estimate_demand(config, blueprint, load, accelerator=False) for load in (made, given))
    assert (stored.encoding, stored.step) == (0, encoded.step)
    # The first convolution of the image tokenizer alone: 3 x 3, 48 to 8 channels, on 16 x 16 places of each picture.
    assert encoded.flops - stored.flops > made.pictures * 2 * 9 * 48 * 8 * 16 * 16


def test_without_validation_there_is_no_demand_for_it(settings: Settings) -> None:
    assert planned(settings("trainer.validate_every=0"))[1].validation == 0
    assert planned(settings("trainer.validate_every=1"))[1].validation > 0


def test_attention_on_an_accelerator_keeps_no_scores_in_low_precision(settings: Settings) -> None:
    config = settings("trainer.precision=bf16-mixed", "backbone.layers=3", "backbone.heads=8")
    (load, here), (_, there) = planned(config), planned(config, accelerator=True)
    scores = 2 * load.rows * 8 * (load.prefix + 63) ** 2 * 2
    assert here.step - there.step > scores


def test_sharded_training_gathers_and_keeps_no_copies(settings: Settings) -> None:
    base = ("trainer.precision=bf16-mixed", "optimizer.kind=adamw", "backbone.layers=3", "backbone.width=256")
    _, whole = planned(settings(*base), accelerator=True)
    _, sharded = planned(settings(*base, "trainer.strategy=fsdp"), accelerator=True)
    in_blocks = 4 * 256 * 256 + 3 * 256 * 768
    assert whole.gathered == 0
    assert 2 * 2 * in_blocks < whole.step - sharded.step <= 2 * 3 * in_blocks
    assert sharded.gathered > 2 * 2 * in_blocks
    assert sharded.most == sharded.gathered + max(sharded.step, sharded.encoding)


def test_a_prefix_without_room_for_a_picture_is_refused(settings: Settings) -> None:
    with pytest.raises(UserError, match=r"takes 65 prefix tokens .* room for 64 .*max_prefix=null"):
        planned(settings("conditioner.max_prefix=64"))
    planned(settings("conditioner.max_prefix=65"))


def test_fewer_pictures_than_processes_are_refused(settings: Settings) -> None:
    config = stage_tokenizer(settings(), "loss.images=2", "data.batch_size=8")
    with pytest.raises(UserError, match=r"loss.images 2 leaves some of 4 processes without a picture"):
        planned(config, world=4)
    assert planned(config, world=2)[0].pictures == 1
    assert planned(config)[0].pictures == 2
