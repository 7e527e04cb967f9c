"""Which store of several is the nearest: what is measured, how often stores are asked for it, and how often readers
move."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from csi_driver.objects.mirrors.origin_speeds import (
    DWELL_S,
    LEAST_GAIN_S,
    NEARER,
    READS_LAST_S,
    READS_PER_REQUEST,
    REQUESTS,
    ROUND_S,
    OriginSpeeds,
)
from csi_driver.objects.request_counts import RequestCounts


class Network:
    """Stores that answer after so long, on a clock of its own."""

    def __init__(self, *waits_s: float) -> None:
        self.now_s = 1000.0
        self.waits_s = list(waits_s)
        self.reads_s: list[float] = list(waits_s)
        """Of reads, which a thin link makes longer."""
        self.speeds = OriginSpeeds(len(waits_s), lambda: self.now_s)
        self.asked = self.read_count = 0

    def round(self, working: list[int] | None = None) -> list[int]:
        """The stores that were asked, if it was time for it."""
        asked = self.speeds.begin_round(list(range(len(self.waits_s))) if working is None else working)
        for number in asked:
            with self.speeds.as_probe():
                for _ in range(REQUESTS):
                    self.speeds.note(number, self.waits_s[number])
        self.asked += REQUESTS * len(asked)
        if asked:
            self.speeds.end_round(first_refuses=False)
        return list(asked)

    def read(self, count: int) -> None:
        """From the store that is asked first."""
        for _ in range(count):
            self.read_count += 1
            is_due = self.speeds.read()
            number = self.speeds.order[0]
            self.speeds.note(number, self.reads_s[number])
            if is_due:
                self.round()


@pytest.mark.promise("S685")
def test_the_nearest_is_first_after_one_round() -> None:
    network = Network(0.080, 0.120, 0.010)
    assert list(network.speeds.order) == [0, 1, 2]
    network.round()
    assert list(network.speeds.order) == [2, 0, 1]


@pytest.mark.promise("S685")
@pytest.mark.parametrize("other_s", [0.020, 0.0151, 0.019])
def test_what_is_hardly_nearer_is_not_preferred(other_s: float) -> None:
    network = Network(0.020, other_s)
    network.round()
    assert list(network.speeds.order) == [0, 1]


@pytest.mark.promise("S685")
def test_a_nearer_store_that_is_slower_to_read_is_left_again_and_tried_later() -> None:
    """A thin link: requests for one byte do not see it."""
    network = Network(0.050, 0.010)
    network.reads_s = [0.060, 0.900]
    network.read(64)
    assert network.speeds.order[0] == 1, "the first round was at the first read"
    network.now_s += DWELL_S
    network.read(64)
    assert network.speeds.order[0] == 1, "nothing is known of how the other one is read"
    network.speeds.forget(1)
    network.read(640)
    firsts = []
    for _ in range(20):
        network.now_s += READS_LAST_S / 10
        network.read(64)
        firsts.append(network.speeds.order[0])
    moves = sum(one != other for one, other in pairwise(firsts))
    assert moves <= 20 * READS_LAST_S / 10 / DWELL_S


@pytest.mark.promise("S685")
def test_reads_decide_where_two_stores_were_read() -> None:
    network = Network(0.050, 0.010)
    for _ in range(20):
        network.speeds.note(0, 0.060)
        network.speeds.note(1, 0.900)
    network.round()
    assert network.speeds.order[0] == 0
    network.now_s += READS_LAST_S + 1
    network.read(READS_PER_REQUEST * REQUESTS * 2 + 64)
    assert network.speeds.order[0] == 1, "and are forgotten"


@pytest.mark.promise("S685")
def test_a_store_that_was_away_is_found_again() -> None:
    network = Network(0.080, 0.010)
    network.round()
    assert network.speeds.order[0] == 1
    network.speeds.forget(1)
    network.now_s += DWELL_S + 1
    network.waits_s[1] = 0.500
    network.read(READS_PER_REQUEST * REQUESTS * 2 + 64)
    assert network.speeds.order[0] == 0
    network.waits_s[1] = 0.010
    network.speeds.forget(1)
    network.now_s += DWELL_S + 1
    network.read(READS_PER_REQUEST * REQUESTS * 2 + 64)
    assert network.speeds.order[0] == 1


@pytest.mark.promise("S686")
def test_requests_for_one_byte_are_a_hundredth_of_the_reads_and_seldom() -> None:
    network = Network(0.080, 0.010, 0.030)
    network.read(1)
    first = network.asked
    assert first == REQUESTS * 3
    network.read(10_000)
    assert network.asked == first, "the next round is not before its time"
    for _ in range(50):
        network.now_s += ROUND_S
        network.read(100)
    assert network.asked - first <= network.read_count / READS_PER_REQUEST


@pytest.mark.promise("S686")
def test_a_bucket_that_refuses_is_asked_first_until_it_does_not() -> None:
    network = Network(0.080, 0.010)
    network.round()
    assert network.speeds.order[0] == 1
    network.speeds.end_round(first_refuses=True)
    assert list(network.speeds.order) == [0, 1]
    network.speeds.end_round(first_refuses=False)
    assert network.speeds.order[0] == 1


def test_reads_are_timed_and_counted_with_all_others() -> None:
    now_s = [5.0]
    counts = RequestCounts(lambda: now_s[0])
    speeds = OriginSpeeds(2, lambda: now_s[0])
    for number, wait_s in ((0, 0.5), (1, 0.1)):
        for _ in range(10):
            with speeds.counting(number, counts).request("read") as request:
                now_s[0] += wait_s
                request.answered()
                now_s[0] += 3.0
    with speeds.counting(1, counts).request("list"):
        now_s[0] += 100.0
    assert counts.numbers().results == {"ok": 21}
    assert sum(counts.numbers().waits.counts) == 21
    speeds.recovered()
    assert list(speeds.order) == [1, 0]


class Speeds(RuleBasedStateMachine):
    """Against what must hold whatever is measured."""

    @initialize(count=st.integers(2, 5))
    def begin(self, count: int) -> None:
        self.network = Network(*[0.05] * count)
        self.moves: list[float] = []
        self.first = 0

    @rule(data=st.data(), wait_s=st.sampled_from([0.001, 0.004, 0.02, 0.1, 1.0]))
    def changes(self, data: st.DataObject, wait_s: float) -> None:
        number = data.draw(st.integers(0, len(self.network.waits_s) - 1))
        self.network.waits_s[number] = self.network.reads_s[number] = wait_s

    @rule(data=st.data())
    def fails(self, data: st.DataObject) -> None:
        self.network.speeds.forget(data.draw(st.integers(0, len(self.network.waits_s) - 1)))

    @rule(seconds=st.sampled_from([0.1, 10.0, 31.0, 61.0, 400.0]), reads=st.sampled_from([0, 1, 70, 500]))
    def time_passes(self, seconds: float, reads: int) -> None:
        for _ in range(max(1, reads)):
            self.network.read(min(1, reads))
            self.look()
        self.network.now_s += seconds

    @rule()
    def settles(self) -> None:
        """Nothing changes for long: then no store is clearly nearer than the one that is read."""
        for _ in range(3):
            self.network.now_s += READS_LAST_S + 1
            self.network.read(READS_PER_REQUEST * REQUESTS * len(self.network.waits_s) + 128)
            self.look()
        waits_s = self.network.waits_s
        first_s = waits_s[self.network.speeds.order[0]]
        assert not any(each < min(NEARER * first_s, first_s - LEAST_GAIN_S) for each in waits_s)

    def look(self) -> None:
        if self.network.speeds.order[0] != self.first:
            self.first = self.network.speeds.order[0]
            assert not self.moves or self.network.now_s - self.moves[-1] >= DWELL_S
            self.moves.append(self.network.now_s)

    @invariant()
    def every_store_is_in_the_order_once(self) -> None:
        assert sorted(self.network.speeds.order) == list(range(len(self.network.waits_s)))

    @invariant()
    def few_requests_are_sent(self) -> None:
        network = self.network
        assert network.asked <= REQUESTS * len(network.waits_s) + network.read_count / READS_PER_REQUEST


TestSpeeds = pytest.mark.promise("S686")(Speeds.TestCase)
