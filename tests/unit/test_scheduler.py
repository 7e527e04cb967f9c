"""The scheduler against a model: priorities, fairness, budgets, limits of bandwidth and of stores, stalled requests."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from csi_driver.reading.bandwidth_limit import BURST_S, Pace
from csi_driver.reading.fair_shares import STALL_S, FairShares, Share
from csi_driver.reading.scheduler import (
    LIGHT_BYTES,
    LIGHT_FETCHES,
    Lane,
    LaneLimits,
    Priority,
    Scheduler,
    Started,
    Work,
)
from tests.support.examples import drawn

MIB = 1 << 20
SHARES = [Share(f"team-{number % 2}", f"store-{number % 3}", f"volume-{number}") for number in range(6)]
HOG, MODEST = Share("a", "s", "hog"), Share("b", "t", "modest")
HEAVY = 16 * MIB


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lanes(clock: Clock, threads: int = 4, ahead: int = 2, loop: int = 4) -> dict[Lane, LaneLimits]:
    def shares(limit: int, weight: int = 1) -> FairShares:
        return FairShares(limit * weight, limit * weight * 8, most_of_a_volume=limit * weight, clock=clock)

    return {
        Lane.THREADS: LaneLimits(shares(threads), shares(ahead)),
        Lane.LOOP: LaneLimits(shares(loop, MIB), least_weight=MIB, weighs_bytes=True),
        Lane.DISK: LaneLimits(shares(threads)),
    }


def scheduler(clock: Clock, warm_fetches: int = 2, bytes_per_second: int = 0) -> Scheduler[Work]:
    return Scheduler(lanes(clock), warm_fetches, bytes_per_second=bytes_per_second, clock=clock)


def queue(
    made: Scheduler[Work], priority: Priority, share: Share, count: int = 1, *, lane: Lane = Lane.THREADS
) -> None:
    for _ in range(count):
        made.submit(lane, priority, share, Work(HEAVY if priority is Priority.WARM else 0))


def take_all(made: Scheduler[Work], lane: Lane = Lane.THREADS) -> list[Started[Work]]:
    return list(iter(lambda: made.take(lane), None))


def end_all(made: Scheduler[Work], lane: Lane) -> None:
    """Takes and ends work until none may start: what ends leaves slots to others."""
    while ready := take_all(made, lane):
        for started in ready:
            made.end(started)


class Model(RuleBasedStateMachine):
    """Draws what happens to a scheduler, and checks each decision."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.may_warm = True
        self.scheduler: Scheduler[Work] = Scheduler(
            lanes(self.clock), 2, may_warm=lambda: self.may_warm, clock=self.clock
        )
        self.queued: Counter[tuple[Lane, Priority, Share]] = Counter()
        self.running: list[Started[Work]] = []
        self.stalled: set[int] = set()
        self.ever: set[int] = set()
        self.work: list[Work] = []

    def active(self, *priorities: Priority, lane: Lane | None = None) -> list[Started[Work]]:
        return [
            each
            for each in self.running
            if each.priority in priorities and id(each) not in self.stalled and lane in (None, each.lane)
        ]

    @rule(
        lane=st.sampled_from(Lane),
        priority=st.sampled_from(Priority),
        share=st.sampled_from(SHARES),
        light=st.booleans(),
    )
    def submit(self, lane: Lane, priority: Priority, share: Share, light: bool) -> None:
        work = Work(1000 if light or lane is Lane.LOOP else HEAVY)
        self.work.append(work)
        self.scheduler.submit(lane, priority, share, work)
        self.queued[lane, priority, share] += 1

    @rule(lane=st.sampled_from(Lane))
    def take(self, lane: Lane) -> None:
        readers = self.active(Priority.DEMAND, Priority.AHEAD)
        warm = self.active(Priority.WARM)
        started = self.scheduler.take(lane)
        queued = {priority for (at, priority, _), count in self.queued.items() if at is lane and count}
        if started is None:
            own = self.active(Priority.DEMAND, Priority.AHEAD, lane=lane)
            assert Priority.DEMAND not in queued or len(own) >= 4 or self.stalled, "nothing holds it up"
            return
        assert started.lane is lane
        assert id(started.work) not in self.ever, "it was taken before"
        self.ever.add(id(started.work))
        self.queued[lane, started.priority, started.share] -= 1
        assert self.queued[lane, started.priority, started.share] >= 0
        self.running.append(started)
        if started.priority is Priority.WARM:
            assert self.may_warm
            weight = sum(1 if each.work.count_bytes <= LIGHT_BYTES else LIGHT_FETCHES for each in warm)
            limit = LIGHT_FETCHES if readers else 2 * LIGHT_FETCHES
            assert weight < limit or self.is_below_part(started.share, limit)

    def is_below_part(self, share: Share, limit: int) -> bool:
        """Whether the namespace or the store of the share had less than an equal part of the warmups' budget, stalled
        fetches included. Beyond the budget it gets one more then."""
        for depth in (1, 2):
            held = Counter[tuple[str, ...]]()
            for each in self.running[:-1]:
                if each.priority is Priority.WARM:
                    held[each.share[:depth]] += 1 if each.work.count_bytes <= LIGHT_BYTES else LIGHT_FETCHES
            holders = len(held | Counter([share[:depth]]))
            if held[share[:depth]] < max(1, limit // holders):
                return True
        return False

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 1000))
    def end(self, number: int) -> None:
        started = self.running.pop(number % len(self.running))
        self.stalled.discard(id(started))
        self.scheduler.end(started)

    @rule()
    def time_passes_without_a_byte(self) -> None:
        self.clock.now += STALL_S + 1
        self.scheduler.mark_stalled(*Lane)
        self.stalled = {id(each) for each in self.running}

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 1000))
    def a_byte_is_received(self, number: int) -> None:
        started = self.running[number % len(self.running)]
        started.progressed(self.clock.now)
        self.scheduler.mark_stalled(*Lane)
        self.stalled.discard(id(started))

    @rule(may_warm=st.booleans())
    def the_disk_is_backlogged_or_not(self, may_warm: bool) -> None:
        self.may_warm = may_warm

    @invariant()
    def readers_of_a_lane_are_counted(self) -> None:
        for lane in (Lane.THREADS, Lane.DISK):
            assert self.scheduler.active(lane) == len(self.active(Priority.DEMAND, Priority.AHEAD, lane=lane))

    def teardown(self) -> None:
        """In the end everything starts."""
        self.may_warm = True
        for _ in range(10 * len(self.work) + 10):
            for started in self.running:
                self.scheduler.end(started)
            self.running = [started for lane in Lane for started in take_all(self.scheduler, lane)]
            self.ever |= {id(started.work) for started in self.running}
            if not self.running:
                break
        assert self.ever == set(map(id, self.work))
        assert self.scheduler.is_idle


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=drawn(40), stateful_step_count=40, deadline=None)


@pytest.mark.promise("S520")
def test_readers_go_before_readahead_and_that_before_warmups() -> None:
    made = scheduler(Clock())
    for priority in (Priority.WARM, Priority.AHEAD, Priority.DEMAND):
        queue(made, priority, HOG, 2)
    order = []
    while (started := made.take(Lane.THREADS)) is not None:
        order.append(started.priority)
        made.end(started)
    assert order == sorted(order)
    assert len(order) == 6


@pytest.mark.promise("S520")
@pytest.mark.parametrize("lane", Lane)
def test_no_warmup_begins_a_fetch_while_a_read_of_any_kind_waits_for_its_turn(lane: Lane) -> None:
    made = scheduler(Clock())
    queue(made, Priority.DEMAND, HOG, 5, lane=lane)
    reads = take_all(made, lane)
    assert len(reads) == 4
    queue(made, Priority.WARM, MODEST)
    assert take_all(made) == []
    made.end(reads[0])
    started = take_all(made, lane) + take_all(made)
    assert [each.priority for each in started] == [Priority.DEMAND, Priority.WARM], "none waits any more"


@pytest.mark.promise("S520")
def test_one_fetch_of_a_warmup_runs_beside_readers_or_a_few_light_ones() -> None:
    made = scheduler(Clock(), warm_fetches=4)
    queue(made, Priority.DEMAND, HOG, lane=Lane.LOOP)
    reads = take_all(made, Lane.LOOP)
    queue(made, Priority.WARM, HOG, 5)
    first = take_all(made)
    assert len(first) == 1
    for started in reads:
        made.end(started)
    assert len(take_all(made)) == 3, "as many as there may be without readers"
    light = scheduler(Clock(), warm_fetches=4)
    queue(light, Priority.DEMAND, HOG, lane=Lane.LOOP)
    take_all(light, Lane.LOOP)
    for _ in range(40):
        light.submit(Lane.LOOP, Priority.WARM, HOG, Work(1000))
    assert len(take_all(light, Lane.LOOP)) == LIGHT_FETCHES


def test_readahead_leaves_slots_to_readers() -> None:
    made = scheduler(Clock())
    queue(made, Priority.AHEAD, HOG, 9)
    assert len(take_all(made)) == 2
    queue(made, Priority.DEMAND, HOG, 9)
    assert len(take_all(made)) == 2


def test_work_that_is_moved_up_is_taken_once() -> None:
    made, work = scheduler(Clock()), Work()
    for priority in (Priority.WARM, Priority.AHEAD, Priority.DEMAND):
        made.submit(Lane.THREADS, priority, HOG, work)
    assert [started.priority for started in take_all(made)] == [Priority.DEMAND]


def test_requests_and_bytes_of_the_loop_have_one_budget() -> None:
    for size_bytes, most in ((1, 4), (2 * MIB, 2), (4 * MIB, 1)):
        made = scheduler(Clock())
        for _ in range(9):
            made.submit(Lane.LOOP, Priority.DEMAND, HOG, Work(size_bytes))
        assert len(take_all(made, Lane.LOOP)) == most


def test_stalled_requests_give_up_their_place_and_get_it_back() -> None:
    clock = Clock()
    made = scheduler(clock)
    queue(made, Priority.DEMAND, HOG, 6)
    first = take_all(made)
    assert len(first) == 4
    clock.now += STALL_S + 1
    made.mark_stalled(Lane.THREADS)
    assert len(take_all(made)) == 2
    for started in first:
        started.progressed(clock.now)
    made.mark_stalled(Lane.THREADS)
    queue(made, Priority.DEMAND, HOG)
    assert take_all(made) == []


def test_a_volume_whose_store_is_at_its_limit_waits_alone() -> None:
    made = scheduler(Clock())
    queue(made, Priority.DEMAND, HOG, 2, lane=Lane.LOOP)
    queue(made, Priority.DEMAND, MODEST, 1, lane=Lane.LOOP)
    first = made.take(Lane.LOOP)
    assert first is not None
    made.end(first)
    made.hold_back(Lane.LOOP, HOG)
    assert [started.share for started in take_all(made, Lane.LOOP)] == [MODEST]
    made.restart(first)
    assert made.active(Lane.LOOP) == 2 * MIB
    made.admit(Lane.LOOP, HOG)
    assert [started.share for started in take_all(made, Lane.LOOP)] == [HOG]


@pytest.mark.promise("S521")
def test_a_hog_leaves_another_volume_its_share_of_a_limited_node() -> None:
    """Both always have work queued, the hog four times as much. Fetches are of equal size."""
    clock = Clock()
    made, begun = scheduler(clock, bytes_per_second=64 * MIB), Counter[Share]()
    for _ in range(2000):
        for share, count in ((HOG, 4), (MODEST, 1)):
            for _ in range(count):
                made.submit(Lane.THREADS, Priority.DEMAND, share, Work(4 * MIB))
        for started in take_all(made):
            begun[started.share] += 1
            made.end(started)
        clock.now += 0.01
    assert begun[MODEST] == pytest.approx(begun[HOG], abs=2)
    assert sum(begun.values()) == pytest.approx(20 * 64 / 4, rel=0.02), "the rate is used"


@pytest.mark.promise("S521")
def test_the_lanes_share_a_limited_node_in_turn() -> None:
    clock = Clock()
    made, begun = scheduler(clock, bytes_per_second=64 * MIB), Counter[Lane]()
    for _ in range(1000):
        for lane in (Lane.LOOP, Lane.THREADS):
            made.submit(lane, Priority.DEMAND, HOG, Work(MIB))
        for lane in (Lane.LOOP, Lane.THREADS):  # the loop is always faster
            for started in take_all(made, lane):
                begun[lane] += 1
                made.end(started)
        clock.now += 0.005
    assert begun[Lane.THREADS] == pytest.approx(begun[Lane.LOOP], rel=0.3)


@pytest.mark.promise("S522")
@given(
    rate=st.integers(MIB, 10**9),
    fetches=st.lists(
        st.tuples(st.floats(0, 1), st.integers(1, 16 * MIB), st.sampled_from(Lane), st.sampled_from(Priority)),
        max_size=40,
    ),
)
def test_no_span_of_time_sees_more_of_a_volume_than_its_limit_allows_and_one_fetch(
    rate: int, fetches: list[tuple[float, int, Lane, Priority]]
) -> None:
    clock = Clock()
    made = scheduler(clock)
    made.limit(HOG, rate)
    begun: list[tuple[float, int]] = []
    for idle_s, count_bytes, lane, priority in fetches:
        clock.now += idle_s
        made.submit(lane, priority, HOG, Work(count_bytes))
        for each in Lane:
            while (started := made.take(each)) is not None:
                begun.append((clock.now, started.work.count_bytes))
                made.end(started)
    for first, (since, _) in enumerate(begun):
        total = 0
        for at, count_bytes in begun[first:]:
            assert total <= rate * (at - since + BURST_S) + max(size for _, size in begun) + 1
            total += count_bytes
    for _ in range(10_000):  # and what waits starts when the limit says that it may
        next_s = made.next_start_s()
        if next_s is None:
            break
        clock.now = max(clock.now, next_s)
        for each in Lane:
            end_all(made, each)
    assert made.is_idle


@pytest.mark.promise("S522")
def test_a_limited_volume_holds_up_no_other_and_its_readers_go_before_its_warmup() -> None:
    clock = Clock()
    made = scheduler(clock)
    made.limit(HOG, MIB)
    made.submit(Lane.LOOP, Priority.WARM, HOG, Work(MIB))
    (warm,) = take_all(made, Lane.LOOP)
    made.end(warm)
    made.submit(Lane.LOOP, Priority.WARM, HOG, Work(MIB))
    made.submit(Lane.THREADS, Priority.DEMAND, HOG, Work(MIB))
    made.submit(Lane.LOOP, Priority.WARM, MODEST, Work(MIB))
    assert take_all(made) == []
    assert [started.share for started in take_all(made, Lane.LOOP)] == [MODEST]
    clock.now += 1.0
    assert take_all(made, Lane.LOOP) == [], "it is the reader's turn, on another lane"
    assert len(take_all(made)) == 1


def test_work_without_bytes_does_not_wait_for_bandwidth() -> None:
    made = scheduler(Clock())
    made.limit(HOG, MIB)
    for _ in range(3):
        made.submit(Lane.THREADS, Priority.DEMAND, HOG, Work())
    assert len(take_all(made)) == 3


def test_bytes_that_were_not_needed_are_given_back() -> None:
    clock = Clock()
    made = scheduler(clock)
    made.limit(HOG, MIB)
    for _ in range(2):
        made.submit(Lane.THREADS, Priority.DEMAND, HOG, Work(4 * MIB))
    (first,) = take_all(made)
    first.work.unused_bytes = 4 * MIB
    made.end(first)
    assert len(take_all(made)) == 1


@pytest.mark.promise("S76")
@given(
    rate=st.integers(1000, 10**9),
    fetches=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 16 * MIB)), max_size=40),
)
def test_no_span_of_time_sees_more_than_the_rate_allows_and_one_fetch(
    rate: int, fetches: list[tuple[float, int]]
) -> None:
    pace, now = Pace(rate), 50.0
    begun: list[tuple[float, int]] = []
    for idle_s, count_bytes in fetches:
        now = max(now + idle_s, pace.free_at_s)
        assert pace.may_start(Lane.THREADS, Priority.WARM, now)
        pace.start(Lane.THREADS, count_bytes, now)
        begun.append((now, count_bytes))
    for first, (since, _) in enumerate(begun):
        total = 0
        for at, count_bytes in begun[first:]:
            assert total <= rate * (at - since + BURST_S) + max(size for _, size in begun) + 1
            total += count_bytes
