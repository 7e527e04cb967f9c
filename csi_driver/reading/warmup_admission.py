"""Admission of a warmup's fetches: readers go first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from csi_driver.reading.fair_shares import STALL_S, FairShares, Share, Slot

_POLL_S = 0.02
"""How often the gate is tried while readers have work pending, which takes milliseconds."""

LIGHT_BYTES = 1 << 20
"""A fetch of at most so much is a light one: a store takes 20 to 200 ms for it, however small it is."""
LIGHT_FETCHES = 8
"""So many light fetches count as one of the others, which are of up to 16 MiB. With 4 at a time and 100 ms each, files
of 110 kB would be received at 4 MB/s; with 32 it is 35."""

MOST_FETCHES = 8
"""So many times as many fetches there are at the most, while others are stalled or a namespace or a store waits that
has less than an equal part."""


class Foreground(NamedTuple):
    """The work of the fetcher for readers: whether jobs wait for a thread, and how many threads and requests are busy.
    What is stalled does not count."""

    queued: bool
    busy: int


def most_beside(foreground: Foreground, limit: int, *, light: bool = False) -> int:
    """How many fetches of warmups may run beside those of readers.

    None begins while a reader's fetch waits for a thread. While readers have fetches running, one fetch of a warmup
    runs beside them, or ``LIGHT_FETCHES`` light ones: with none, a warmup would never end beside a training that always
    reads.
    """
    if foreground.queued:
        return 0
    return (1 if foreground.busy else limit) * (LIGHT_FETCHES if light else 1)


def no_readers() -> Foreground:
    """For a gate that only counts."""
    return Foreground(queued=False, busy=0)


class AdmissionGate:
    """Admits the fetches of all warmups of a daemon, by ``fair_shares.py``; ``light`` ones, of small objects, are
    counted apart.

    ``_lock`` guards ``_shares``.
    """

    def __init__(self, foreground: Callable[[], Foreground], limit: int, stall_s: float = STALL_S) -> None:
        """Admits ``limit`` fetches at a time, all warmups together, and ``LIGHT_FETCHES`` times as many light ones;
        without those that are stalled."""
        self._foreground = foreground
        self.limit = limit
        self._lock = threading.Lock()
        self._shares = {
            light: FairShares(count, count * MOST_FETCHES, stall_s=stall_s)
            for light, count in ((True, limit * LIGHT_FETCHES), (False, limit))
        }
        """By whether they are light."""

    def enter(self, wait: Callable[[float], bool], share: Share = Share(), *, light: bool = False) -> Slot | None:  # noqa: B008  # immutable
        """Blocks until a fetch may begin; None if ``wait`` returned True: the fetch is not wanted any more."""
        while (slot := self._try_enter(share, light)) is None:
            if wait(_POLL_S):
                return None
        return slot

    def leave(self, slot: Slot, *, light: bool = False) -> None:
        """The fetch has ended."""
        with self._lock:
            self._shares[light].end(slot)

    def _try_enter(self, share: Share, light: bool) -> Slot | None:
        with self._lock:  # the check and the count are one step, or two warmups would share the last place
            shares = self._shares[light]
            shares.limit = most_beside(self._foreground(), self.limit, light=light)
            shares.mark_stalled()
            return shares.start(share) if shares.limit and shares.may_start(share) else None
