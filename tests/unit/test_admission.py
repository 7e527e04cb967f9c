"""What a warmup may do: the limit of bandwidth, the rate it reports, and whose turn it is."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.reading.admission import RATE_WINDOW_S, AdmissionGate, Foreground, RateLimit, RateMeter, may_begin
from csi_driver.reading.warmup import FETCH_CHUNKS, fetch_chunks

MIB = 1 << 20


class Time:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.integers(1000, 10**9),
    fetches=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 16 * MIB)), max_size=40),
)
def test_no_span_of_time_sees_more_than_the_rate_allows_and_one_fetch(
    rate: int, fetches: list[tuple[float, int]]
) -> None:
    time = Time()
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
    time = Time()
    limit = RateLimit(MIB, time)
    assert limit.take(4 * MIB) == 0
    assert limit.take(MIB) == 4
    limit.give_back(MIB)
    assert limit.take(MIB) == 4
    assert limit.take(MIB) == 5


def test_without_a_limit_nothing_waits() -> None:
    limit = RateLimit(0, Time())
    assert [limit.take(1 << 40) for _ in range(3)] == [0, 0, 0]


def test_the_rate_is_that_of_the_last_seconds() -> None:
    time = Time()
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


def test_none_begins_while_a_reader_waits_and_one_while_readers_fetch() -> None:
    assert not may_begin(Foreground(waiting=True, engaged=0), running=0, most=8)
    assert may_begin(Foreground(waiting=False, engaged=3), running=0, most=8)
    assert not may_begin(Foreground(waiting=False, engaged=3), running=1, most=8)
    assert may_begin(Foreground(waiting=False, engaged=0), running=7, most=8)
    assert not may_begin(Foreground(waiting=False, engaged=0), running=8, most=8)


def test_the_gate_opens_when_readers_have_gone() -> None:
    foreground = Foreground(waiting=True, engaged=2)
    gate = AdmissionGate(lambda: foreground, 2)
    looks = 0

    def wait(seconds: float) -> bool:
        nonlocal foreground, looks
        looks += 1
        if looks == 3:
            foreground = Foreground(waiting=False, engaged=0)
        return False

    assert gate.enter(wait)
    assert looks == 3
    assert gate.enter(wait)
    assert not gate.enter(lambda seconds: True), "it has no third place, and whoever does not want one any more leaves"
    gate.leave()
    assert gate.enter(wait)


def test_places_of_the_gate_are_shared_by_all() -> None:
    gate = AdmissionGate(lambda: Foreground(waiting=False, engaged=0), 3)
    inside, most = 0, 0
    lock = threading.Lock()
    pause = threading.Event()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            assert gate.enter(lambda seconds: pause.wait(0.0005))
            with lock:
                inside += 1
                most = max(most, inside)
            pause.wait(0.0005)
            with lock:
                inside -= 1
            gate.leave()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 1 < most <= 3


def test_fetches_are_shorter_under_a_low_limit() -> None:
    assert fetch_chunks(0) == FETCH_CHUNKS
    assert fetch_chunks(10**10) == FETCH_CHUNKS
    assert fetch_chunks(32 * MIB) == 8
    assert fetch_chunks(64 << 10) == 1
