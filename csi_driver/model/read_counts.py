"""What the readers of a volume did, in numbers: how many bytes by which path, and how long they waited.

Reads of files that the kernel reads by itself do not reach the daemon: of these the opens are counted, with the sizes
of the files.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Of histograms: from a read of a local disk to the deadline of a request."""


class Distribution(NamedTuple):
    """A histogram at one moment."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    """By bound, each without those of the bounds before it; the last one is of what took longer."""
    sum_s: float = 0.0

    def plus(self, other: Distribution) -> Distribution:
        counts = tuple(one + another for one, another in zip(self.counts, other.counts, strict=True))
        return Distribution(counts, self.sum_s + other.sum_s)


NO_DURATIONS = Distribution()


class Histogram:
    """Durations. The caller serialises."""

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def distribution(self) -> Distribution:
        return Distribution(tuple(self._counts), self.sum_s)


class WaitsFor(Enum):
    """What a reader can wait for."""

    DISK = "disk"
    """A read of bytes that are in the cache, and not in memory."""
    STORE = "store"
    """A read of bytes that are not in the cache."""
    OPEN = "open"
    """An open of an object that has to be fetched, or looked up at the store, first."""


@dataclass(frozen=True, slots=True)
class ReadNumbers:
    """The counts of one volume, or of several together, at one moment."""

    memory_reads: int = 0
    """Answered at once: from the page cache of the object file, or before the bytes are written to it."""
    memory_bytes: int = 0
    disk_reads: int = 0
    disk_bytes: int = 0
    store_reads: int = 0
    store_bytes: int = 0
    passthrough_opens: int = 0
    passthrough_bytes: int = 0
    """The sizes of the files of these opens, each counted completely."""
    served_opens: int = 0
    fetched_bytes: int = 0
    """Received from the store."""
    stall_s: float = 0.0
    """That readers waited for the store, also those that still wait; of two that wait at a time, both."""
    disk_waits: Distribution = NO_DURATIONS
    store_waits: Distribution = NO_DURATIONS
    open_waits: Distribution = NO_DURATIONS

    @property
    def read_bytes(self) -> int:
        """All that readers got, as far as the daemon knows."""
        return self.memory_bytes + self.disk_bytes + self.store_bytes + self.passthrough_bytes

    def plus(self, other: ReadNumbers) -> ReadNumbers:
        return ReadNumbers(
            self.memory_reads + other.memory_reads,
            self.memory_bytes + other.memory_bytes,
            self.disk_reads + other.disk_reads,
            self.disk_bytes + other.disk_bytes,
            self.store_reads + other.store_reads,
            self.store_bytes + other.store_bytes,
            self.passthrough_opens + other.passthrough_opens,
            self.passthrough_bytes + other.passthrough_bytes,
            self.served_opens + other.served_opens,
            self.fetched_bytes + other.fetched_bytes,
            self.stall_s + other.stall_s,
            self.disk_waits.plus(other.disk_waits),
            self.store_waits.plus(other.store_waits),
            self.open_waits.plus(other.open_waits),
        )


NO_READS = ReadNumbers()


class Wait:
    """One reader that waits, from ``ReadCounts.begin_wait`` to ``end``."""

    __slots__ = ("_began_s", "_counts", "kind")

    def __init__(self, counts: ReadCounts, kind: WaitsFor, began_s: float) -> None:
        self._counts, self.kind, self._began_s = counts, kind, began_s

    @property
    def began_s(self) -> float:
        return self._began_s

    def end(self, count_bytes: int | None = None) -> None:
        """The reader is about to be answered, with so many bytes, or with an error. Only the first call counts."""
        self._counts.end_wait(self, count_bytes)


class _Tally:
    """Of one thread, which alone changes it: what is counted for every read or open would spend more on a lock."""

    __slots__ = (
        *("fetched_bytes", "memory_bytes", "memory_reads"),
        *("passthrough_bytes", "passthrough_opens", "served_opens"),
    )

    def __init__(self) -> None:
        self.memory_reads = self.memory_bytes = self.fetched_bytes = 0
        self.passthrough_opens = self.passthrough_bytes = self.served_opens = 0

    def add(self, other: _Tally) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class ReadCounts:
    """Of one volume. May be used from any thread. ``_lock`` guards all fields but the clock and ``_of_thread``, and is
    held for some additions only. A tally is changed by its thread without it, and read with it: each of its numbers is
    one value, which is right before the read that it counts is answered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._tallies: list[tuple[threading.Thread, _Tally]] = []
        self._of_ended_threads = _Tally()
        self._disk_bytes = self._store_bytes = 0
        self._disk_reads = self._store_reads = 0
        self._waiting: set[Wait] = set()
        self._waited = {kind: Histogram() for kind in WaitsFor}

    def answered_at_once(self, count_bytes: int) -> None:
        """A read is about to be answered. On the path of every served read."""
        try:
            tally = self._of_thread.tally
        except AttributeError:
            tally = self._new_tally()
        tally.memory_reads += 1
        tally.memory_bytes += count_bytes

    def opened(self, passthrough_bytes: int | None) -> None:
        """An open is about to be answered; ``passthrough_bytes`` is the size of a file that the kernel then reads by
        itself."""
        try:
            tally = self._of_thread.tally
        except AttributeError:
            tally = self._new_tally()
        if passthrough_bytes is None:
            tally.served_opens += 1
        else:
            tally.passthrough_opens += 1
            tally.passthrough_bytes += passthrough_bytes

    def fetched(self, count_bytes: int) -> None:
        """Bytes were received from the store for the volume."""
        try:
            tally = self._of_thread.tally
        except AttributeError:
            tally = self._new_tally()
        tally.fetched_bytes += count_bytes

    def begin_wait(self, kind: WaitsFor) -> Wait:
        """A reader waits from now on. ``Wait.end`` must be called, or it waits for ever."""
        wait = Wait(self, kind, self._clock())
        with self._lock:
            self._waiting.add(wait)
        return wait

    def end_wait(self, wait: Wait, count_bytes: int | None) -> None:
        """As ``Wait.end``."""
        now = self._clock()
        with self._lock:
            if wait not in self._waiting:
                return
            self._waiting.discard(wait)
            self._waited[wait.kind].add(now - wait.began_s)
            if count_bytes is None or wait.kind is WaitsFor.OPEN:
                return
            if wait.kind is WaitsFor.DISK:
                self._disk_reads += 1
                self._disk_bytes += count_bytes
            else:
                self._store_reads += 1
                self._store_bytes += count_bytes

    def numbers(self) -> ReadNumbers:
        """Of this moment."""
        now = self._clock()
        with self._lock:
            waits = {kind: waited.distribution() for kind, waited in self._waited.items()}
            of_store = (WaitsFor.STORE, WaitsFor.OPEN)
            stall_s = sum(waits[kind].sum_s for kind in of_store)
            stall_s += sum(max(0.0, now - wait.began_s) for wait in self._waiting if wait.kind in of_store)
            tally = self._tally()
            return ReadNumbers(
                tally.memory_reads,
                tally.memory_bytes,
                self._disk_reads,
                self._disk_bytes,
                self._store_reads,
                self._store_bytes,
                tally.passthrough_opens,
                tally.passthrough_bytes,
                tally.served_opens,
                tally.fetched_bytes,
                stall_s,
                waits[WaitsFor.DISK],
                waits[WaitsFor.STORE],
                waits[WaitsFor.OPEN],
            )

    def _new_tally(self) -> _Tally:
        tally = self._of_thread.tally = _Tally()
        with self._lock:
            self._tallies.append((threading.current_thread(), tally))
        return tally

    def _tally(self) -> _Tally:
        """Of all threads. The caller holds the lock. Those of threads that have ended are added up and dropped."""
        running = []
        total = _Tally()
        for thread, tally in self._tallies:
            if thread.is_alive():
                running.append((thread, tally))
                total.add(tally)
            else:
                self._of_ended_threads.add(tally)
        self._tallies = running
        total.add(self._of_ended_threads)
        return total


NOT_COUNTED = ReadCounts()
"""For readers of no volume."""
