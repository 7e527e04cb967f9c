"""Eviction: near the best possible over epochs; abandoned datasets are evicted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.cache.eviction import EvictionRow, choose_victims
from hayloft_bench.micro.eviction_simulator import POLICIES, SimulatedCache, epoch, hit_ratio
from hayloft_bench.micro.eviction_traces import recorded

OBJECTS = 600
SIZE = 1 << 20
EPOCHS = 5
BEST = 0.5


def ratios(policy: str, shuffled: bool, limit_bytes: int = OBJECTS * SIZE // 2) -> list[float]:
    cache = SimulatedCache(POLICIES[policy], limit_bytes)
    return [hit_ratio(cache, epoch(1, OBJECTS, SIZE, seed if shuffled else None)) for seed in range(EPOCHS)]


@pytest.mark.promise("S46")
@pytest.mark.parametrize("shuffled", [False, True])
def test_from_the_second_epoch_on_hits_are_near_the_best_possible(shuffled: bool) -> None:
    assert min(ratios("hayloft", shuffled)[1:]) >= 0.9 * BEST


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("other", ["lru", "fifo", "random"])
def test_every_usual_policy_hits_less(other: str, shuffled: bool) -> None:
    assert max(ratios(other, shuffled)[1:]) < 0.8 * min(ratios("hayloft", shuffled)[1:])


@pytest.mark.promise("S46")
@pytest.mark.parametrize("shuffled", [False, True])
def test_an_abandoned_dataset_is_evicted_within_two_epochs_of_the_next(shuffled: bool) -> None:
    cache = SimulatedCache(choose_victims, OBJECTS * SIZE // 2)
    for seed in range(EPOCHS):
        hit_ratio(cache, epoch(1, OBJECTS, SIZE, seed if shuffled else None))
    seen = [hit_ratio(cache, epoch(2, OBJECTS, SIZE, seed if shuffled else None)) for seed in range(3)]
    assert not [row for row in cache.rows.values() if row.dataset == 1]
    assert seen[2] >= 0.9 * BEST


def test_a_validation_set_read_between_epochs_does_not_evict_the_training_set() -> None:
    cache = SimulatedCache(choose_victims, OBJECTS * SIZE // 2)
    found = []
    for seed in range(EPOCHS):
        found.append(hit_ratio(cache, epoch(1, OBJECTS, SIZE, seed)))
        hit_ratio(cache, epoch(2, OBJECTS // 10, SIZE))
    assert min(found[1:]) >= 0.75 * BEST


def test_two_trainings_at_a_time_both_keep_a_part() -> None:
    cache = SimulatedCache(choose_victims, OBJECTS * SIZE)
    for seed in range(4):
        reads = [
            read
            for pair in zip(epoch(1, OBJECTS, SIZE, seed), epoch(2, OBJECTS, SIZE, seed), strict=True)
            for read in pair
        ]
        overall = hit_ratio(cache, reads)
    assert overall >= 0.9 * BEST


def test_a_part_of_a_dataset_that_is_not_read_any_more_is_evicted_in_the_end() -> None:
    cache = SimulatedCache(choose_victims, OBJECTS * SIZE // 2)
    for seed in range(3):
        hit_ratio(cache, epoch(1, OBJECTS, SIZE, seed))
    other_part = [(1, OBJECTS + number, SIZE) for number in range(OBJECTS)]
    seen = [hit_ratio(cache, other_part) for _ in range(6)]
    assert seen[-1] >= 0.9 * BEST


def test_every_trace_is_available() -> None:
    names = {"moving-on", "sequential-shards", "shuffled-images", "train-and-validate"}
    assert {trace.name for trace in recorded()} == names


rows = st.builds(
    EvictionRow,
    digest=st.uuids().map(str),
    present_bytes=st.integers(0, 10),
    dataset=st.integers(0, 3),
    first_use=st.integers(0, 50),
    last_use=st.integers(0, 100),
    gap=st.integers(0, 60),
)


@given(
    st.lists(rows, max_size=30, unique_by=lambda row: row.digest),
    st.integers(-5, 200),
    st.integers(-5, 40),
    st.integers(100, 200),
)
def test_enough_bytes_and_files_are_freed_and_not_one_object_too_many(
    candidates: list[EvictionRow], need: int, files: int, now: int
) -> None:
    victims = choose_victims(candidates, need, now, need_files=files)
    freed = sum(victim.present_bytes for victim in victims)
    assert freed >= min(need, sum(row.present_bytes for row in candidates))
    assert len(victims) >= min(files, len(candidates))
    if victims:
        assert freed - victims[-1].present_bytes < need or len(victims) - 1 < files
    assert len({victim.digest for victim in victims}) == len(victims)


def test_files_are_freed_in_the_same_order_as_bytes() -> None:
    candidates = [EvictionRow(f"{number:02}", 1 + number % 3, number % 2, 0, number, 1) for number in range(20)]
    by_files = choose_victims(candidates, 0, 20, need_files=6)
    by_bytes = choose_victims(candidates, sum(row.present_bytes for row in by_files), 20)
    assert by_files == by_bytes
