"""Calls of one namespace, spread over time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.csi.publication_pace import PublicationPace

CALLS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 0.05)), max_size=60)


@pytest.mark.promise("S620")
@given(CALLS)
def test_calls_of_a_namespace_begin_an_interval_apart_and_no_later_than_that_asks_for(
    calls: list[tuple[str, float]],
) -> None:
    now, slept = 0.0, list[float]()
    pace = PublicationPace(0.02, clock=lambda: now, sleep=slept.append)
    last: dict[str, float] = {}
    for namespace, pause_s in calls:
        now += pause_s
        slept.clear()
        pace.wait(namespace)
        begins = now + sum(slept)
        earliest = last[namespace] + 0.02 if namespace in last else now
        assert begins == pytest.approx(max(now, earliest))
        last[namespace] = begins


def test_what_is_known_of_namespaces_does_not_grow_without_end() -> None:
    now = 0.0
    pace = PublicationPace(0.02, clock=lambda: now, sleep=lambda _: None)
    for number in range(3000):
        now += 0.001
        pace.wait(f"team-{number}")
    assert len(pace._next) <= 1001
