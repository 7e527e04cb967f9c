"""Admission of a warmup's fetches: readers go first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

_POLL_S = 0.02
"""How often the gate is tried while readers have work pending, which takes milliseconds."""

LIGHT_BYTES = 1 << 20
"""A fetch of at most so much is a light one: a store takes 20 to 200 ms for it, however small it is."""
LIGHT_FETCHES = 8
"""So many light fetches count as one of the others, which are of up to 16 MiB. With 4 at a time and 100 ms each, files
of 110 kB would be received at 4 MB/s; with 32 it is 35."""


class Foreground(NamedTuple):
    """The work of the fetcher for readers: whether jobs are queued, and how many threads and requests are busy."""

    queued: bool
    busy: int


def may_begin(foreground: Foreground, running: int, limit: int, *, light: bool = False) -> bool:
    """True if one more fetch of a warmup may begin beside ``running`` of its kind.

    None begins while a reader's fetch waits for a thread. While readers have fetches running, one fetch of a warmup
    runs beside them, or ``LIGHT_FETCHES`` light ones: with none, a warmup would never end beside a training that always
    reads.
    """
    return not foreground.queued and running < (1 if foreground.busy else limit) * (LIGHT_FETCHES if light else 1)


def no_readers() -> Foreground:
    """For a gate that only counts."""
    return Foreground(queued=False, busy=0)


class AdmissionGate:
    """Admits the fetches of all warmups of a daemon; ``light`` ones, of small objects, are counted apart.

    ``_lock`` guards ``_running``.
    """

    def __init__(self, foreground: Callable[[], Foreground], limit: int) -> None:
        """Admits ``limit`` fetches at a time, all warmups together, and ``LIGHT_FETCHES`` times as many light ones."""
        self._foreground = foreground
        self.limit = limit
        self._lock = threading.Lock()
        self._running = {True: 0, False: 0}
        """By whether they are light."""

    def enter(self, wait: Callable[[float], bool], *, light: bool = False) -> bool:
        """Blocks until a fetch may begin; False if ``wait`` returned True: the fetch is not wanted any more."""
        while not self._try_enter(light):
            if wait(_POLL_S):
                return False
        return True

    def leave(self, *, light: bool = False) -> None:
        """The fetch has ended."""
        with self._lock:
            self._running[light] -= 1

    def _try_enter(self, light: bool) -> bool:
        with self._lock:  # the check and the count are one step, or two warmups would share the last place
            if not may_begin(self._foreground(), self._running[light], self.limit, light=light):
                return False
            self._running[light] += 1
        return True
