"""Eviction in long simulations: small caches, and the recorded traces of training readers."""

from __future__ import annotations

import pytest

from hayloft_bench.micro.eviction_policies import play
from hayloft_bench.micro.eviction_simulator import POLICIES, SimulatedCache, epoch, hit_ratio, knowing
from hayloft_bench.micro.eviction_traces import Trace, recorded

SIZE = 1 << 20
EPOCHS = 5


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("part", [3, 10, 30])
def test_a_cache_of_a_small_part_of_the_dataset_is_worth_that_part(part: int, shuffled: bool) -> None:
    objects = 100 * part
    cache = SimulatedCache(knowing({1: objects * SIZE}), 100 * SIZE)
    found = [hit_ratio(cache, epoch(1, objects, SIZE, seed if shuffled else None)) for seed in range(EPOCHS)]
    assert min(found[1:]) >= 0.9 / part


@pytest.mark.parametrize("trace", recorded(), ids=lambda trace: trace.name)
def test_on_recorded_traces_the_policy_is_near_the_best_and_no_usual_one_is(trace: Trace) -> None:
    ours = play(trace, "hayloft", knowing(trace.dataset_bytes()))
    assert ours.of_the_best >= 0.9
    assert ours.left_of_earlier_datasets == 0
    others = [play(trace, name, POLICIES[name]).of_the_best for name in ("lru", "fifo", "random")]
    assert max(others) < 0.7
