"""Records which bytes of which files are read, for a trace."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import NamedTuple

from csi_driver.catalog.trace_format import MOST_RANGES


class ReadRange(NamedTuple):
    """Bytes of a file, which was first read so many seconds after the start."""

    node: int
    start: int
    stop: int
    seconds: float


class AccessRecorder:
    """``note`` may be called from any thread.

    ``_lock`` guards all fields; it is held for a few steps of a list that is as long as the ranges of one file.
    """

    def __init__(self, most_ranges: int = MOST_RANGES, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_ranges = most_ranges
        self._clock = clock
        self._began_s = clock()
        self._lock = threading.Lock()
        self._ranges: list[ReadRange] = []
        """In the order of the first reads; a read that continues the last one of its file extends it."""
        self._last: dict[int, int] = {}
        """By node: the place in ``_ranges`` of what was read of it last."""
        self._truncated = False

    def note(self, node: int, start: int, stop: int) -> None:
        """Bytes were requested, cached or not."""
        with self._lock:
            place = self._last.get(node)
            if place is not None:
                last = self._ranges[place]
                if last.start <= start <= last.stop:
                    self._ranges[place] = last._replace(stop=max(last.stop, stop))
                    return
            if len(self._ranges) >= self._most_ranges:
                self._truncated = True
                return
            self._last[node] = len(self._ranges)
            self._ranges.append(ReadRange(node, start, stop, self._clock() - self._began_s))

    def ranges(self) -> tuple[list[ReadRange], bool]:
        """Those that were read, without what was read before, and whether some are missing."""
        with self._lock:
            found, truncated = list(self._ranges), self._truncated
        unique = without_repeats(found)
        return unique[: self._most_ranges], truncated or len(unique) > self._most_ranges


def without_repeats(ranges: list[ReadRange]) -> list[ReadRange]:
    """The same bytes in the same order, each of them once, where it was read first."""
    seen: dict[int, _Seen] = {}
    unique: list[ReadRange] = []
    for each in ranges:
        new = seen.setdefault(each.node, _Seen()).add(each.start, each.stop)
        unique += (each._replace(start=start, stop=stop) for start, stop in new)
    return unique


class _Seen:
    """A set of bytes, as sorted ranges that neither overlap nor touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Returns the parts that are new."""
        # Those from ``first`` to ``last`` overlap or touch the range.
        first, last = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        new, at = [], start
        for known_start, known_stop in zip(self._starts[first:last], self._stops[first:last], strict=True):
            if at < known_start:
                new.append((at, known_start))
            at = max(at, known_stop)
        if at < stop:
            new.append((at, stop))
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last], self._stops[first:last] = [start], [stop]
        return new
