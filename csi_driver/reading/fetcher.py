"""The threads that fetch. Their number bounds the connections to the stores and, with the size of a piece, the bytes
in flight."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter

from csi_driver.reading.admission import Foreground
from csi_driver.reading.fair_queue import FairQueue, Job

__all__ = ["Fetcher", "Job"]

logger = logging.getLogger(__name__)

RESERVED = 4
"""Threads that fetching ahead never takes, so that a read that somebody waits for starts at once."""

OTHERS_SHARE = 8
"""One thread of so many is never taken by a volume that has all the others: a volume whose store hangs leaves the rest
of the node a way to theirs."""


STOP_S = 3.0
"""A fetch of a store that works takes less; one of a store that hangs ends with its deadline, minutes later."""


class Fetcher:
    """A pool of threads with two queues: what a reader waits for, and what is fetched ahead. In each, the volume that
    has the fewest fetches running goes first, so that many readers of one do not starve the single one of another.

    ``_lock`` guards the queues, ``_running``, ``_running_ahead`` and ``_owed``. It is not held while a job runs.
    """

    def __init__(self, threads: int) -> None:
        """Starts the threads."""
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """One for each job submitted: what the threads wait at."""
        self._demand: FairQueue[Job] = FairQueue()
        self._ahead: FairQueue[Job] = FairQueue()
        self._running: Counter[int] = Counter()
        """Jobs by volume."""
        self._running_ahead = 0
        self._owed = 0
        """Tokens that were spent while no job could be taken, though some waited."""
        self._most_ahead = max(1, threads - min(RESERVED, threads // 2))
        self._most_of_a_volume = threads - threads // OTHERS_SHARE
        self._lock = threading.Lock()
        self._engaged = [False] * threads
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"fetch-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def demand(self, job: Job, volume: int = 0) -> None:
        """Does the job as soon as it is the volume's turn. A job that waits in the other queue is moved up."""
        with self._lock:
            self._demand.put(volume, job)
        self._tokens.put(True)

    def ahead(self, job: Job, volume: int = 0) -> None:
        """Does the job when nobody waits for another."""
        with self._lock:
            self._ahead.put(volume, job)
        self._tokens.put(True)

    def foreground(self) -> Foreground:
        """What there is to do for readers just now. Not exact: whoever asks wants to keep out of their way."""
        return Foreground(bool(self._demand or self._ahead), sum(self._engaged))

    def close(self, timeout_s: float = STOP_S) -> None:
        """Lets running jobs end, up to this time: a store that hangs must not hold up the end of the daemon. What
        waits is not begun."""
        with self._lock:
            self._demand.clear()
            self._ahead.clear()
        for _ in self._threads:
            self._tokens.put(False)
        give_up_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, give_up_s - time.monotonic()))

    def _work(self, number: int) -> None:
        engaged = self._engaged
        while self._tokens.get():
            taken = self._take()
            if taken is not None:
                engaged[number] = True
                _run(taken[1])
                engaged[number] = False
                self._done(*taken)

    def _take(self) -> tuple[int, Job, bool] | None:
        with self._lock:
            ahead = False
            found = self._demand.take(self._running, self._most_of_a_volume)
            if found is None and self._running_ahead < self._most_ahead:
                found = self._ahead.take(self._running, self._most_of_a_volume)
                ahead = found is not None
            if found is None:
                self._owed += bool(self._demand or self._ahead)
                return None
            volume, job = found
            self._running[volume] += 1
            self._running_ahead += ahead
        return volume, job, ahead

    def _done(self, volume: int, _job: Job, ahead: bool) -> None:
        with self._lock:
            self._running[volume] -= 1
            if not self._running[volume]:
                del self._running[volume]
            self._running_ahead -= ahead
            again = self._owed > 0
            self._owed -= again
        if again:
            self._tokens.put(True)


def _run(job: Job) -> None:
    # A thread of the pool must not die. Work answers those who wait for it before it raises.
    try:
        job.work()
    except Exception:
        logger.exception("a fetch failed in a way nobody foresaw")
