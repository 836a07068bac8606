"""What `tools/benchmark.py decode` compares, judges and writes."""

import importlib
import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import save_tiny_releases

from mentor.errors import UserError
from mentor.models import BackboneConfig
from mentor.models.packing import pack

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SMALL = BackboneConfig(layers=2, width=32, heads=2)


@pytest.fixture(scope="module", autouse=True)
def tools() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield


def part(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_generate_of_the_peer_reads_every_token_once(guided: bool, static: bool) -> None:
    llama = part("peers").Llama(SMALL, 8, torch.float32, vocabulary=50)
    shapes, caches = [], []

    def look(module: object, positional: tuple, named: dict) -> None:
        shapes.append(tuple(named.get("input_ids", positional[0] if positional else None).shape))
        caches.append(type(named["past_key_values"]).__name__)

    llama.model.register_forward_pre_hook(look, with_kwargs=True)
    llama.generate(3, guided, static, tokens=5)
    calls = 1 + guided
    assert shapes == [(3, 8)] * calls + [(3, 1)] * 4 * calls
    assert caches[calls] == ("StaticCache" if static else "DynamicCache")
    assert caches[-1] == ("StaticCache" if static and not guided else "DynamicCache")


def test_loop_of_the_peer_reads_both_prompts_in_one_batch() -> None:
    llama = part("peers").Llama(SMALL, 8, torch.bfloat16, vocabulary=50)
    shapes = []
    llama.model.register_forward_pre_hook(
        lambda module, positional, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    llama.loop(3, tokens=3)
    assert shapes == [(6, 8), (6, 1), (6, 1)]
    assert llama.model.dtype == torch.bfloat16


def test_products_are_those_of_the_model() -> None:
    generator = part("models").random_generator(SMALL, grid=(2, 2), vocabulary=50)
    weights = [tuple(weight.shape) for weight in generator.backbone.parameters() if weight.dim() == 2]
    shapes = [tuple(weight.shape) for weight in part("peers").Products(SMALL, vocabulary=50).weights]
    assert sorted(shapes) == sorted([*weights, (50, 32)])


@pytest.mark.parametrize("guided", [False, True])
def test_without_a_cache_the_logits_are_the_same(guided: bool) -> None:
    models, peers = part("models"), part("peers")
    generator = models.random_generator(SMALL, grid=(3, 4), vocabulary=50)
    torch.nn.init.normal_(generator.head.vectors.free.weight, std=0.5)
    ids = torch.randint(50, (1, 3, 4))
    condition = models.text_condition(1)
    condition = models.with_null(condition) if guided else condition
    with torch.inference_mode():
        whole = generator(condition, ids.repeat(1 + guided, 1, 1))
    for place in (0, 5, 11):
        assert torch.allclose(peers.uncached_logits(generator, guided, ids.flatten(1)[:, :place]), whole[:, place])
    cached = models.random_generator(SMALL, grid=(3, 4), vocabulary=50)
    cached.load_state_dict(generator.state_dict())
    assert peers.uncached_difference(pack(cached, "fp32"), generator, guided) < 1e-4
    assert peers.uncached_difference(cached, models.random_generator(SMALL, (3, 4), 50), guided) > 0.1


def test_time_without_a_cache_is_that_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = part("peers")
    generator = part("models").random_generator(SMALL, grid=(4, 16), vocabulary=50)
    clock = [0.0]

    def pretend(generator: object, guided: bool, ids: torch.Tensor) -> None:
        clock[0] += 1 + ids.shape[1]

    monkeypatch.setattr(peers, "uncached_logits", pretend)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert peers.uncached_seconds(generator, False) == pytest.approx(sum(range(1, 65)))


def test_a_part_of_a_picture_can_be_drawn() -> None:
    models = part("models")
    generator = pack(models.random_generator(SMALL, grid=(4, 4), vocabulary=50), "fp32")
    rows = []
    generator.head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    models.draw_pictures(generator, 3, True, tokens=8)
    assert rows[-7:] == [6] * 7
    assert generator.spec.grid == (4, 4)


def test_contest_takes_turns_and_drops_the_slower_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = part("decode")
    monkeypatch.setattr(decode, "LONG", 3.0)
    costs = {"ours": 1.0, "hf dynamic": 2.0, "hf static": 3.0, "hf loop": 4.0}
    clock, calls = [0.0], []

    def entrant(name: str) -> None:
        calls.append(name)
        clock[0] += costs[name]

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    entrants = {name: lambda tokens, name=name: entrant(name) for name in costs}
    seconds = decode.contest(entrants, tokens=64, rounds=3)
    assert seconds == {"ours": [1.0] * 3, "hf dynamic": [2.0] * 3, "hf static": [3.0], "hf loop": [4.0]}
    assert calls[4:] == [*costs, "hf dynamic", "ours", "ours", "hf dynamic"]


def test_rows_of_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = part("decode")
    rivals = decode.Rivals("tiny", "fp32")
    times = {"ours": [1.0, 1.0, 1.0], "hf dynamic": [3.0], "hf static": [2.0, 2.5, 1.5]}
    times |= {"hf loop": [0.5], "products": [0.7, 0.8, 0.9]}
    monkeypatch.setattr(decode, "contest", lambda *_: times)
    rows = {row.peer: row for row in rivals.compare(4, True, 64, 3)}
    assert list(rows) == ["hf", "products", "hf loop"]
    assert {row.case for row in rows.values()} == {"tiny, batch 4, fp32, guidance"}
    assert (rows["hf"].value, rows["hf"].low, rows["hf"].high) == (2.0, 1.5, 2.5)
    assert (rows["hf"].goal, rows["hf"].reached) == ("at least 2.2", False)
    assert rows["hf"].note == "1.00 s against 2.00 s; static cache; the other took 3.00 s; 64 tokens, not 256"
    assert (rows["hf loop"].value, rows["hf loop"].reached) == (0.5, None)


def test_goals() -> None:
    decode = part("decode")
    assert str(decode.Case("b", 1, "int8", False)) == "b, batch 1, int8 (peer fp32), no guidance"

    def goals(peer: str, size: str, precision: str) -> list[tuple]:
        cases = [[decode.Case(size, batch, precision, guided) for guided in (False, True)] for batch in (1, 4, 16)]
        return [tuple(case.goal(peer) for case in pair) for pair in cases]

    assert goals("hf", "b", "bf16") == [(1.2, 2.3), (1.5, 2.2), (1.5, 2.2)]
    assert goals("hf", "tiny", "fp32") == [(1.5, 2.2)] * 3
    assert goals("hf", "b", "int8")[0] == (3.0, 6.0)
    assert goals("products", "b", "fp32") == [(0.8, 1.2), (0.8, None), (0.8, None)]
    assert goals("products", "tiny", "fp32") == goals("hf loop", "b", "fp32") == [(None, None)] * 3


def test_ratios_have_names_of_their_own_in_the_file(tmp_path: Path) -> None:
    rows = part("rows")
    taken = rows.ratio("a case", "hf", 2.0, [1.0, 1.0], [2.0, 3.0])
    rows.save(tmp_path / "rows.json", "decode", [taken, rows.single("other", "-", 1.0, "s", None)], {})
    first, second = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {"case": "a case", "peer": "hf", "ratio_median": 2.5, "ratio_min": 2.0, "ratio_max": 3.0}.items() <= (
        first.items()
    )
    assert "ratio_median" not in second


def test_quality_of_a_model(tmp_path: Path) -> None:
    release = save_tiny_releases(tmp_path) / "model"
    rows = part("decode").quality(release, "tiny")
    assert [row.unit for row in rows] == ["nats", "%"] * 2
    assert all(0 <= row.value < 0.01 for row in rows[::2])
    assert all(50 < row.value <= 100 for row in rows[1::2])
    assert all(str(release) in row.note for row in rows)


def test_bytes_of_a_picture() -> None:
    serving = part("serving")
    generator = part("models").random_generator(SMALL, grid=(2, 2), vocabulary=50)
    hidden = generator.backbone.blocks[0].feed_forward.down.in_features
    weights = 2 * (4 * 32 * 32 + 3 * 32 * hidden) + 50 * 32
    # Eight tokens of the prompt, then one, two and three of the picture; keys and values of two layers.
    assert serving.picture_bytes(generator, rows=3, each=2) == 2 * (4 * weights + 3 * 2 * 2 * 32 * (8 + 9 + 10 + 11))


def test_without_a_gpu_the_roofline_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = part("serving").roofline()
    assert row.reached is None and "no GPU" in row.note


def test_other_subjects_refuse_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_program", TOOLS / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", ["benchmark.py", "data", "--model", str(tmp_path), "--work", str(tmp_path)])
    with pytest.raises(UserError, match="--model is for adapters, decode and words, data has no use"):
        module.main()
