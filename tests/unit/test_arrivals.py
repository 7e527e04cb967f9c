"""Which objects have arrived since a look-up: never a no for one that has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from csi_driver.reading.arrivals import Arrivals


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(0, 6), st.integers(0, 40), st.integers(1, 5))
def test_what_has_arrived_is_known_and_what_is_remembered_is_exact(
    added: list[int], key: int, since: int, most: int
) -> None:
    arrivals = Arrivals(most)
    for one in added:
        arrivals.add(one)
    assert arrivals.count == len(added)
    since = min(since, len(added))
    later = added[since:]
    if key in later:
        assert arrivals.may_have(key, since)
    elif len(set(later)) <= most and len(set(added)) <= most:
        assert not arrivals.may_have(key, since)


def test_an_arrival_of_another_object_is_none() -> None:
    arrivals = Arrivals()
    arrivals.add("a")
    since = arrivals.count
    arrivals.add("b")
    assert not arrivals.may_have("a", since)
    assert arrivals.may_have("b", since)
