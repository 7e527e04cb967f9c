"""Calls of one namespace, spread over time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.csi.publication_pace import LONGEST_INTERVAL_S, SHORTEST_INTERVAL_S, PublicationPace

CALLS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 1.0), st.booleans()), max_size=80)


class _Refused(Exception):
    pass


class _Paced:
    """A pace, its clock, and what a call waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.pace = PublicationPace(clock=lambda: self.now, sleep=self.slept.append)

    def call(self, namespace: str, *, fails: bool = False) -> float:
        """When the call began."""
        self.slept.clear()
        try:
            with self.pace.call(namespace):
                if fails:
                    raise _Refused
        except _Refused:
            assert fails
        return self.now + sum(self.slept)


@pytest.mark.promise("S620")
@given(CALLS)
def test_calls_of_a_namespace_begin_an_interval_apart_and_no_later_than_that_asks_for(
    calls: list[tuple[str, float, bool]],
) -> None:
    paced, next_s, interval_s = _Paced(), dict[str, float](), dict[str, float]()
    for namespace, pause_s, fails in calls:
        paced.now += pause_s
        begins = paced.call(namespace, fails=fails)
        assert begins == pytest.approx(max(paced.now, next_s.get(namespace, paced.now)))
        interval = interval_s.get(namespace, SHORTEST_INTERVAL_S)
        next_s[namespace] = begins + interval
        interval_s[namespace] = min(max(interval * (2.0 if fails else 0.5), SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)


@pytest.mark.promise("S620")
def test_a_namespace_whose_calls_fail_calls_seldom_and_alone_waits_for_it() -> None:
    paced = _Paced()
    for _ in range(100):
        paced.now = paced.call("attacker", fails=True)
    assert paced.call("attacker", fails=True) == pytest.approx(paced.now + LONGEST_INTERVAL_S)
    assert paced.call("victim") == paced.now
    for _ in range(6):  # it mounts again
        paced.now = paced.call("attacker")
    assert paced.call("attacker") == pytest.approx(paced.now + SHORTEST_INTERVAL_S)


def test_what_is_known_of_namespaces_is_bounded_and_forgets_the_oldest() -> None:
    paced = _Paced()
    for number in range(3000):
        paced.now += 0.001
        paced.call(f"team-{number}", fails=True)
    assert len(paced.pace._namespaces) <= 1000
    paced.call("team-2999", fails=True)
    assert paced.slept
