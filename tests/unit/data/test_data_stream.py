"""The order of samples: ranks, lanes, epochs, resume, mixture, validation."""

import time
from collections import Counter

import numpy as np
import pytest

from mentor.data.stream import (
    GROUP,
    Mixture,
    Sample,
    TrainingStream,
    permutation,
    sample_rng,
    seed_from,
    validation_batches,
)
from mentor.errors import UserError

COUNTS = (20, 17, 20, 23, 20, 11, 20, 9)
WEIGHTS = {"reconstruct": 2.0, "segment": 1.0, "subject": 1.0}


def usable(counts=COUNTS) -> dict[str, list[np.ndarray]]:
    """All records do for reconstruct, every second for segment, none of two whole shards for subject."""
    return {
        "reconstruct": [np.arange(count) for count in counts],
        "segment": [np.arange(0, count, 2) for count in counts],
        "subject": [np.arange(count if shard not in (1, 5) else 0) for shard, count in enumerate(counts)],
    }


def stream(seed: int = 7, lanes: int = 4, batch_size: int = 8, **changes) -> TrainingStream:
    return TrainingStream(
        **{"usable": usable(), "weights": WEIGHTS, "batch_size": batch_size, "lanes": lanes, "seed": seed} | changes
    )


def visits(order: TrainingStream, task: str, steps: int) -> list[Sample]:
    return [
        sample for step in range(steps) for name, samples in [order.batch(step)] if name == task for sample in samples
    ]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_see_the_batches_of_one_process(world):
    alone = stream()
    ranks = [stream() for _ in range(world)]
    for step in range(120):
        task, whole = alone.batch(step)
        parts = [order.batch(step, rank, world) for rank, order in enumerate(ranks)]
        assert [part for part, _ in parts] == [task] * world
        rows = [parts[lane % world][1][lane // world * 2 : lane // world * 2 + 2] for lane in range(4)]
        assert [sample for row in rows for sample in row] == whole


def test_ranks_read_disjoint_shards_in_every_epoch():
    readers: dict[tuple[int, int], set[int]] = {}
    for rank in range(2):
        order = stream()
        for step in range(300):
            for sample in order.batch(step, rank, 2)[1]:
                readers.setdefault((sample.epoch, sample.shard), set()).add(rank)
    assert max(epoch for epoch, _ in readers) > 3
    assert all(len(ranks) == 1 for ranks in readers.values())


@pytest.mark.parametrize("task", WEIGHTS)
def test_each_usable_sample_comes_exactly_once_in_an_epoch(task):
    seen = visits(stream(), task, 600)
    expected = {(shard, int(position)) for shard, rows in enumerate(usable()[task]) for position in rows}
    assert len(set(seen)) == len(seen), "never the same sample twice in one epoch"
    for epoch in range(3):
        assert {(sample.shard, sample.position) for sample in seen if sample.epoch == epoch} == expected


def test_epochs_and_seeds_differ():
    first = [(sample.shard, sample.position) for sample in visits(stream(), "reconstruct", 600)]
    size = sum(COUNTS)
    assert first[:size] != first[size : 2 * size]
    assert visits(stream(seed=8), "reconstruct", 50) != visits(stream(seed=7), "reconstruct", 50)
    assert visits(stream(seed=7), "reconstruct", 50) == visits(stream(seed=7), "reconstruct", 50)


@pytest.mark.parametrize("consumed", [0, 1, 2, 13, 57, 200])
def test_starting_anywhere_equals_the_uninterrupted_run(consumed):
    whole = stream()
    expected = [whole.batch(step) for step in range(260)][consumed:]
    resumed = stream()
    assert [resumed.batch(step) for step in range(consumed, 260)] == expected


def test_resuming_far_out_takes_no_time():
    order = stream()
    started = time.process_time()
    order.batch(100_000)
    assert time.process_time() - started < 3


def test_shards_of_a_lane_are_mixed_but_read_in_groups():
    counts = tuple([50] * (4 * GROUP))
    order = stream(usable={"reconstruct": [np.arange(count) for count in counts]}, weights={"reconstruct": 1}, lanes=1)
    shards = [sample.shard for sample in visits(order, "reconstruct", 4 * GROUP * 50 // 8)]
    per_group = GROUP * 50
    groups = [set(shards[first : first + per_group]) for first in range(0, len(shards), per_group)]
    assert [len(group) for group in groups] == [GROUP] * 4
    assert set.union(*groups) == set(range(4 * GROUP))
    assert len(set(shards[:32])) > GROUP // 2


def test_lanes_without_anything_usable_wait_for_a_better_deal():
    rows = [np.arange(9) if shard == 0 else np.arange(0) for shard in range(4)]
    order = stream(usable={"segment": rows}, weights={"segment": 1}, batch_size=8)
    seen = visits(order, "segment", 40)
    assert len(set(seen)) == len(seen)
    assert {sample.shard for sample in seen} == {0}


@pytest.mark.parametrize("weights", [WEIGHTS, {"a": 0.3, "b": 0.45, "c": 0.15, "d": 0.05, "e": 0.05}, {"a": 1.0}])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mixture_never_strays_from_its_shares(weights, seed):
    mixture = Mixture(weights, seed)
    tasks = [mixture.at(step)[0] for step in range(5000)]
    total = sum(weights.values())
    counts: Counter[str] = Counter()
    for step, task in enumerate(tasks, start=1):
        counts[task] += 1
        for name, weight in weights.items():
            assert abs(counts[name] - step * weight / total) < 2
    assert all(counts[name] == pytest.approx(5000 * weight / total, abs=2) for name, weight in weights.items())


def test_the_mixture_counts_earlier_steps_of_a_task_and_depends_on_the_seed():
    mixture = Mixture(WEIGHTS, 3)
    counts: Counter[str] = Counter()
    for step in range(100):
        task, earlier = mixture.at(step)
        assert earlier == counts[task]
        counts[task] += 1
    starts = {tuple(Mixture(WEIGHTS, seed).at(step)[0] for step in range(8)) for seed in range(10)}
    assert len(starts) > 1


def test_warmup_steps_are_of_one_task_and_then_the_mixture_holds():
    mixture = Mixture({"segment": 1, "text_to_image": 1}, 0, warmup=30, warmup_task="reconstruct")
    tasks = [mixture.at(step) for step in range(130)]
    assert tasks[:30] == [("reconstruct", number) for number in range(30)]
    assert Counter(task for task, _ in tasks[30:]) == {"segment": 50, "text_to_image": 50}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, "batch_size 9.*lanes 4"),
        ({"lanes": 16, "batch_size": 16}, r"8 shard\(s\).*16 lanes"),
        ({"batch_size": 400}, "'reconstruct' can use 140 .*batch size of 400"),
        ({"usable": {**usable(), "subject": [np.arange(0)] * 8}}, "'subject'"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        stream(**changes)


def test_ranks_that_do_not_divide_the_lanes_are_refused():
    with pytest.raises(UserError, match=r"3 processes.*4 lanes"):
        stream().batch(0, 0, 3)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("limit", [0, 10, 21])
def test_validation_sees_each_held_out_sample_once_over_all_ranks(world, limit):
    parts = [validation_batches(usable(), limit, 8, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1, "every rank has the same number of batches"
    assert {len(rows) for part in parts for _, rows in part} == {8 // world}
    assert [task for task, _ in parts[0]] == [task for task, _ in parts[-1]]
    for task, shards in usable().items():
        counted = [sample for part in parts for name, rows in part if name == task for sample, valid in rows if valid]
        everything = {Sample(0, shard, int(row)) for shard, rows in enumerate(shards) for row in rows}
        assert len(counted) == len(set(counted)) == (min(limit, len(everything)) if limit else len(everything))
        assert set(counted) <= everything


def test_validation_chooses_over_all_shards_and_the_same_for_any_world():
    chosen = [sample for _, rows in validation_batches({"a": usable()["reconstruct"]}, 40, 8) for sample, _ in rows]
    assert len({sample.shard for sample in chosen}) > 5
    parts = [validation_batches({"a": usable()["reconstruct"]}, 40, 8, rank, 2) for rank in range(2)]
    assert {sample for part in parts for _, rows in part for sample, _ in rows} == set(chosen)


def test_validation_refuses_a_batch_size_that_ranks_cannot_share_and_tasks_without_records():
    with pytest.raises(UserError, match="validation_batch_size 9"):
        validation_batches(usable(), 0, 9, 0, 2)
    with pytest.raises(UserError, match="'a'"):
        validation_batches({"a": [np.arange(0)]}, 0, 8)


def test_seeds_are_stable_and_depend_on_every_part():
    assert seed_from("a", 1) == 0x839E11A421D370BE
    assert permutation(8, "a", 1).tolist() == [5, 6, 2, 4, 3, 0, 7, 1]
    assert sample_rng(1, 2, "k", "subject").random() == 0.885797467187578
    draws = {
        sample_rng(*parts).random()
        for parts in [(0, 0, "k", "t"), (1, 0, "k", "t"), (0, 1, "k", "t"), (0, 0, "l", "t"), (0, 0, "k", "u")]
    }
    assert len(draws) == 5
