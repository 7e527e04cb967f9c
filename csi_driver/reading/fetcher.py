"""Threads for work that blocks: requests to stores, and reads from the disk. The number of fetch threads bounds the
connections to the stores and, with the length of a fetch, the bytes in flight."""

from __future__ import annotations

import logging
import queue
import threading
import time

from csi_driver.reading.fair_queue import FairQueue, Job
from csi_driver.reading.fair_shares import FairShares, Share, Slot, work_in
from csi_driver.reading.warmup_admission import Foreground

__all__ = ["Fetcher", "Job"]

logger = logging.getLogger(__name__)

RESERVED_THREADS = 4
"""Threads that readahead never takes, so that a fetch for a pending read starts at once."""

OTHERS_SHARE = 8
"""One thread of so many is left to other volumes: one volume cannot occupy all threads of the node."""

MOST_THREADS = 8
"""So many times as many threads there are at the most, while others are stalled or a namespace or a store waits that
has less than an equal part."""

DISK_READS = 32
"""Reads from the disk at a time. They do not depend on the number of connections: NVMe reads at its full rate with
some 32 requests in flight."""

IDLE_S = 10.0
"""Threads beyond the usual number end after so long without a job."""

WATCH_S = 0.5
"""How often the running jobs are checked for progress."""

WARN_INTERVAL_S = 60.0

CLOSE_TIMEOUT_S = 3.0
"""A fetch from a store that works takes less; one from a store that hangs ends with its deadline, minutes later."""

_Taken = tuple[Job, Slot, Slot | None]
"""A job, its slot, and that among readahead."""


class Fetcher:
    """A pool of threads with two queues: fetches on demand, for pending reads, and readahead. In each the namespace, of
    this the store, and of this the volume that has the fewest jobs running goes first (``fair_shares.py``).

    ``_lock`` guards the queues, ``_shares``, ``_ahead_shares``, ``_threads``, ``_running``, ``_owed_tokens``,
    ``_is_watched`` and ``_next_warning_s``. It is not held while a job runs.
    """

    def __init__(self, threads: int, name: str = "fetch", idle_s: float = IDLE_S) -> None:
        """Threads start when they are needed."""
        self._name = name
        self._usual_threads = threads
        self._idle_s = idle_s
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """One for each submitted job: what the threads wait for. False ends a thread."""
        self._demand: FairQueue[Job] = FairQueue()
        self._ahead: FairQueue[Job] = FairQueue()
        most, most_ahead = threads * MOST_THREADS, max(1, threads - min(RESERVED_THREADS, threads // 2))
        self._shares = FairShares(threads, most, most_of_a_volume=threads - threads // OTHERS_SHARE)
        self._ahead_shares = FairShares(most_ahead, most)
        """Of the jobs that run as readahead; these have a slot in ``_shares`` too."""
        self._owed_tokens = 0
        """Tokens that were spent although the limits left no job to take: returned as soon as a job has ended."""
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._running = 0
        self._is_watched = False
        """True while the watcher looks at the running jobs by itself; else a job that begins has to wake it."""
        self._next_warning_s = 0.0
        self._work_began = threading.Event()
        self._closing = threading.Event()
        threading.Thread(target=self._watch, name=f"{name}-watch", daemon=True).start()

    def demand(self, job: Job, share: Share = Share()) -> None:  # noqa: B008  # immutable
        """Runs the job as soon as it is the share's turn. A job that is queued as readahead is moved up by this."""
        self._submit(self._demand, job, share)

    def ahead(self, job: Job, share: Share = Share()) -> None:  # noqa: B008  # immutable
        """Runs the job when no job on demand can run."""
        self._submit(self._ahead, job, share)

    def foreground(self) -> Foreground:
        """The work for readers at this moment, without what is stalled. Approximate, which is enough for admission: it
        takes no lock."""
        active = self._shares.active
        queued = self._demand.waits(self._shares) or (active >= self._usual_threads and bool(self._ahead))
        return Foreground(queued, active)

    def queued(self) -> tuple[int, int]:
        """Jobs that wait for a thread: on demand, and as readahead."""
        with self._lock:
            return len(self._demand), len(self._ahead)

    def longest_wait_s(self, share: Share) -> float:
        """As ``FairShares.longest_wait_s``."""
        with self._lock:
            return self._shares.longest_wait_s(share)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Drops the queued jobs and waits for the running ones, up to the timeout: a store that hangs must not hold up
        the end of the daemon."""
        self._closing.set()
        self._work_began.set()
        with self._lock:
            self._demand.clear()
            self._ahead.clear()
            threads = list(self._threads)
        for _ in threads:
            self._tokens.put(False)
        until = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _submit(self, jobs: FairQueue[Job], job: Job, share: Share) -> None:
        with self._lock:
            jobs.put(share, job)
            self._tokens.put(True)
            self._add_thread_if_needed()

    def _add_thread_if_needed(self) -> None:
        """The caller holds the lock. Called when a job was queued or taken, and when one is stalled: if a queued job
        then has a thread to come, it is enough."""
        idle = len(self._threads) - self._running
        if self._tokens.qsize() <= idle or len(self._threads) >= self._usual_threads * MOST_THREADS:
            return
        usual = len(self._threads) < self._usual_threads
        if self._closing.is_set() or not (usual or self._has_startable_job()):
            return
        thread = threading.Thread(
            target=self._work, args=(usual,), name=f"{self._name}-{len(self._threads)}", daemon=True
        )
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the process may have no more threads; the watcher tries again
            self._threads.discard(thread)
            self._wake_watcher()
            self._log_no_thread()

    def _has_startable_job(self) -> bool:
        return bool(self._demand.next_share(self._shares) or self._ahead.next_share(self._shares, self._ahead_shares))

    # -- a thread --

    def _work(self, usual: bool) -> None:
        while self._wait_for_token(usual):
            taken = self._take()
            if taken is None:
                continue
            job, *slots = taken
            work_in(*filter(None, slots))
            try:
                job.run()
            except BaseException:  # whatever it is, the thread must not die
                logger.exception("unexpected error while the error of a job was reported")
            work_in()
            self._done(taken)

    def _wait_for_token(self, usual: bool) -> bool:
        """False if the thread is to end."""
        try:
            if self._tokens.get(timeout=None if usual else self._idle_s):
                return True
        except queue.Empty:
            pass
        with self._lock:
            self._threads.discard(threading.current_thread())
            self._add_thread_if_needed()  # a job may have been queued since the timeout
        return False

    def _take(self) -> _Taken | None:
        with self._lock:
            ahead_slot = None
            found = self._demand.take(self._shares)
            if found is None:
                found = self._ahead.take(self._shares, self._ahead_shares)
                ahead_slot = None if found is None else self._ahead_shares.start(found[0])
            if found is None:
                # Nothing queued: the job was claimed through its other queue, and its token is spent for good.
                self._owed_tokens += bool(self._demand or self._ahead)
                return None
            share, job = found
            slot = self._shares.start(share)
            self._running += 1
            self._add_thread_if_needed()
            self._wake_watcher()
        return job, slot, ahead_slot

    def _done(self, taken: _Taken) -> None:
        _, slot, ahead_slot = taken
        with self._lock:
            self._running -= 1
            self._shares.end(slot)
            if ahead_slot is not None:
                self._ahead_shares.end(ahead_slot)
            self._return_tokens(1)

    def _return_tokens(self, count: int) -> None:
        """The caller holds the lock. So many jobs more may start."""
        count = min(count, self._owed_tokens)
        self._owed_tokens -= count
        for _ in range(count):
            self._tokens.put(True)

    # -- the watcher --

    def _wake_watcher(self) -> None:
        """The caller holds the lock."""
        if not self._is_watched:
            self._is_watched = True
            self._work_began.set()

    def _log_no_thread(self) -> None:
        now = time.monotonic()
        if now >= self._next_warning_s:
            self._next_warning_s = now + WARN_INTERVAL_S
            logger.error(
                "no thread can be started, reads wait for those that there are; raise the limit of the container's "
                "processes (pids.max), or its memory"
            )

    def _watch(self) -> None:
        """Has other threads take the place of those that are stalled, or could not be started. Sleeps while no job runs
        or waits."""
        while not self._closing.is_set():
            self._work_began.wait()
            self._work_began.clear()
            while self._is_watched and not self._closing.wait(WATCH_S):
                with self._lock:
                    stalled = self._shares.mark_stalled() + self._ahead_shares.mark_stalled()
                    self._return_tokens(stalled)
                    self._add_thread_if_needed()
                    self._is_watched = self._running > 0 or bool(self._demand or self._ahead)
