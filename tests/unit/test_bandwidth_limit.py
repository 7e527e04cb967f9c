"""The length of fetches under a limit of bandwidth, and the rate that a warmup reports."""

from __future__ import annotations

import pytest

from csi_driver.reading.readahead import Limits, paced, paced_chunks
from csi_driver.reading.warmup_progress import RATE_WINDOW_S, RateMeter

MIB = 1 << 20


class FakeTime:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


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
    assert paced_chunks(16, 0) == 16
    assert paced_chunks(16, 10**10) == 16
    assert paced_chunks(16, 32 * MIB) == 8
    assert paced_chunks(16, 64 << 10) == 1


@pytest.mark.promise("S522")
def test_readahead_under_a_limit_is_as_many_fetches_that_are_shorter() -> None:
    limits = Limits(8, 32)
    assert paced(limits, 0) == limits
    assert paced(limits, 16 * MIB) == Limits(4, 16)
    assert paced(limits, MIB) == Limits(1, 4)
    assert paced(Limits(8, 0), MIB) == Limits(1, 0)
    assert paced(limits._replace(whole=True), MIB) == Limits(1, 4, whole=True), "complete files stay so"
