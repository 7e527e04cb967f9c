"""The look at the end of a test that has started a daemon: which object files stayed open without a mount."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.daemons import open_in_each

A, B = "/cache/objects/0a/0a1", "/cache/objects/0b/0b1"


def test_a_file_that_stays_open_is_named_beside_others_that_come_and_go() -> None:
    assert open_in_each([{A}, {A, B}, {A}]) == {A}


def test_files_that_are_open_one_after_the_other_are_not_left_open() -> None:
    """As by the scrubber, which begins half a minute after the daemon and has a file open at every look."""
    assert open_in_each([{A}, {A}, {B}, {B}]) == set()


def test_a_file_that_becomes_complete_is_still_the_same() -> None:
    assert open_in_each([{A.replace("objects", "partial")}, {A}]) == {A}


@pytest.mark.parametrize("first", [set(), {A}])
def test_no_look_is_taken_once_none_is_left(first: set[str]) -> None:
    def looks() -> Iterator[set[str]]:
        yield first
        yield set()
        raise AssertionError("a look too many")

    assert open_in_each(looks()) == set()
