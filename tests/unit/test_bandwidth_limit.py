"""The limit of bandwidth of a warmup, and the rate that it reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.reading.bandwidth_limit import RATE_WINDOW_S, RateLimit, RateMeter
from csi_driver.reading.warmup import FETCH_CHUNKS, fetch_chunks

MIB = 1 << 20


class FakeTime:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.promise("S76")
@given(
    rate=st.integers(1000, 10**9),
    fetches=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 16 * MIB)), max_size=40),
)
def test_no_span_of_time_sees_more_than_the_rate_allows_and_one_fetch(
    rate: int, fetches: list[tuple[float, int]]
) -> None:
    time = FakeTime()
    limit = RateLimit(rate, time)
    begun: list[tuple[float, int]] = []
    for idle_s, count_bytes in fetches:
        time.now += idle_s
        wait_s = limit.take(count_bytes)
        time.now += wait_s
        begun.append((time.now, count_bytes))
    for first, (since, _) in enumerate(begun):
        total = 0
        for at, count_bytes in begun[first:]:
            assert total <= rate * (at - since) + max(size for _, size in begun) + 1
            total += count_bytes


def test_a_fetch_that_was_not_needed_costs_no_time() -> None:
    time = FakeTime()
    limit = RateLimit(MIB, time)
    assert limit.take(4 * MIB) == 0
    assert limit.take(MIB) == 4
    limit.give_back(MIB)
    assert limit.take(MIB) == 4
    assert limit.take(MIB) == 5


def test_without_a_limit_nothing_waits() -> None:
    limit = RateLimit(0, FakeTime())
    assert [limit.take(1 << 40) for _ in range(3)] == [0, 0, 0]


def test_the_rate_is_that_of_the_last_seconds() -> None:
    time = FakeTime()
    meter = RateMeter(time)
    assert meter.bytes_per_second() == 0
    for _ in range(100):
        time.now += 1
        meter.add(5000)
    assert meter.bytes_per_second() == pytest.approx(5000, rel=0.01)
    for _ in range(100):
        time.now += 1
        meter.add(100)
    assert meter.bytes_per_second() == pytest.approx(100, rel=0.01)
    time.now += 3 * RATE_WINDOW_S
    assert meter.bytes_per_second() < 30


def test_fetches_are_shorter_under_a_low_limit() -> None:
    assert fetch_chunks(0) == FETCH_CHUNKS
    assert fetch_chunks(10**10) == FETCH_CHUNKS
    assert fetch_chunks(32 * MIB) == 8
    assert fetch_chunks(64 << 10) == 1
