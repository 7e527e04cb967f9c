"""How many bytes of a mounted dataset are cached, counted without delaying reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MAX_AGE_S = 30.0
"""Of a count: kubelet polls once a minute, and a count looks at every file."""

MIN_AGE_S = 1.0
COUNTING_SHARE = 0.01
"""Of a caller's calls, that the count of few files may take: such a count is kept for a hundred times as long as it
took, and for a second at least."""

AT_ONCE_FILES = 1_000
"""Files that are counted in the caller's thread: 15 ms at 15 µs a file (two cores, Linux 6.18)."""

BATCH_FILES = 16
"""Files between two pauses: 0.25 ms, in which other threads of the daemon wait for the interpreter. Less than the
interpreter's own switch interval of 0.5 ms."""

PAUSE_S = 0.005
"""A count takes a twentieth of the interpreter: 120,000 files are counted in 40 s."""

_ESTIMATE_AGE = 10
"""In times that the count took."""

_one_batch_at_a_time = threading.Lock()
"""Held during a batch and its pause: all counts of the process together take that twentieth."""


class CachedBytesCount:
    """The count for one mount. A large dataset is counted by a background thread in small batches with pauses: the
    interpreter is shared with the reads of every volume, and a dataset of one tenant must not delay those of others."""

    def __init__(self, file_count: int, count: Callable[[int, int], int]) -> None:
        """``count(start, stop)``: cached bytes of the files with these numbers."""
        self._file_count = file_count
        self._count = count
        self._bytes = 0
        self._fresh_until_s = 0.0
        self._took_s = 0.0
        """Of the last count by a background thread."""
        self._counting = threading.Lock()  # held by the one background thread
        self._closed = threading.Event()

    def value(self) -> int:
        """The last count: of up to ``AT_ONCE_FILES`` files mostly a second old, and at most ``MAX_AGE_S``. That of more
        is older, and 0 at first, while they are counted. Blocks for the count of fewer files."""
        if time.monotonic() >= self._fresh_until_s:
            if self._file_count <= AT_ONCE_FILES:
                # Two concurrent counts cost time, and the last one wins.
                begun_s = time.monotonic()
                total = self._count(0, self._file_count)
                took_s = time.monotonic() - begun_s
                self._keep(total, min(MAX_AGE_S, max(MIN_AGE_S, took_s / COUNTING_SHARE)))
            elif self._counting.acquire(blocking=False):  # released by the thread that is started here
                try:
                    threading.Thread(target=self._count_slowly, name="count-cached", daemon=True).start()
                except RuntimeError:  # the process may have no more threads; the next call tries again
                    self._counting.release()
        return self._bytes

    @property
    def is_known(self) -> bool:
        """False until files were counted once: ``value`` is then 0, whatever is cached."""
        return bool(self._fresh_until_s) or not self._file_count

    def estimate(self) -> int:
        """As ``value``, for a caller that asks all the time, as Prometheus does: a count by the background thread is
        kept for ten times as long, so that counting takes one part in 200 of the interpreter."""
        kept_s = self._took_s * (_ESTIMATE_AGE - 1)
        return self._bytes if time.monotonic() < self._fresh_until_s + kept_s else self.value()

    def close(self) -> None:
        """Ends a count after its batch, and waits for that: afterwards nothing is counted."""
        self._closed.set()
        with self._counting:
            pass

    def _count_slowly(self) -> None:
        begun_s = time.monotonic()
        total = 0
        try:
            for start in range(0, self._file_count, BATCH_FILES):
                with _one_batch_at_a_time:
                    if self._closed.is_set():
                        return
                    total += self._count(start, min(start + BATCH_FILES, self._file_count))
                    self._closed.wait(PAUSE_S)
            # A count that took minutes is kept for longer: counting must not go on for ever.
            self._took_s = time.monotonic() - begun_s
            self._keep(total, max(MAX_AGE_S, self._took_s))
        finally:
            self._counting.release()

    def _keep(self, total: int, age_s: float) -> None:
        self._bytes = total  # before the time: a reader of that finds this value
        self._fresh_until_s = time.monotonic() + age_s
