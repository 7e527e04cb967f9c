"""Which proofs a mount remembers, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.reading.access import Access, Credential

AGE_S = 800.0
CREDENTIAL = Credential(bytes(16), bytes(16), AGE_S)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_row_is_proven_for_at_least_seven_eighths_of_the_age_and_never_longer_than_it(clock: Clock) -> None:
    for start_s in range(0, 100, 7):
        clock.now_s = 1_000_000.0
        access = Access(CREDENTIAL, 1, clock=clock)
        clock.now_s += start_s
        access.remember(0, access.now_s())
        proven_s = clock.now_s
        while access.is_proven(0):
            clock.now_s += 1
        assert AGE_S * 7 / 8 <= clock.now_s - proven_s <= AGE_S


def test_an_older_proof_is_remembered_for_the_rest_of_its_age(clock: Clock) -> None:
    access = Access(CREDENTIAL, 2, clock=clock)
    access.remember(0, access.now_s() - 400)
    access.remember(1, access.now_s() - 801)
    assert access.is_proven(0)
    assert not access.is_proven(1)
    clock.now_s += 400
    assert not access.is_proven(0)


def test_a_clock_that_is_set_back_proves_nothing(clock: Clock) -> None:
    access = Access(CREDENTIAL, 1, clock=clock)
    access.remember(0, access.now_s())
    at_s = access.now_s()
    clock.now_s -= 500
    assert not access.is_proven(0)
    assert not access.is_young(at_s)


@given(steps=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 40_000)), max_size=60))
def test_whatever_the_uptime_no_row_is_proven_for_longer_than_the_age(steps: list[tuple[int, float]]) -> None:
    clock = Clock()
    access = Access(CREDENTIAL, 4, clock=clock)
    proven_s: dict[int, float] = {}
    for row, pause_s in steps:
        access.remember(row, access.now_s())
        proven_s[row] = clock.now_s
        assert access.is_proven(row)
        clock.now_s += pause_s
        for known, at_s in proven_s.items():
            assert not access.is_proven(known) or clock.now_s - at_s <= AGE_S


def test_a_row_is_claimed_once_and_only_while_it_is_not_proven(clock: Clock) -> None:
    access = Access(CREDENTIAL, 6, clock=clock)
    access.remember(2, access.now_s())
    assert access.claim_rows(range(1, 4)) == [1, 3]
    assert access.claim_rows(range(1, 100)) == [4, 5]
    assert access.claim_rows(range(6, 100)) == []


def test_a_row_that_is_not_of_the_mount_is_never_proven() -> None:
    access = Access(CREDENTIAL)
    access.remember(-1, access.now_s())
    assert not access.is_proven(-1)
    assert not access.is_proven(0)


def test_a_proof_that_was_never_given_is_not_young_however_long_it_is_valid(clock: Clock) -> None:
    assert not Access(Credential(bytes(16), bytes(16), 1e12), clock=clock).is_young(0)
