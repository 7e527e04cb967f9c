"""Reads that the kernel repeats by itself after an error.

A read(2) whose page could not be read ahead asks for it once more. A page fault of mmap asks twice more: after the
readahead without the lock of the memory map, and then with it, before it raises SIGBUS (``filemap_fault`` in the
kernel's mm/filemap.c). The daemon cannot tell a repeat from a new read. So what has failed at its deadline a moment ago
is tried once, with a request of its own, and not until another deadline: a store that works again is noticed, and one
that does not costs its readers one deadline and not three.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from csi_driver.model.errors import EndpointUnreachable, HayloftError, StoreUnavailable, TransientStoreError
from csi_driver.objects.retrying import without_retries
from csi_driver.objects.store import ObjectStore
from csi_driver.reading.services import ObjectSource

REPEATED_WITHIN_S = 1.0
"""The kernel repeats a read in microseconds; its process may have to wait for a processor first."""

MOST_REPEATS = 8
"""Of one failure: two for each of four readers of the same page."""

_MOST_FAILURES = 1024

_Place = tuple[tuple[str, bytes], int]
"""``ObjectSource.key`` and a chunk."""


class Repeats:
    """What failed at its deadline a moment ago. May be used from any thread; ``_lock`` guards ``_failures``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[_Place, tuple[float, int]] = {}
        """When it failed last, and how many repeats are left. The oldest first."""

    def store(self, source: ObjectSource, chunk: int) -> ObjectStore:
        """The store for a request that begins with the chunk: without its retries, if this is a repeat."""
        if not self._failures:  # nearly always
            return source.store
        with self._lock:
            place = source.key, chunk
            failed_s, left = self._failures.get(place, (0.0, 0))
            if not left or self._clock() - failed_s > REPEATED_WITHIN_S:
                self._failures.pop(place, None)
                return source.store
            self._failures[place] = failed_s, left - 1
        return without_retries(source.store)

    def failed(self, source: ObjectSource, chunks: Iterable[int], error: HayloftError) -> HayloftError:
        """Records that the chunks could not be fetched; returns the error that their readers get."""
        if isinstance(error, TransientStoreError):  # of a repeat
            reported: HayloftError = (error.when_exhausted or StoreUnavailable)(str(error))
        elif isinstance(error, StoreUnavailable | EndpointUnreachable):
            reported = error
        else:
            return error
        with self._lock:
            for chunk in chunks:
                _, left = self._failures.pop((source.key, chunk), (0.0, MOST_REPEATS))
                self._failures[source.key, chunk] = self._clock(), left
            while len(self._failures) > _MOST_FAILURES:
                del self._failures[next(iter(self._failures))]
        return reported
