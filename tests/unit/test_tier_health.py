"""Replicas that fail are left alone, and found again."""

from __future__ import annotations

import pytest

from csi_driver.objects.tier.replica_health import LONGEST_PAUSE_S, ReplicaHealth


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.promise("S563")
def test_a_replica_that_failed_is_left_alone_and_then_asked_by_one_request() -> None:
    clock = Clock()
    health = ReplicaHealth(10.0, clock)
    assert health.may_ask("a")
    assert health.failed("a")
    assert not health.failed("a"), "requests that were in flight with it count once"
    assert not health.may_ask("a")
    assert health.may_ask("b")
    clock.now += 1.0
    assert not health.is_well("a")
    assert health.may_be_probed("a")
    assert health.may_ask("a")
    assert not health.may_ask("a"), "one request finds out, and the others do not wait for it"
    health.worked("a")
    assert health.may_ask("a")
    assert health.may_ask("a")


@pytest.mark.promise("S563")
def test_pauses_double_up_to_a_minute() -> None:
    clock = Clock()
    health = ReplicaHealth(10.0, clock)
    pauses = []
    for _ in range(9):
        health.failed("a")
        start = clock.now
        while not health.may_be_probed("a"):
            clock.now += 0.5
        pauses.append(clock.now - start)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, LONGEST_PAUSE_S]


def test_a_request_that_finds_out_and_never_ends_does_not_bar_the_replica_for_ever() -> None:
    clock = Clock()
    health = ReplicaHealth(10.0, clock)
    health.failed("a")
    clock.now += 1
    assert health.may_ask("a")
    clock.now += 9
    assert not health.may_ask("a")
    clock.now += 1
    assert health.may_ask("a")


def test_members_that_left_are_forgotten() -> None:
    clock = Clock()
    health = ReplicaHealth(10.0, clock)
    health.failed("a")
    health.failed("b")
    assert health.left_alone(["a", "b", "c"]) == 2
    health.retain(frozenset({"b"}))
    assert health.may_ask("a")
    assert health.left_alone(["a", "b", "c"]) == 1
