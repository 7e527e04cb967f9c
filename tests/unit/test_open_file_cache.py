"""Files that stay open for a moment: used by one at a time, closed in the end whatever comes late."""

from __future__ import annotations

from typing import cast

from csi_driver.filesystem.open_file_cache import LINGER_S, MOST_LINGERING, OpenFileCache
from csi_driver.reading.open_object import OpenObject


class _Opened:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def _put(lingering: OpenFileCache, node: int) -> _Opened:
    opened = _Opened()
    lingering.put(node, cast(OpenObject, opened))
    return opened


def test_what_was_put_back_is_used_again_by_one() -> None:
    lingering = OpenFileCache()
    opened = _put(lingering, 7)
    assert lingering.take(7) is opened
    assert lingering.take(7) is None
    assert opened.closed == 0


def test_of_two_opens_of_a_node_the_later_stays() -> None:
    lingering = OpenFileCache()
    first, second = _put(lingering, 7), _put(lingering, 7)
    assert (first.closed, second.closed) == (1, 0)
    assert lingering.take(7) is second


def test_what_is_old_is_closed_and_the_rest_stays() -> None:
    now = [0.0]
    lingering = OpenFileCache(lambda: now[0])
    old = _put(lingering, 1)
    now[0] = LINGER_S + 1
    young = _put(lingering, 2)
    lingering.close_older(LINGER_S)
    assert (old.closed, young.closed) == (1, 0)


def test_no_more_linger_than_there_is_room_for() -> None:
    lingering = OpenFileCache()
    for node in range(MOST_LINGERING):
        _put(lingering, node)
    assert _put(lingering, MOST_LINGERING).closed == 1


def test_what_comes_back_after_the_end_of_the_mount_is_closed() -> None:
    """A read that waited for the store is answered when the mount has gone."""
    lingering = OpenFileCache()
    before = _put(lingering, 1)
    lingering.close()
    after = _put(lingering, 2)
    assert (before.closed, after.closed) == (1, 1)
