"""The fetch threads. Their number bounds the connections to the stores and, with the length of a fetch, the bytes in
flight."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter

from csi_driver.reading.fair_queue import FairQueue, Job
from csi_driver.reading.warmup_admission import Foreground

__all__ = ["Fetcher", "Job"]

logger = logging.getLogger(__name__)

RESERVED_THREADS = 4
"""Threads that readahead never takes, so that a fetch for a pending read starts at once."""

OTHERS_SHARE = 8
"""One thread of so many is left to other volumes: one volume cannot occupy all threads of the node while its store
hangs."""


CLOSE_TIMEOUT_S = 3.0
"""A fetch from a store that works takes less; one from a store that hangs ends with its deadline, minutes later."""


class Fetcher:
    """A pool of threads with two queues: fetches on demand, for pending reads, and readahead. In each, the volume that
    has the fewest jobs running goes first, so that many readers of one do not starve the single reader of another.

    ``_lock`` guards the queues, ``_running``, ``_running_ahead`` and ``_owed_tokens``. It is not held while a job runs.
    """

    def __init__(self, threads: int) -> None:
        """Starts the threads."""
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """One for each submitted job: what the threads wait for. False ends a thread."""
        self._demand: FairQueue[Job] = FairQueue()
        self._ahead: FairQueue[Job] = FairQueue()
        self._running: Counter[int] = Counter()
        """Jobs by volume."""
        self._running_ahead = 0
        self._owed_tokens = 0
        """Tokens that were spent although the limits left no job to take: returned as soon as a job has ended."""
        self._max_ahead = max(1, threads - min(RESERVED_THREADS, threads // 2))
        self._max_of_a_volume = threads - threads // OTHERS_SHARE
        self._lock = threading.Lock()
        self._busy = [False] * threads
        """By thread. Read without the lock: see ``foreground``."""
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"fetch-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def demand(self, job: Job, volume: int = 0) -> None:
        """Runs the job as soon as it is the volume's turn. A job that is queued as readahead is moved up by this."""
        with self._lock:
            self._demand.put(volume, job)
        self._tokens.put(True)

    def ahead(self, job: Job, volume: int = 0) -> None:
        """Runs the job when no job on demand can run."""
        with self._lock:
            self._ahead.put(volume, job)
        self._tokens.put(True)

    def foreground(self) -> Foreground:
        """The work for readers at this moment. Approximate, which is enough for admission: it takes no lock."""
        return Foreground(bool(self._demand or self._ahead), sum(self._busy))

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Drops the queued jobs and waits for the running ones, up to the timeout: a store that hangs must not hold up
        the end of the daemon."""
        with self._lock:
            self._demand.clear()
            self._ahead.clear()
        for _ in self._threads:
            self._tokens.put(False)
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self, number: int) -> None:
        busy = self._busy
        while self._tokens.get():
            taken = self._take()
            if taken is None:
                continue
            volume, job, ahead = taken
            busy[number] = True
            try:
                job.work()
            except Exception:  # the thread must not die; the work has answered its pending reads before it raised
                logger.exception("unexpected error on a fetch thread; the reads that waited for it have failed")
            busy[number] = False
            self._done(volume, ahead)

    def _take(self) -> tuple[int, Job, bool] | None:
        with self._lock:
            ahead = False
            found = self._demand.take(self._running, self._max_of_a_volume)
            if found is None and self._running_ahead < self._max_ahead:
                found = self._ahead.take(self._running, self._max_of_a_volume)
                ahead = found is not None
            if found is None:
                # Nothing queued: the job was claimed through its other queue, and its token is spent for good.
                self._owed_tokens += bool(self._demand or self._ahead)
                return None
            volume, job = found
            self._running[volume] += 1
            self._running_ahead += ahead
        return volume, job, ahead

    def _done(self, volume: int, ahead: bool) -> None:
        with self._lock:
            self._running[volume] -= 1
            if not self._running[volume]:
                del self._running[volume]
            self._running_ahead -= ahead
            return_token = self._owed_tokens > 0
            self._owed_tokens -= return_token
        if return_token:
            self._tokens.put(True)
