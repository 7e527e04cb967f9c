"""A limit of bytes a second for the fetches of a warmup, and the measured rate that its report shows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

RATE_WINDOW_S = 10.0
"""A rate is measured over so many seconds: long enough for a few fetches of 16 MiB, short enough to show a standstill.
"""

_SAMPLE_S = 0.5

Clock = Callable[[], float]


class RateLimit:
    """A limit of bytes a second for fetches that start one after another; 0: no limit.

    Each fetch has a slot, as long as its bytes take at that rate. No credit is saved up while nothing is fetched: in
    any span of time at most the rate's bytes are started, and one fetch. ``_lock`` guards ``_free_at``.
    """

    def __init__(self, bytes_per_second: int, clock: Clock) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0
        """When the last slot ends."""

    def take(self, count_bytes: int) -> float:
        """Takes the next slot; returns in how many seconds it starts."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = self._clock()
            begin = max(now, self._free_at)  # not the past: idle time is no credit
            self._free_at = begin + count_bytes / self._rate
        return begin - now

    def give_back(self, count_bytes: int) -> None:
        """Returns the slot of bytes that were not fetched after all."""
        if self._rate:
            with self._lock:
                self._free_at -= count_bytes / self._rate


class RateMeter:
    """Bytes a second over the last ``RATE_WINDOW_S``. The caller serialises."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._total_bytes = 0

    def add(self, count_bytes: int) -> None:
        """Counts bytes that were received now."""
        self._total_bytes += count_bytes
        now = self._clock()
        if now - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, self._total_bytes))
            self._drop_old_samples(now)

    def bytes_per_second(self) -> float:
        """0 until bytes were received."""
        now = self._clock()
        self._drop_old_samples(now)
        since, bytes_then = self._samples[0]
        return (self._total_bytes - bytes_then) / (now - since) if now > since else 0.0

    def _drop_old_samples(self, now: float) -> None:
        # The newest of the samples before the window stays: it is where the window begins.
        while len(self._samples) > 1 and now - self._samples[1][0] >= RATE_WINDOW_S:
            self._samples.popleft()
