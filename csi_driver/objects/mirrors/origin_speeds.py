"""Which of several stores of one dataset is the nearest, by how soon each sends its first byte.

Two kinds of answers are timed. Requests for one byte, sent to all stores in the same minute by a thread of their own,
are fair to all of them, and suggest an order. Reads are timed too, and where two stores have both been read lately
these times decide: they include what a request for one byte does not see, a thin link. Both leave out the wait for a
slot of ``Limited``, which is long where a store is read much and says nothing about the store.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from csi_driver.objects.request_counts import ForwardingCounts, Request, RequestCounts

NEARER, LEAST_GAIN_S = 0.7, 0.005
"""A store is preferred to another one if it takes less than this part of its time, and is sooner by so much: what
differs by less changes with the load of the node, and readers should not move for it."""
DWELL_S = 60.0
"""The first in the order changes at most so often."""
ROUND_S = 30.0
"""Between two rounds of requests for one byte."""
REQUESTS = 2
"""To each store in a round: the first one may have to make a connection."""
READS_PER_REQUEST = 100
"""So many reads for each such request, but for those of the first round: one request in a hundred."""
PROBES_LAST_S, READS_LAST_S = 300.0, 300.0
"""Older times are forgotten. A store that reads have shown to be slow gets another try after so long."""
_LEAST_PROBES, _LEAST_READS = 2, 8
_MOST_KEPT = 64
_DECIDE_EVERY = 64
"""Reads between two looks at the clock."""

_Times = deque[tuple[float, float]]
"""When it was measured, and the time itself, in seconds."""


class OriginSpeeds:
    """Of the stores of one volume, by their numbers. May be used from any thread. ``_lock`` guards ``order``,
    ``_insists``, ``_moved_s``, ``_round_s``, ``_asked`` and ``_reads_at_round``, and is held for single steps only;
    ``append`` and ``clear`` of the times are atomic."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._probes: tuple[_Times, ...] = tuple(deque(maxlen=_MOST_KEPT) for _ in range(count))
        self._reads: tuple[_Times, ...] = tuple(deque(maxlen=_MOST_KEPT) for _ in range(count))
        self._listed = tuple(range(count))
        self._nearest = self._listed
        self.order: Sequence[int] = self._listed
        """The nearest first. Replaced as one value."""
        self._insists = False
        self._moved_s = self._round_s = float("-inf")
        self._asked = 0
        """Requests for one byte that reads have not paid for yet."""
        self._counter = itertools.count(1)
        self._counted = self._reads_at_round = 0
        self.probing = threading.local()
        """Its ``is_on`` is True in a thread while it sends requests for one byte."""

    def counting(self, number: int, counts: RequestCounts) -> RequestCounts:
        """The counts for the store of this number: those of ``counts``, and each read is timed here."""
        return TimedRequests(counts, self, number)

    @contextmanager
    def as_probe(self) -> Iterator[None]:
        """The requests of the body, on this thread, are for one byte."""
        self.probing.is_on = True
        try:
            yield
        finally:
            self.probing.is_on = False

    def note(self, number: int, wait_s: float) -> None:
        """The first byte was received after so long."""
        times = self._probes if getattr(self.probing, "is_on", False) else self._reads
        times[number].append((self._clock(), wait_s))

    def read(self) -> bool:
        """A read begins. True for one of many: ``begin_round`` is to be asked."""
        self._counted = count = next(self._counter)
        return count % _DECIDE_EVERY == 1

    def begin_round(self, working: Sequence[int]) -> Sequence[int]:
        """The stores, of those that work, that are to be asked for one byte now, ``REQUESTS`` times each; none: it is
        not time yet. Until a round ends no other one begins, nor for ``ROUND_S``."""
        with self._lock:
            self._decide()
            now = self._clock()
            paid = (self._counted - self._reads_at_round) // READS_PER_REQUEST
            if len(self._listed) < 2 or now < self._round_s + ROUND_S or paid < self._asked:
                return ()
            self._round_s, self._reads_at_round = now, self._counted
            self._asked = REQUESTS * len(working)
            return tuple(working)

    def end_round(self, *, first_refuses: bool) -> None:
        """``first_refuses``: the first store has refused the request to these credentials, and is asked before all
        others until it does not."""
        with self._lock:
            self._insists = first_refuses
            self._decide()

    def forget(self, number: int) -> None:
        """The store has failed: what was measured before says nothing about it."""
        self._probes[number].clear()
        self._reads[number].clear()

    def recovered(self) -> None:
        """A store that had failed was asked again."""
        with self._lock:
            self._decide()

    def wants_probes(self, number: int) -> bool:
        """Whether the store was measured too rarely to be compared with others."""
        return len(self._probes[number]) < _LEAST_PROBES

    def _decide(self) -> None:
        """The caller holds the lock."""
        now = self._clock()
        if now >= self._moved_s + DWELL_S:
            found = self._sorted(now)
            if found[0] != self._nearest[0]:
                self._moved_s = now
            self._nearest = found
        self.order = self._listed if self._insists else self._nearest

    def _sorted(self, now_s: float) -> tuple[int, ...]:
        """The order that there is, with each store moved before those that are clearly farther."""
        probes = [_estimate(times, now_s - PROBES_LAST_S, _LEAST_PROBES, 0.0) for times in self._probes]
        reads = [_estimate(times, now_s - READS_LAST_S, _LEAST_READS, 0.25) for times in self._reads]

        def is_nearer(one: int, other: int) -> bool:
            ours, theirs = reads[one], reads[other]
            if ours is None or theirs is None:
                ours, theirs = probes[one], probes[other]
            return ours is not None and theirs is not None and ours < min(NEARER * theirs, theirs - LEAST_GAIN_S)

        found: list[int] = []
        for number in self._nearest:
            place = next((at for at, other in enumerate(found) if is_nearer(number, other)), len(found))
            found.insert(place, number)
        return tuple(found)


def _estimate(times: _Times, since_s: float, least: int, part: float) -> float | None:
    """The time that this part of the answers did not take; None: too few."""
    waits = sorted(wait_s for at_s, wait_s in tuple(times) if at_s >= since_s)
    return waits[int(part * len(waits))] if len(waits) >= least else None


class _TimedRequest(Request):
    """A request whose first byte is timed."""

    __slots__ = ("_inner", "_number", "_sent_s", "_speeds")

    def __init__(self, inner: Request, counts: RequestCounts, speeds: OriginSpeeds, number: int) -> None:
        super().__init__(counts)
        self._inner, self._speeds, self._number = inner, speeds, number
        self._sent_s: float | None = counts.clock()

    def answered(self) -> None:
        sent_s, self._sent_s = self._sent_s, None
        if sent_s is not None:
            self._speeds.note(self._number, self._counts.clock() - sent_s)
        self._inner.answered()

    def end(self, result: str) -> None:
        self._inner.end(result)


class TimedRequests(ForwardingCounts):
    """Times the reads."""

    def __init__(self, counts: RequestCounts, speeds: OriginSpeeds, number: int) -> None:
        super().__init__(counts)
        self._speeds, self._number = speeds, number

    def begin(self, kind: str) -> Request:
        inner = super().begin(kind)
        return _TimedRequest(inner, self, self._speeds, self._number) if kind == "read" else inner
