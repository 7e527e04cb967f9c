"""What the tier has done for this daemon, for its metrics."""

from __future__ import annotations

import threading
from typing import NamedTuple

HITS = frozenset({"HIT", "REVALIDATED", "STALE", "UPDATING"})
"""Of the header with which a replica says that it had the bytes."""


class TierReport(NamedTuple):
    """Since the start of the daemon, and at this moment."""

    hits: int
    misses: int
    failures: int
    """Requests that a replica has not answered, or not completely; another one or the bucket has."""
    bypassed: int
    """Requests that went to the bucket at once: no replica could be asked, or the object is not of the share."""
    received_bytes: int
    replicas: int
    left_alone: int
    """Replicas that are not asked for a while, since they have failed or are slow."""


class TierCounts:
    """``_lock`` guards all numbers; it is held for single steps only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = self._misses = self._failures = self._bypassed = self._bytes = 0

    def answered(self, cache_status: str | None) -> None:
        """By the header with which a replica says where it has taken the first byte from."""
        with self._lock:
            if cache_status in HITS:
                self._hits += 1
            else:
                self._misses += 1

    def failed(self) -> None:
        """A replica has not answered, or not completely."""
        with self._lock:
            self._failures += 1

    def bypassed(self) -> None:
        """The bucket was asked at once."""
        with self._lock:
            self._bypassed += 1

    def received(self, count_bytes: int) -> None:
        """From a replica."""
        with self._lock:
            self._bytes += count_bytes

    def report(self, replicas: int, left_alone: int) -> TierReport:
        with self._lock:
            return TierReport(
                self._hits, self._misses, self._failures, self._bypassed, self._bytes, replicas, left_alone
            )
