"""The look at the end of a test that has started a daemon: which object files stayed open without a mount."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.daemons import open_too_long

A, B = "/cache/objects/0a/0a1", "/cache/objects/0b/0b1"


def left_open(*looks: set[str]) -> set[str]:
    """One look a second, and a limit of 3 s."""
    return open_too_long(enumerate(looks), 3)


def test_a_file_that_stays_open_is_named_beside_others_that_come_and_go() -> None:
    assert left_open({A}, {A, B}, {A}, {A, B}) == {A}


def test_a_file_that_is_opened_after_the_first_look_and_stays_open_is_named() -> None:
    assert left_open({A}, {A, B}, {B}, {B}, {B}) == {B}


def test_files_that_are_open_one_after_the_other_are_not_left_open() -> None:
    """As by the scrubber, which begins half a minute after the daemon and has a file open at every look."""
    assert left_open({A}, {A}, {A, B}, {B}, {B}, {A}, {A}) == set()


def test_a_file_that_moves_or_is_deleted_is_still_the_same() -> None:
    assert left_open({A.replace("objects", "partial")}, {A}, {f"{A} (deleted)"}, {f"{A} (deleted)"}) == {
        f"{A} (deleted)"
    }


@pytest.mark.parametrize("first", [set(), {A}])
def test_no_look_is_taken_once_none_is_left(first: set[str]) -> None:
    def looks() -> Iterator[tuple[float, set[str]]]:
        yield 0.0, first
        yield 1.0, set()
        raise AssertionError("a look too many")

    assert open_too_long(looks(), 3) == set()
