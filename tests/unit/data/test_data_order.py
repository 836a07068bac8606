"""The order of samples: ranks, lanes, epochs, data sets, resume, cost, validation."""

import hashlib
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from mentor.data.order import (
    GROUP,
    Sample,
    TaskOrder,
    TrainingOrder,
    Usable,
    permutation,
    sample_rng,
    seed_from,
    validation_batches,
)
from mentor.errors import UserError

COUNTS = (20, 17, 20, 23, 20, 11, 20, 9)
OTHER_COUNTS = (30, 0, 41)
WEIGHTS = {"reconstruct": 2.0, "segment": 1.0, "subject": 1.0}


def positions(counts=COUNTS) -> dict[str, list[np.ndarray]]:
    """All records do for reconstruct, every second for segment, none of two whole shards for subject."""
    return {
        "reconstruct": [np.arange(count) for count in counts],
        "segment": [np.arange(0, count, 2) for count in counts],
        "subject": [np.arange(count if shard not in (1, 5) else 0) for shard, count in enumerate(counts)],
    }


def usable(counts=COUNTS) -> dict[str, list[Usable | None]]:
    return {task: [Usable.listed(rows)] for task, rows in positions(counts).items()}


def both() -> dict[str, list[Usable | None]]:
    """Two data sets, the second of which has nothing for subject."""
    other = usable(OTHER_COUNTS)
    return {task: [*usable()[task], None if task == "subject" else other[task][0]] for task in WEIGHTS}


def stream(seed: int = 7, lanes: int = 4, batch_size: int = 24, **changes) -> TrainingOrder:
    return TrainingOrder(
        **{"usable": usable(), "weights": WEIGHTS, "batch_size": batch_size, "lanes": lanes, "seed": seed} | changes
    )


def visits(order: TrainingOrder, task: str, steps: int) -> list[Sample]:
    batches = [order.batch(step) for step in range(steps)]
    return [sample for name, samples in batches if name == task for sample in samples]


def order_of(sizes, lanes: int, seed: int = 0) -> TaskOrder:
    return TaskOrder("a", Usable.listed([np.arange(size) for size in sizes]), lanes, seed)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("changes", [{}, {"usable": both(), "datasets": (2, 1)}, {"lanes": 1}, {"lanes": 50}])
def test_ranks_together_see_the_batches_of_one_process(world, changes):
    alone = stream(**changes)
    ranks = [stream(**changes) for _ in range(world)]
    for step in range(60):
        task, whole = alone.batch(step)
        assert len(whole) == 24
        for rank, order in enumerate(ranks):
            assert order.batch(step, rank, world) == (task, whole[rank::world])


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_read_disjoint_shards_but_for_those_that_lanes_cut(world):
    order = stream(usable=usable(COUNTS * 4), weights={"reconstruct": 1})
    readers: dict[tuple[int, int], set[int]] = {}
    for rank in range(world):
        for step in range(100):
            for sample in order.batch(step, rank, world)[1]:
                readers.setdefault((sample.epoch, sample.shard), set()).add(rank)
    epochs = {epoch for epoch, _ in readers}
    assert len(epochs) > 3
    for epoch in epochs:
        shared = [shard for (other, shard), ranks in readers.items() if other == epoch and len(ranks) > 1]
        assert len(shared) <= 3


def test_more_ranks_than_shards_share_what_there_is():
    order = stream(usable=usable((100, 50)), lanes=8)
    _, whole = order.batch(3)
    assert [order.batch(3, rank, 8)[1] for rank in range(8)] == [whole[rank::8] for rank in range(8)]
    assert len(set(whole)) == 24


@pytest.mark.parametrize("lanes", [1, 3, 4, 100])
@pytest.mark.parametrize("task", WEIGHTS)
def test_each_usable_sample_comes_exactly_once_in_an_epoch(task, lanes):
    seen = visits(stream(lanes=lanes), task, 120)
    expected = {(shard, int(row)) for shard, rows in enumerate(positions()[task]) for row in rows}
    assert len(set(seen)) == len(seen), "never the same sample twice in one epoch"
    assert max(sample.epoch for sample in seen) > 3
    for epoch in range(3):
        part = seen[epoch * len(expected) : (epoch + 1) * len(expected)]
        assert {sample.epoch for sample in part} == {epoch}
        assert {(sample.shard, sample.position) for sample in part} == expected


@pytest.mark.parametrize("seed", range(25))
def test_epochs_are_exact_whatever_the_sizes_and_however_the_numbers_are_asked_for(seed):
    rng = np.random.RandomState(seed)
    sizes = rng.randint(0, rng.choice([2, 5, 40]), rng.randint(1, 60))
    sizes[0] += 1
    order, total = order_of(sizes, lanes=int(rng.randint(1, 20))), int(sizes.sum())
    epochs, shards, rows = order.take(np.arange(3 * total))
    assert epochs.tolist() == [0] * total + [1] * total + [2] * total
    expected = sorted((shard, row) for shard, size in enumerate(sizes) for row in range(size))
    for epoch in range(3):
        part = slice(epoch * total, (epoch + 1) * total)
        assert sorted(zip(shards[part].tolist(), rows[part].tolist(), strict=True)) == expected
    asked = rng.randint(0, 3 * total, 50)
    for field, found in zip((epochs, shards, rows), order.take(asked), strict=True):
        assert found.tolist() == field[asked].tolist()


def test_epochs_tasks_data_sets_and_seeds_differ_but_tasks_walk_over_the_same_shards():
    rows = Usable.listed([np.arange(9)] * 40)

    def walk(task="a", seed=0, dataset=0, epoch=0) -> list[tuple[int, int]]:
        _, shards, places = TaskOrder(task, rows, 1, seed, dataset).take(np.arange(360) + 360 * epoch)
        return list(zip(shards.tolist(), places.tolist(), strict=True))

    walks = [walk(), walk("b"), walk(seed=1), walk(dataset=1), walk(epoch=1)]
    assert len({tuple(one) for one in walks}) == 5
    first_group = [{shard for shard, _ in one[: GROUP * 9]} for one in walks]
    assert first_group[0] == first_group[1]
    assert all(first_group[0] != other for other in first_group[2:])


@pytest.mark.parametrize("consumed", [0, 1, 2, 13, 57, 200])
@pytest.mark.parametrize(
    "changes", [{}, {"usable": both(), "datasets": (1, 1), "warmup": 20, "warmup_task": "subject"}]
)
def test_starting_anywhere_equals_the_uninterrupted_run(consumed, changes):
    whole = stream(**changes)
    expected = [whole.batch(step) for step in range(260)][consumed:]
    resumed = stream(**changes)
    assert [resumed.batch(step) for step in range(consumed, 260)] == expected


def test_resuming_at_step_ten_million_takes_no_time():
    order = stream(usable=both(), datasets=(2, 1))
    started = time.process_time()
    _, samples = order.batch(10_000_000)
    assert time.process_time() - started < 0.5
    assert max(sample.epoch for sample in samples) > 100_000


def test_a_lane_reads_few_shards_at_a_time_and_mixes_them():
    rng = np.random.RandomState(0)
    sizes, lanes = rng.randint(1, 60, 90), 3
    _, shards, _ = order_of(sizes, lanes).take(np.arange(sizes.sum()))
    for lane in range(lanes):
        strand = shards[lane::lanes]
        first = {shard: np.flatnonzero(strand == shard)[0] for shard in set(strand.tolist())}
        last = {shard: np.flatnonzero(strand == shard)[-1] for shard in first}
        opened = [sum(first[shard] <= place <= last[shard] for shard in first) for place in range(len(strand))]
        assert max(opened) <= GROUP + 1
        assert np.mean(opened) > GROUP / 2
        assert len(first) < 90 / lanes + 12


@pytest.mark.parametrize(("count", "groups"), [(4 * GROUP, [GROUP] * 4), (GROUP + 1, [4, 5]), (3, [3])])
def test_groups_are_even_and_permuted_together(count, groups):
    _, shards, _ = order_of([50] * count, 1).take(np.arange(50 * count))
    start = 0
    for group in groups:
        assert len(set(shards[start : start + 50 * group].tolist())) == group
        assert len(set(shards[start : start + 24].tolist())) > group // 2
        start += 50 * group
    assert len(set(shards.tolist())) == count


def test_shards_without_a_usable_sample_take_no_place_in_groups_and_lanes():
    order = order_of([50, 0] * 2 * GROUP, 1)
    _, shards, _ = order.take(np.arange(100 * GROUP))
    assert len(set(shards[: 50 * GROUP].tolist())) == GROUP
    assert [order_of([50, 0, 0, 50], lanes).lanes for lanes in (1, 2, 3, 100)] == [1, 2, 2, 2]


def test_of_a_shard_that_lanes_share_each_reads_random_rows():
    _, shards, rows = order_of([600], 1).take(np.arange(600))
    assert set(shards.tolist()) == {0}
    _, shards, rows = order_of([600, 2], 2, seed=1).take(np.arange(602))
    for lane in range(2):
        own = rows[lane::2][shards[lane::2] == 0]
        assert 250 < own.mean() < 350
        assert own.min() < 20 and own.max() > 580


def test_shards_are_asked_for_only_when_the_order_comes_to_them():
    asked: list[int] = []

    def rows(shard: int) -> np.ndarray:
        asked.append(shard)
        return np.arange(100)

    order = TrainingOrder({"a": [Usable(np.full(1000, 100), rows)]}, {"a": 1}, 64, 4, 0)
    assert asked == []
    order.batch(0)
    order.batch(1)
    assert len(asked) == len(set(asked)) <= 4 * (GROUP + 1)


def test_a_shard_with_another_number_of_positions_than_announced_is_named():
    order = TaskOrder("a", Usable(np.array([5]), lambda shard: np.arange(4)), 1, 0)
    with pytest.raises(ValueError, match="shard 0 has 4 positions for the task 'a', where 5 were announced"):
        order.take(np.arange(3))


def test_the_order_of_ten_million_samples_is_planned_at_once_and_in_little_memory():
    shard = np.arange(1000)
    tracemalloc.start()
    started = time.process_time()
    sizes = np.full(10_000, 1000)
    order = TrainingOrder({"a": [Usable(sizes, lambda _: shard)]}, {"a": 1}, 256, 8, 0)
    order.batch(0)
    _, samples = order.batch(10 * 10_000_000 // 256 + 1)
    spent, held = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {sample.epoch for sample in samples} == {10}
    assert spent < 2
    assert held < 10_000_000, "a byte a sample, a two-hundredth of what may be"


def test_batches_come_fast_enough_for_codes():
    order = TrainingOrder({"a": [Usable(np.full(1000, 1000), lambda _: np.arange(1000))]}, {"a": 1}, 256, 8, 0)
    started = time.process_time()
    for step in range(800):
        order.batch_arrays(step)
    assert time.process_time() - started < 800 * 256 * 5e-6


@pytest.mark.parametrize(("datasets", "shares"), [((2, 1), [667, 333]), ((1, 3), [250, 750])])
def test_every_window_of_a_tasks_samples_holds_the_data_sets_in_proportion(datasets, shares):
    order = stream(usable=both(), datasets=datasets)
    chosen = np.array([sample.dataset for sample in order.at("segment", np.arange(4000))])
    windows = np.convolve(chosen, np.ones(1000, dtype=int), "valid")
    assert set(windows.tolist()) == {shares[1]}
    assert set(Counter(sample.dataset for sample in order.batch(0)[1])) == {0, 1}


def test_a_task_that_one_data_set_serves_takes_it_alone_and_each_data_set_has_its_own_epochs():
    order = stream(usable=both(), datasets=(1, 1))
    assert {sample.dataset for sample in order.at("subject", np.arange(3000))} == {0}
    samples = order.at("reconstruct", np.arange(3000))
    for dataset, counts in enumerate((COUNTS, OTHER_COUNTS)):
        seen = [sample for sample in samples if sample.dataset == dataset]
        total = sum(counts)
        assert len(seen) == 1500 == len(set(seen))
        assert [sample.epoch for sample in seen] == [number // total for number in range(1500)]
        everything = {(shard, row) for shard, count in enumerate(counts) for row in range(count)}
        assert {(sample.shard, sample.position) for sample in seen[:total]} == everything


def test_a_data_set_without_a_usable_sample_counts_as_one_that_cannot_serve():
    empty = Usable.listed([np.arange(0)] * 3)
    order = stream(usable={"a": [empty, usable()["reconstruct"][0]]}, weights={"a": 1}, datasets=(5, 1))
    assert {sample.dataset for sample in order.at("a", np.arange(500))} == {1}


def test_numbers_lookups_and_arrays_agree_with_batches():
    order = stream(usable=both(), datasets=(2, 1), warmup=3, warmup_task="segment")
    counted: Counter[str] = Counter()
    for step in range(40):
        task, whole = order.numbers(step)
        assert whole.tolist() == list(range(counted[task], counted[task] + 24))
        counted[task] += 24
        for rank in range(3):
            name, numbers = order.numbers(step, rank, 3)
            _, samples = order.batch(step, rank, 3)
            assert (name, numbers.tolist()) == (task, whole[rank::3].tolist())
            assert order.at(task, numbers) == samples
            _, arrays = order.batch_arrays(step, rank, 3)
            assert arrays.each() == samples
            assert arrays.position.tolist() == [sample.position for sample in samples]
            assert arrays.dataset.tolist() == [sample.dataset for sample in samples]


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
    order = stream(usable=both(), datasets=(2, 1), warmup=1, warmup_task="reconstruct")
    samples = [(task, sample) for step in range(5) for task, rows in [order.batch(step)] for sample in rows][:100]
    text = "\n".join(f"{task} {row.dataset} {row.epoch} {row.shard} {row.position}" for task, row in samples)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "4347a5173f063579158efab66ed7fb1977584d9053ebd97cd6928740302c373d"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 400}, "'reconstruct' can use 140 .*batch size of 400: use a smaller batch_size or more data"),
        ({"usable": {**usable(), "subject": [Usable.listed([np.arange(0)] * 8)]}}, "'subject': take it out"),
        ({"usable": {**usable(), "subject": [None]}}, "no record can be used for the task 'subject'"),
        ({"usable": both(), "datasets": (1, 0.0001)}, "0.0001 of data set 1 for the task 'reconstruct' is less than"),
        ({"weights": {"segment": 1, "subject": 0.0001}}, "0.0001 of the task 'subject' is less than a thousandth"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        stream(**changes)


def test_samples_of_all_data_sets_together_may_fill_a_batch():
    assert (
        len(stream(usable={"a": both()["reconstruct"]}, weights={"a": 1}, batch_size=200, datasets=(1, 1)).batch(0)[1])
        == 200
    )


def test_ranks_that_cannot_share_a_batch_are_refused():
    with pytest.raises(UserError, match="batch_size 24 cannot be shared by 5 processes: use a multiple of 5"):
        stream().batch(0, 0, 5)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("limit", [0, 10, 21])
def test_validation_sees_each_held_out_sample_once_over_all_ranks(world, limit):
    parts = [validation_batches(both(), limit, 8, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1, "every rank has the same number of batches"
    assert {len(rows) for part in parts for _, rows in part} == {8 // world}
    assert [task for task, _ in parts[0]] == [task for task, _ in parts[-1]]
    for task in WEIGHTS:
        counted = [sample for part in parts for name, rows in part if name == task for sample, valid in rows if valid]
        listed = [positions()[task], positions(OTHER_COUNTS)[task] if task != "subject" else []]
        everything = {
            Sample(0, shard, int(row), dataset)
            for dataset, shards in enumerate(listed)
            for shard, rows in enumerate(shards)
            for row in rows
        }
        assert len(counted) == len(set(counted)) == (min(limit, len(everything)) if limit else len(everything))
        assert set(counted) <= everything


def test_validation_chooses_over_all_shards_and_the_same_for_any_world():
    chosen = [sample for _, rows in validation_batches({"a": both()["segment"]}, 40, 8) for sample, _ in rows]
    assert len({(sample.dataset, sample.shard) for sample in chosen}) > 6
    parts = [validation_batches({"a": both()["segment"]}, 40, 8, rank, 2) for rank in range(2)]
    assert {sample for part in parts for _, rows in part for sample, _ in rows} == set(chosen)


def test_validation_of_one_data_set_keeps_its_choice():
    rows = [Sample(0, shard, row) for shard, count in enumerate(COUNTS) for row in range(count)]
    expected = [rows[index] for index in permutation(len(rows), "validation", "a")[:8]]
    assert validation_batches({"a": usable()["reconstruct"]}, 8, 8) == [("a", [(sample, True) for sample in expected])]


def test_validation_refuses_a_batch_size_that_ranks_cannot_share_and_tasks_without_records():
    with pytest.raises(UserError, match="validation_batch_size 9 cannot be shared by 2"):
        validation_batches(usable(), 0, 9, 0, 2)
    for nothing in ([None], [Usable.listed([np.arange(0)])], [None, Usable.listed([])]):
        with pytest.raises(UserError, match="'a'"):
            validation_batches({"a": nothing}, 0, 8)


def test_seeds_are_stable_and_depend_on_every_part():
    assert seed_from("a", 1) == 0x839E11A421D370BE
    assert permutation(8, "a", 1).tolist() == [5, 6, 2, 4, 3, 0, 7, 1]
    assert sample_rng(1, 2, "k", "subject").random() == 0.885797467187578
    draws = {
        sample_rng(*parts).random()
        for parts in [(0, 0, "k", "t"), (1, 0, "k", "t"), (0, 1, "k", "t"), (0, 0, "l", "t"), (0, 0, "k", "u")]
    }
    assert len(draws) == 5
