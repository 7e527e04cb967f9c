"""The threads that fetch. Their number bounds the connections to the stores and, with the size of a piece, the bytes
in flight."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

from csi_driver.reading.pacing import Foreground

logger = logging.getLogger(__name__)

RESERVED = 4
"""Threads that fetching ahead never takes, so that a read that somebody waits for starts at once."""


class Job:
    """Work for one thread, done once, however often it is submitted."""

    __slots__ = ("_claims", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self._claims = [None]

    def claim(self) -> bool:
        """True for the first caller only. Atomic: list.pop is one step under the interpreter's lock."""
        try:
            self._claims.pop()
        except IndexError:
            return False
        return True

    @property
    def waiting(self) -> bool:
        """True until a thread has taken it."""
        return bool(self._claims)


class Fetcher:
    """A pool of threads with two queues: what a reader waits for, and what is fetched ahead.

    ``_lock`` guards ``_running_ahead``.
    """

    def __init__(self, threads: int) -> None:
        """Starts the threads."""
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._demand: deque[Job] = deque()
        self._ahead: deque[Job] = deque()
        self._running_ahead = 0
        self._most_ahead = max(1, threads - min(RESERVED, threads // 2))
        self._lock = threading.Lock()
        self._engaged = [False] * threads
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"fetch-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def demand(self, job: Job) -> None:
        """Does the job as soon as a thread is free. A job that waits in the other queue is moved up."""
        self._demand.append(job)
        self._tokens.put(True)

    def ahead(self, job: Job) -> None:
        """Does the job when nobody waits for another."""
        self._ahead.append(job)
        self._tokens.put(True)

    def foreground(self) -> Foreground:
        """What there is to do for readers just now. Not exact: whoever asks wants to keep out of their way."""
        return Foreground(bool(self._demand or self._ahead), sum(self._engaged))

    def close(self) -> None:
        """Lets running jobs end; what waits is not begun."""
        self._demand.clear()
        self._ahead.clear()
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        engaged = self._engaged
        while self._tokens.get():
            engaged[number] = True
            job = _claimed(self._demand)
            if job is not None:
                _run(job)
            else:
                self._work_ahead()
            engaged[number] = False

    def _work_ahead(self) -> None:
        with self._lock:
            if self._running_ahead >= self._most_ahead:
                return
            self._running_ahead += 1
        try:
            job = _claimed(self._ahead)
            if job is not None:
                _run(job)
        finally:
            with self._lock:
                self._running_ahead -= 1
            if self._ahead:
                # A token that came while all places were taken was spent for nothing: this one replaces it.
                self._tokens.put(True)


def _claimed(jobs: deque[Job]) -> Job | None:
    while True:
        try:
            job = jobs.popleft()
        except IndexError:
            return None
        if job.claim():
            return job


def _run(job: Job) -> None:
    # A thread of the pool must not die. Work answers those who wait for it before it raises.
    try:
        job.work()
    except Exception:
        logger.exception("a fetch failed in a way nobody foresaw")
